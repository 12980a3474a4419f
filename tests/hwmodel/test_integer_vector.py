"""The integer reference of the vector unit: cases by hand, extremes, and how far it is from float."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.errors import UsageError
from hwmodel.integer_vector import (
    IntegerLayerNorm,
    IntegerResidual,
    IntegerSoftmax,
    LayerNormConstants,
    exponential_table,
    layernorm_constants,
    mean_factor,
    softmax_constants,
)

SIZES = {"rows": st.integers(1, 6), "width": st.integers(1, 70), "seed": st.integers(0, 2**32 - 1)}


def layernorm(x, *, gain=4096, bias=0, shift=12, epsilon=1):
    x = np.atleast_2d(np.asarray(x)).astype(np.int16)
    width = x.shape[1]
    return IntegerLayerNorm(
        x=x,
        constants=LayerNormConstants(
            gain=np.full(width, gain, dtype=np.int16),
            bias=np.full(width, bias, dtype=np.int32),
            shift=shift,
            epsilon=epsilon,
        ),
    )


def softmax(scores, *, table=None, numerator=2**15, exponent=20):
    scores = np.atleast_2d(np.asarray(scores)).astype(np.int8)
    table = exponential_table(0.05) if table is None else table
    return IntegerSoftmax(scores=scores, table=table, numerator=numerator, exponent=exponent)


def layernorm_by_hand(operation):
    """One element after the other, in Python's integers, as the docstring of the module writes it."""
    constants, n, rows = operation.constants, operation.width, []
    factor, r = mean_factor(n)
    for row in operation.x.tolist():
        total = sum(row)
        root = math.isqrt(n * sum(x * x for x in row) - total * total + constants.epsilon)
        z, zn = 26 - root.bit_length(), 11 - n.bit_length()
        g = ((n << zn) << 31) // (root << z)
        w = 27 + zn - z
        assert 2**15 <= g < 2**17
        assert 2 <= w <= 37
        codes = []
        for x, gain, bias in zip(row, constants.gain.tolist(), constants.bias.tolist(), strict=True):
            u = (x << 8) - ((total * factor + (1 << (r - 1))) >> r)
            zeta = (u * g + (1 << (w - 1))) >> w
            assert -(2**19) <= zeta < 2**19, "the hardware keeps 20 bits before the clip"
            zeta = min(max(zeta, -(2**17)), 2**17 - 1)
            code = (zeta * gain + bias + (1 << (constants.shift - 1))) >> constants.shift
            codes.append(min(max(code, -127), 127))
        rows.append(codes)
    return np.array(rows)


def softmax_by_hand(operation):
    outputs, factors = [], []
    for row in operation.scores.tolist():
        codes = [int(operation.table[max(row) - q]) for q in row]
        z = 24 - sum(codes).bit_length()
        g = (operation.numerator << 24) // (sum(codes) << z)
        assert 2**15 <= g < 2**17
        large = g >= 2**16
        factors.append((g >> 1, operation.exponent + 23 - z) if large else (g, operation.exponent + 24 - z))
        outputs.append(codes)
    return np.array(outputs), np.array(factors)


def test_residual_by_hand():
    x = np.array([[1, 32767, -32768, -32768]], dtype=np.int16)
    y = np.array([[2, 1, -1, 32767]], dtype=np.int16)
    assert IntegerResidual(x=x, y=y).outputs().tolist() == [[3, 32767, -32768, -1]]


def test_softmax_of_one_token():
    operation = softmax([5], numerator=2**15, exponent=15)
    assert operation.outputs().tolist() == [[255]]
    # 255 << 16 is below 2^24; 2^39 / (255 << 16) = 32896.5, and 32896 * 2^-23 is 1 / 255 on 16 bits
    mantissa, shift = operation.factors()
    assert (mantissa.tolist(), shift.tolist()) == ([32896], [23])


def test_softmax_of_equal_scores():
    operation = softmax(np.full((3, 197), -128))
    assert (operation.outputs() == 255).all()
    mantissa, shift = operation.factors()
    assert mantissa / 2.0**shift == pytest.approx(2**-5 / (197 * 255), rel=2**-15)


def test_layernorm_of_constant_rows_is_the_bias():
    for value in (-32768, -1, 0, 32767):
        for width in (1, 2, 256, 512):
            # with a power of two the mean is exact, so that nothing is left, however small epsilon is
            assert (layernorm(np.full(width, value), bias=7 << 12).outputs() == 7).all()


