import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.integer import IntegerGemm
from hwmodel.parameter_streams import ParameterStreams, StoredRows, norm_stream, read_norm_stream


def stored_rows(rng, *, inputs, rows_high, rows_low):
    gemm = IntegerGemm.random(rng, tokens=1, inputs=inputs, rows_high=rows_high, rows_low=rows_low)
    return StoredRows(
        weights=gemm.weights, rows_high=rows_high, bias=gemm.bias, mantissa=gemm.mantissa, shift=gemm.shift
    )


def test_a_stream_by_hand():
    """Two tiles, of one row of 8 bits and of two of 4 bits; two k tiles of two inputs, the last input beyond K = 3."""
    order = ParameterStreams(tile_rows_high=1, tile_rows_low=2, tile_inputs=2, lanes=1, beat_bytes=4)
    stored = StoredRows(
        weights=np.array([[1, -2, 3], [4, 5, -6], [-7, 0, 7]], dtype=np.int8),
        rows_high=1,
        bias=np.array([-1, 256, 2], dtype=np.int32),
        mantissa=np.array([0x8001, 0x8002, 0x8003]),
        shift=np.array([1, 2, 47]),
    )
    expected = (
        "ffffffff 0180 01 00"  # bias, mantissa, shift, and zeros up to a whole beat
        "01fe0000 03000000"
        "00010000 0280 02 00  02000000 0380 2f 00"
        "94050000 7a000000"  # input 0 of rows 1 and 2 is 4 and -7, so 0x94
    )
    assert order.rows(stored) == bytes.fromhex(expected)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**16),
    st.tuples(st.integers(1, 40), st.integers(0, 30), st.integers(0, 30)).filter(lambda t: t[1] + t[2]),
    st.builds(
        ParameterStreams,
        tile_rows_high=st.integers(1, 9),
        tile_rows_low=st.integers(1, 9),
        tile_inputs=st.integers(1, 9),
        lanes=st.integers(1, 9),
        beat_bytes=st.integers(1, 9),
    ),
)
def test_what_is_read_is_what_was_written(seed, shape, order):
    inputs, rows_high, rows_low = shape
    stored = stored_rows(np.random.default_rng(seed), inputs=inputs, rows_high=rows_high, rows_low=rows_low)
    stream = order.rows(stored)
    assert len(stream) % order.beat_bytes == 0
    found = order.read_rows(stream, rows_high=rows_high, rows_low=rows_low, inputs=inputs)
    for name in ("weights", "bias", "mantissa", "shift"):
        assert getattr(found, name).dtype == getattr(stored, name).dtype
        np.testing.assert_array_equal(getattr(found, name), getattr(stored, name))
    assert found.rows_high == rows_high
    for wrong in (stream[:-1], stream + b"\0"):
        with pytest.raises(ValueError, match=r"reshape|instead of"):
            order.read_rows(wrong, rows_high=rows_high, rows_low=rows_low, inputs=inputs)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.integers(1, 9), st.integers(1, 20))
def test_parameters_of_layernorm_come_back(width, lanes, beat_bytes):
    rng = np.random.default_rng(width)
    gain, bias = rng.integers(-(2**15), 2**15, width, dtype=np.int16), rng.integers(-9, 9, width, dtype=np.int32)
    stream = norm_stream(gain, bias, lanes=lanes, beat_bytes=beat_bytes)
    found = read_norm_stream(stream, width=width, lanes=lanes, beat_bytes=beat_bytes)
    np.testing.assert_array_equal(found, (gain, bias))
    with pytest.raises(ValueError, match=r"reshape|instead of"):
        read_norm_stream(stream[:-1], width=width, lanes=lanes, beat_bytes=beat_bytes)


def test_channels_of_layernorm_by_hand():
    stream = norm_stream(np.array([1, -2, 3], np.int16), np.array([4, 5, -6], np.int32), lanes=2, beat_bytes=8)
    assert stream == bytes.fromhex("0100 04000000 feff 05000000 00000000 0300 faffffff 000000000000 00000000")
