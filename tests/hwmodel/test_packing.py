"""The packed multiplications of the DSPs, in the integer arithmetic that the RTL uses, over all operands."""

import numpy as np
import pytest

from hwmodel.simulate import LONGEST_UNSIGNED_CASCADE

SIGNED = np.arange(-128, 128)
ACTIVATIONS = np.arange(-128, 256)  # signed or unsigned: the port has 9 bits
CODES = np.arange(-128, 128)
LOW_CODES = np.arange(-7, 8)


def field(product, low, width):
    """A signed field of `product`: its bits, plus the bit below, which gives back what a negative sum below took."""
    carry = (product >> (low - 1)) & 1 if low else 0
    value = ((product >> low) + carry) & ((1 << width) - 1)
    return value - ((value >> (width - 1)) << width)


def grids(*axes):
    return np.meshgrid(*axes, indexing="ij", sparse=True)


def test_two_8bit_codes_share_an_activation():
    a, w0 = grids(ACTIVATIONS, CODES)
    for w1 in CODES:
        packed = (w1 << 18) + w0
        assert np.abs(packed).max() < 2**26
        product = packed * a
        assert np.array_equal(field(product, 0, 18), w0 * a)
        assert np.array_equal(field(product, 18, 18), np.broadcast_to(w1 * a, product.shape))


def test_three_4bit_codes_share_an_activation():
    a, w0, w1, w2 = grids(SIGNED, LOW_CODES, LOW_CODES, LOW_CODES)
    packed = (w2 << 22) + (w1 << 11) + w0
    assert np.abs(packed).max() < 2**26
    product = packed * a
    for low, code in ((0, w0), (11, w1), (22, w2)):
        assert np.array_equal(field(product, low, 11), np.broadcast_to(code * a, product.shape))


def test_a_4bit_code_of_minus_8_does_not_fit_three_to_a_dsp():
    assert field(-8 * -128, 0, 11) == -1024


def test_unsigned_activations_do_not_fit_three_to_a_dsp():
    assert field(7 * 147, 0, 11) != 7 * 147
    assert field(7 * 146, 0, 11) == 7 * 146


def test_two_atoms_share_an_activation():
    a, u0, u1 = grids(ACTIVATIONS, np.arange(-8, 16), np.arange(-8, 8))
    packed = (u1 << 22) + u0
    assert np.abs(packed).max() < 2**26
    product = packed * a
    assert np.array_equal(field(product, 0, 22), np.broadcast_to(u0 * a, product.shape))
    assert np.array_equal(field(product, 22, 22), np.broadcast_to(u1 * a, product.shape))


def test_an_8bit_code_is_two_atoms():
    a, w = grids(ACTIVATIONS, CODES)
    lower, upper = w & 15, w >> 4
    assert upper.min() >= -8
    assert upper.max() <= 7
    assert np.array_equal((upper * a << 4) + lower * a, w * a)


@pytest.mark.parametrize(
    ("lower", "activation", "count"),
    # the atoms and activations of largest product, and the most of them that a field of 22 bits holds
    [(15, -128, 1092), (7, -128, 2340), (-7, -128, 2340), (15, 127, 1100), (15, 255, 548)],
)
@pytest.mark.parametrize("upper", [-8, 7])
def test_a_cascade_holds_so_many_atoms(lower, activation, count, upper):
    product = ((upper << 22) + lower) * activation
    assert abs(count * product) < 2**47
    assert field(count * product, 0, 22) == count * lower * activation
    assert field((count + 1) * product, 0, 22) != (count + 1) * lower * activation


def test_the_upper_atoms_of_unsigned_activations_leave_room():
    for lower, upper in ((15, -8), (0, 7), (15, 7), (0, -8)):
        total = LONGEST_UNSIGNED_CASCADE * ((upper << 22) + lower) * 255
        assert abs(total) < 2**47
        assert field(total, 22, 22) == LONGEST_UNSIGNED_CASCADE * upper * 255


def test_a_cascade_of_the_largest_simulated_array_holds_random_atoms():
    rng = np.random.default_rng(0)
    a = rng.integers(-128, 128, (200, 1024))
    u0, u1 = rng.integers(0, 16, a.shape), rng.integers(-8, 8, a.shape)
    total = (((u1 << 22) + u0) * a).sum(axis=1)
    assert np.array_equal(field(total, 0, 22), (u0 * a).sum(axis=1))
    assert np.array_equal(field(total, 22, 22), (u1 * a).sum(axis=1))