def test_layernorm_of_two_values():
    # mean 0, N * deviation 200: zeta is +-4096 within its last place
    assert layernorm([100, -100], gain=4096, shift=18).outputs().tolist() == [[64, -64]]


def test_one_outlier_in_the_widest_row():
    x = np.zeros((2, 1024))
    x[0, 17], x[1, 1023] = 32767, -32768
    # sqrt(1023) = 31.98 deviations
    operation = layernorm(x, gain=4096, shift=22)
    assert operation.outputs()[0, 17] == 128 - 1
    assert operation.outputs()[1, 1023] == -127
    assert (operation.outputs() == layernorm_by_hand(operation)).all()


@pytest.mark.parametrize("value", [0, 1, -1, 32767, -32768])
@pytest.mark.parametrize("width", [1, 3, 1000, 1023, 1024])
def test_rows_of_extremes(width, value):
    rng = np.random.default_rng(0)
    x = np.stack([np.full(width, value), rng.choice([value, -1 - value], width), rng.choice([value, 0], width)])
    for epsilon in (1, 2**40 - 1):
        operation = layernorm(x, gain=-32768, bias=-(2**31), shift=1, epsilon=epsilon)
        assert (operation.outputs() == layernorm_by_hand(operation)).all()


@settings(max_examples=60, deadline=None)
@given(**SIZES)
def test_layernorm_is_what_its_docstring_says(rows, width, seed):
    operation = IntegerLayerNorm.random(np.random.default_rng(seed), rows=rows, width=width)
    assert (operation.outputs() == layernorm_by_hand(operation)).all()


@settings(max_examples=60, deadline=None)
@given(**SIZES)
def test_softmax_is_what_its_docstring_says(rows, width, seed):
    operation = IntegerSoftmax.random(np.random.default_rng(seed), rows=rows, width=width)
    outputs, factors = softmax_by_hand(operation)
    assert (operation.outputs() == outputs).all()
    assert (np.stack(operation.factors(), axis=1) == factors).all()


@given(**SIZES)
def test_residual_stays_within_its_range(rows, width, seed):
    operation = IntegerResidual.random(np.random.default_rng(seed), rows=rows, width=width)
    exact = operation.x.astype(np.int64) + operation.y
    within = (exact >= -32768) & (exact <= 32767)
    assert (operation.outputs()[within] == exact[within]).all()
    assert (np.sign(operation.outputs()[~within]) == np.sign(exact[~within])).all()


@given(st.floats(2.0**-40, 2.0**10))
def test_softmax_constants_are_close(factor):
    numerator, exponent = softmax_constants(factor)
    assert 2**15 <= numerator < 2**16
    assert numerator * 2.0**-exponent == pytest.approx(factor, rel=2**-16)


def test_mean_factor_of_every_width():
    for width in range(1, 1025):
        factor, r = mean_factor(width)
        assert 2**24 <= factor < 2**25
        assert 16 <= r <= 26
        assert abs(Fraction(factor, 2**r) - Fraction(256, width)) <= Fraction(1, 2 ** (r + 1))


def test_exponential_table():
    table = exponential_table(0.02)
    assert table[0] == 255
    assert table[50] == round(255 / math.e)
    assert (np.diff(table.astype(int)) <= 0).all()


def float_layernorm(x, gain, bias, epsilon):
    centred = x - x.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + epsilon) * gain + bias


@pytest.mark.parametrize("width", [64, 192, 768, 1024])
def test_layernorm_against_float(width):
    """About 2 of 1,000 codes differ, by one: zeta has 12 fraction bits, 1/130 of an output code here."""
    rng = np.random.default_rng(width)
    x = rng.normal(rng.normal(0, 300, (500, 1)), rng.uniform(100, 4000, (500, 1)), (500, width))
    x = np.clip(x, -32768, 32767).astype(np.int16)
    gain, bias = rng.normal(1, 0.3, width), rng.normal(0, 0.3, width)
    constants = layernorm_constants(gain, bias, epsilon=1e-6, scale_in=1e-3, scale_out=4 / 127)
    exact = float_layernorm(x * 1e-3, gain, bias, 1e-6) / (4 / 127)
    wrong = IntegerLayerNorm(x=x, constants=constants).outputs() - np.clip(np.rint(exact), -127, 127)
    assert np.abs(wrong).max() <= 1
    assert (wrong != 0).mean() < 0.003


