import dataclasses

import numpy as np
import pytest

from hwmodel.errors import UsageError
from hwmodel.integer import IntegerGemm


@pytest.fixture
def product():
    """2 tokens, 3 inputs, one 8-bit row and one 4-bit row; a factor of 2^15 * 2^-17 = 1/4."""
    return IntegerGemm(
        activations=np.array([[1, -2, 3], [-128, 127, 0]], dtype=np.int8),
        weights=np.array([[100, 0, -127], [7, -7, 1]], dtype=np.int8),
        rows_high=1,
        bias=np.array([3, -2], dtype=np.int32),
        mantissa=np.array([2**15, 2**15]),
        shift=np.array([17, 17]),
    )


def test_hand_computed_outputs(product):
    # sums 100 - 381 + 3 = -278 and 7 + 14 + 3 - 2 = 22; -12800 + 3 and -896 - 889 - 2: halves round up, ends saturate
    assert product.outputs().tolist() == [[-69, 6], [-128, -128]]
    assert dataclasses.replace(product, least=-127).outputs().tolist() == [[-69, 6], [-127, -127]]


def test_the_table_maps_codes_after_saturation(product):
    table = np.arange(-128, 128)[::-1].astype(np.int8)
    assert dataclasses.replace(product, table=table).outputs().tolist() == [[68, -7], [127, 127]]


def test_unsigned_activations(product):
    unsigned = dataclasses.replace(
        product,
        activations=np.array([[1, 2, 3], [255, 127, 0]], dtype=np.uint8),
        unsigned_activations=True,
        rows_high=2,
        weights=np.array([[100, 0, -127], [7, -7, 1]], dtype=np.int8),
    )
    sums = [[100 - 381 + 3, 7 - 14 + 3 - 2], [25500 + 3, 1785 - 889 - 2]]
    assert unsigned.outputs().tolist() == [[-69, -1], [127, 127]]
    wide = dataclasses.replace(unsigned, wide=True)
    assert wide.outputs().tolist() == [[(value + 2) // 4 for value in row] for row in sums]


def test_wide_outputs_saturate_at_16_bits(product):
    wide = dataclasses.replace(
        product, wide=True, mantissa=np.full(2, 2**15), shift=np.array([15, 1]), bias=np.array([2**20, 0])
    )
    assert wide.outputs().dtype == np.int16
    assert wide.outputs().tolist() == [[32767, 32767], [32767, -32768]]
    assert dataclasses.replace(wide, least=-127).outputs()[1, 1] == -32767


def test_factors_of_tokens(product):
    # a token's sums times 1/4 and 1/2 (shifts 17 and 16); the rows' own factors do not count
    mixed = dataclasses.replace(product, token_factors=(np.full(2, 2**15), np.array([17, 16])), shift=np.array([1, 1]))
    assert mixed.outputs().tolist() == [[-69, 6], [-128, -128]]
    wide = dataclasses.replace(mixed, wide=True)
    assert wide.outputs().tolist() == [[-69, 6], [-6398, -893]]


def test_rounding_is_half_up_for_both_signs(product):
    sums = np.array([-6, -2, 2, 6])
    halves = IntegerGemm(
        activations=sums[:, None].astype(np.int8),
        weights=np.ones((1, 1), dtype=np.int8),
        rows_high=1,
        bias=np.zeros(1, dtype=np.int32),
        mantissa=np.array([2**15]),
        shift=np.array([17]),
    )
    assert halves.outputs()[:, 0].tolist() == [-1, 0, 1, 2]


@pytest.mark.parametrize(
    "modes", [{}, {"unsigned_activations": True}, {"token_factors": True}, {"wide": True, "least": -127}]
)
def test_random_products_use_most_codes(modes):
    rows_low = 0 if modes else 9
    product = IntegerGemm.random(
        np.random.default_rng(0), tokens=300, inputs=64, rows_high=9, rows_low=rows_low, **modes
    )
    assert len(np.unique(product.outputs())) > 200
    assert np.abs(product.outputs().astype(int)).max() >= (32767 if product.wide else 127)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activations": np.zeros((0, 3), dtype=np.int8)}, "needs tokens, inputs and rows, not 0 x 3 x 2"),
        ({"activations": np.zeros((2, 4), dtype=np.int8)}, "weights have 3 inputs, activations 4"),
        ({"activations": np.zeros((2, 3))}, "activations must be a matrix of int8, not float64"),
        ({"rows_high": 3}, "rows_high must be from 0 to 2, not 3"),
        ({"rows_high": 0}, "4-bit rows hold codes from -7 to 7 only"),
        ({"shift": np.array([0, 17])}, "shift needs 2 values from 1 to 47"),
        ({"mantissa": np.array([2**16, 2**15])}, "mantissa needs 2 values from 32768 to 65535"),
        ({"bias": np.zeros(3, dtype=np.int32)}, "bias needs 2 values"),
        ({"table": np.zeros(255, dtype=np.int8)}, "table needs 256 values"),
        ({"least": 0}, "least must be -128 or -127, not 0"),
        ({"unsigned_activations": True}, "activations must be a matrix of uint8, not int8"),
        (
            {"unsigned_activations": True, "activations": np.zeros((2, 3), dtype=np.uint8)},
            "unsigned activations need all 2 rows at 8 bits, not 1",
        ),
        ({"wide": True, "table": np.zeros(256, dtype=np.int8)}, "a table maps codes of 8 bits"),
        ({"token_factors": (np.full(3, 2**15), np.ones(2))}, "token_factors mantissa needs 2 values"),
        ({"token_factors": (np.full(2, 2**15), np.zeros(2))}, "token_factors shift needs 2 values from 1 to 47"),
    ],
)
def test_bad_operands(product, changes, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(product, **changes)


def test_sums_beyond_32_bits(product):
    with pytest.raises(UsageError, match="more than 32 bits"):
        dataclasses.replace(product, bias=np.array([2**31 - 1, 0], dtype=np.int32)[[1, 0]]).outputs()


@pytest.mark.parametrize("sizes", [(0, 1, 1, 0), (1, 0, 1, 0), (1, 1, 0, 0), (1, 1, -1, 2)])
def test_empty_random_products(sizes):
    tokens, inputs, high, low = sizes
    with pytest.raises(UsageError, match="a product needs tokens, inputs and rows"):
        IntegerGemm.random(np.random.default_rng(0), tokens=tokens, inputs=inputs, rows_high=high, rows_low=low)
