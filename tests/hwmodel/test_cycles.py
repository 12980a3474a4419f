"""The closed form by hand, and its properties. That it is exact about the RTL is shown in simulation."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodel.accelerator import AcceleratorColumns
from hwmodel.cycles import BOUNDS, GemmTerms, array_latency, gemm_cycles, vector_cycles
from hwmodel.errors import UsageError
from hwmodel.workload import Population, VectorOp

BASE = {
    "array_rows": 2,
    "array_inputs": 4,
    "weight_stream_bits": 64,
    "activation_stream_bits": 16,
    "output_stream_bits": 32,
}

sizes = st.integers(1, 300)
rows = st.integers(0, 120)
backends = st.sampled_from(["dual", "atomic"])
widths = st.sampled_from([8, 16, 64, 512])


def cycles_of(config, workload):
    return int(gemm_cycles(AcceleratorColumns.one(config), Population.of(workload)).sum())


@pytest.mark.parametrize(
    ("changes", "shape", "expected"),
    [
        # parameters 1 group of 4 beats, weights 2 beats, drain 10, latency 7:
        # 1 + 6 + 10, then 2 tiles: 10 + 10 or 17, then 7 + 10 + 9
        ({}, (10, 8, 8, 0), 17 + 20 + 26),
        # low tiles of 6 rows drain in 2 groups: 8 beats of parameters, 2 of weights; then 17 + 20 + 9
        ({}, (10, 4, 0, 6), 1 + 10 + 27 + 9),
        # high, then 2 low tiles: 1 + 6; max(10, 7 + 10); max(10, 7 + 20); 7 + 20 + 9
        ({}, (10, 4, 4, 12), 7 + 17 + 27 + 36),
        # one token: steps of 2 (weights need 2 beats too), then 7 + 1 + 9
        ({}, (1, 8, 4, 0), 1 + 6 + 2 + 17),
        # one token, and a weight stream as wide as a tile: only the pace of the sums is left
        ({"weight_stream_bits": 512}, (1, 12, 4, 0), 1 + 2 + 2 * 2 + 17),
        # streamed activations: 10 * 32 / 16 = 20 cycles a tile
        ({"activations": "ddr"}, (10, 8, 4, 0), 1 + 20 + 20 + 26),
        # atomic: rows 2 and 4 to a tile, 1 group each, latency 9; two high tiles, weights 1 beat
        ({"backend": "atomic"}, (10, 8, 4, 0), 1 + 5 + 10 + 20 + 9 + 10 + 9),
        ({}, (10, 8, 0, 0), 0),
    ],
)
def test_hand_computed_products(*, config, gemm, workload, changes, shape, expected):
    assert cycles_of(config(**BASE | changes), workload(gemm(*shape))) == expected
    assert cycles_of(config(**BASE | changes), workload(gemm(*shape, count=3))) == 3 * expected


@pytest.mark.parametrize(("inputs", "levels"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (16, 4), (17, 5), (4096, 12)])
def test_latency_of_the_array(config, inputs, levels):
    for backend, expected in (("dual", 5 + levels), ("atomic", 5 + inputs)):
        accelerator = config(array_inputs=inputs, backend=backend, activation_buffer_bytes=10**6)
        assert array_latency(AcceleratorColumns.one(accelerator)) == expected


@given(tokens=sizes, inputs=sizes, high=rows, low=rows, more=st.integers(1, 60), backend=backends, po=widths)
def test_more_work_is_never_faster(*, config, gemm, workload, tokens, inputs, high, low, more, backend, po):
    accelerator = config(backend=backend, output_stream_bits=po)
    base = cycles_of(accelerator, workload(gemm(tokens, inputs, high, low)))
    for larger in (
        (tokens + more, inputs, high, low),
        (tokens, inputs + more, high, low),
        (tokens, inputs, high + more, low),
        (tokens, inputs, high, low + more),
    ):
        assert cycles_of(accelerator, workload(gemm(*larger))) >= base


# An output stream that takes a whole row tile at once; with a narrower one, tiles of 3 rows can drain longer.
@given(tokens=sizes, inputs=sizes, tiles=st.integers(1, 9), pw=widths, po=st.sampled_from([64, 512]))
def test_aligned_low_rows_are_never_slower(*, config, gemm, workload, tokens, inputs, tiles, pw, po):
    accelerator = config(weight_stream_bits=pw, output_stream_bits=po)
    aligned = 6 * accelerator.array_rows * tiles
    low = cycles_of(accelerator, workload(gemm(tokens, inputs, 0, aligned)))
    assert low <= cycles_of(accelerator, workload(gemm(tokens, inputs, aligned, 0)))


def test_other_bits_use_the_lane_that_holds_them(config, gemm, workload):
    accelerator = config()
    eight = cycles_of(accelerator, workload(gemm(50, 64, 24, 0)))
    # 6-bit rows pack like 8-bit ones; only the weight stream shrinks, and it is hidden here: 6*16/64 = 2 = 8*16/64
    assert cycles_of(accelerator, workload(gemm(50, 64, 24, 0), high_bits=6)) == eight
    assert cycles_of(accelerator, workload(gemm(50, 64, 24, 0), high_bits=3)) < eight
    with pytest.raises(UsageError, match="weights of 9 bits"):
        cycles_of(accelerator, workload(gemm(50, 64, 24, 0), high_bits=9))
    with pytest.raises(UsageError, match="activations of 16 bits"):
        cycles_of(accelerator, workload(gemm(50, 64, 24, 0), act_bits=16))


def test_many_accelerators_give_what_each_gives_alone(config, deit):
    configs = [
        config(),
        config(backend="atomic", array_rows=7),
        config(array_inputs=24, weight_stream_bits=512),
    ]
    population = Population.of(deit(depth=2, high=0.5))
    many = AcceleratorColumns.of(configs)
    for c, accelerator in enumerate(configs):
        one = AcceleratorColumns.one(accelerator)
        np.testing.assert_array_equal(gemm_cycles(many, population)[c], gemm_cycles(one, population)[0])
        np.testing.assert_array_equal(vector_cycles(many, population)[c], vector_cycles(one, population)[0])


def test_vector_operations_by_hand(config, workload):
    vectors = [
        VectorOp(name="n", kind="layernorm", tokens=10, width=9),  # B 3, H ceil(192/64) 3: max(70, 11) + 9 * 3 + 7
        VectorOp(name="s", kind="softmax", tokens=10, width=8, count=3),  # 3 * (11 * 2 + 29 + 2 * 2)
        VectorOp(name="r", kind="residual", tokens=10, width=8),  # 10 * 2 + 3
    ]
    population = Population.of(workload(vectors=vectors))
    columns = AcceleratorColumns.one(config())
    assert vector_cycles(columns, population).tolist() == [[104, 165, 23]]
    odd = workload(vectors=[dataclasses.replace(vectors[0], kind="conv")])
    with pytest.raises(UsageError, match="vector operation 'conv' is unknown; known: residual, softmax"):
        vector_cycles(columns, Population.of(odd))


@pytest.mark.parametrize(
    ("changes", "shape", "bound"),
    [
        ({}, (100, 64, 8, 0), "compute"),
        ({"weight_stream_bits": 8}, (2, 64, 8, 0), "weights"),
        ({"activations": "ddr"}, (100, 64, 8, 0), "activations"),
        ({"output_stream_bits": 8}, (100, 4, 8, 0), "output"),
    ],
)
def test_bounds(*, config, gemm, workload, changes, shape, bound):
    columns = AcceleratorColumns.one(config(**changes))
    [index] = GemmTerms(columns, Population.of(workload(gemm(*shape)))).bounds()
    assert BOUNDS[index] == bound