def test_epsilon_of_layernorm_counts():
    """Where the deviation is as small as the root of epsilon, leaving it out would give 41 % more."""
    x = np.tile(np.array([[1, -1]], dtype=np.int16), (1, 96))
    constants = layernorm_constants(np.ones(192), np.zeros(192), epsilon=1e-6, scale_in=1e-3, scale_out=0.01)
    assert constants.epsilon == 192**2
    assert np.abs(IntegerLayerNorm(x=x, constants=constants).outputs()).tolist() == [[71] * 192]


@pytest.mark.parametrize(("tokens", "error"), [(17, 0.01), (65, 0.015), (197, 0.025)])
def test_attention_against_float(tokens, error):
    """Relative error of the product with the values, against softmax in float of the same scores."""
    rng = np.random.default_rng(tokens)
    scores = np.clip(rng.normal(0, 30, (1000, tokens)), -128, 127).astype(np.int8)
    values = rng.integers(-128, 128, (tokens, 64))
    numerator, exponent = softmax_constants(2.0)
    operation = softmax(scores, table=exponential_table(0.05), numerator=numerator, exponent=exponent)
    mantissa, shift = operation.factors()
    products = (operation.outputs().astype(np.int64) @ values) * mantissa[:, None] / 2.0 ** shift[:, None]
    weights = np.exp(scores * 0.05)
    exact = 2 * (weights / weights.sum(axis=1, keepdims=True)) @ values
    assert np.linalg.norm(products - exact) < error * np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: softmax([0], table=np.zeros(256, dtype=np.uint8)), "table must begin with at least 1"),
        (lambda: softmax([0], table=np.zeros(255, dtype=np.uint8)), "table needs 256 values of uint8"),
        (lambda: softmax([0], numerator=2**16), "numerator must be from 32768 to 65535, not 65536"),
        (lambda: softmax([0], exponent=128), "exponent must be from 0 to 127, not 128"),
        (lambda: softmax([0], exponent=40).factors(), "factors run from 48 to 48 with exponent 40, not within 1 to 47"),
        (lambda: softmax(np.zeros((1, 0))), "scores needs rows and a width, not 1 x 0"),
        (lambda: softmax(np.zeros((1, 65794))), "rows of 65794 scores can exceed a sum"),
        (lambda: layernorm(np.zeros((1, 1025))), "width of a row must be from 1 to 1024, not 1025"),
        (lambda: layernorm([0], shift=0), "shift must be from 1 to 31, not 0"),
        (lambda: layernorm([0], epsilon=0), "epsilon must be from 1 to"),
        (lambda: exponential_table(0.0), "the scale of scores must be a positive number"),
        (lambda: softmax_constants(float("inf")), "the factor of softmax must be a positive number"),
        (lambda: softmax_constants(1e30), "the exponent of softmax's factor must be from 0 to 127"),
        (lambda: IntegerResidual.random(np.random.default_rng(0), rows=0, width=1), "needs rows and a width"),
        (lambda: IntegerLayerNorm.random(np.random.default_rng(0), rows=1, width=1025), "1 to 1024, not 1025"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_constants_that_do_not_fit():
    ones = np.ones(4)
    with pytest.raises(UsageError, match="gain or bias of LayerNorm is too large for an output scale of 1e-08"):
        layernorm_constants(ones, ones, epsilon=1e-6, scale_in=1, scale_out=1e-8)
    with pytest.raises(UsageError, match="must be finite"):
        layernorm_constants(ones * np.nan, ones, epsilon=1e-6, scale_in=1, scale_out=1)
    with pytest.raises(UsageError, match="epsilon must be from 1 to"):
        layernorm_constants(ones, ones, epsilon=1, scale_in=1e-7, scale_out=1)
    with pytest.raises(UsageError, match="gain has 4 channels, bias 3"):
        LayerNormConstants(gain=ones.astype(np.int16), bias=ones[:3].astype(np.int32), shift=1, epsilon=1)


def test_operands_that_do_not_match():
    x = np.zeros((2, 3), dtype=np.int16)
    with pytest.raises(UsageError, match=r"x has the shape \(2, 3\), y \(2, 2\)"):
        IntegerResidual(x=x, y=x[:, :2])
    with pytest.raises(UsageError, match="y must be a matrix of int16, not int64"):
        IntegerResidual(x=x, y=x.astype(np.int64))
    constants = layernorm([0, 0]).constants
    with pytest.raises(UsageError, match="rows are 3 wide, gain and bias 2"):
        IntegerLayerNorm(x=x, constants=constants)
