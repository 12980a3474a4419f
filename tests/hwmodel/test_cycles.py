import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodel.accelerator import AcceleratorColumns
from hwmodel.cycles import gemm_bounds, gemm_cycles, vector_cycles
from hwmodel.errors import UsageError
from hwmodel.workload import Population, VectorOp

sizes = st.integers(1, 300)
rows = st.integers(0, 120)
# From 5 tokens on: below that the pipeline adds 5 cycles, so 5 tokens cost less than 4.
long_streams = st.integers(5, 300)
backends = st.sampled_from(["dual", "atomic"])
widths = st.sampled_from([8, 16, 64, 512])


def cycles_of(config, workload):
    return int(gemm_cycles(AcceleratorColumns.one(config), Population.of(workload)).sum())


def by_schedule(config, gemm):
    """The cycles of one product by walking through its tiles: an oracle for the closed form."""
    packing = {"dual": {8: 2, 4: 3}, "atomic": {8: 1, 4: 2}}[config.backend]
    stream = gemm.tokens + 5 if gemm.tokens < 5 else gemm.tokens
    tiles = []
    for bits, count in ((8, gemm.rows_high), (4, gemm.rows_low)):
        held = packing[bits] * config.array_rows
        load = -(-bits * held * config.array_inputs // config.weight_stream_bits)
        if config.activations == "ddr":
            load = max(load, -(-8 * gemm.tokens * config.array_inputs // config.activation_stream_bits))
        drain = -(-8 * held * gemm.tokens // config.output_stream_bits)
        tiles += [(load, drain)] * -(-count // held)
    start, end, drained = 0, 0, 0
    array_free = 0
    for load, drain in tiles:
        for _ in range(-(-gemm.inputs // config.array_inputs)):
            # The shadow registers are free again once the previous tile has begun.
            start = max(start + load, array_free)
            array_free = start + stream
        # The accumulators of this tile may be handed over only when the other half has drained.
        start = max(start, drained - gemm.tokens)
        array_free = start + stream
        end = start + gemm.tokens
        drained = end + drain + 4
    return end + drain + 7 if tiles else 0


@pytest.mark.parametrize(
    ("changes", "shape", "expected"),
    [
        # 2 row tiles x 2 k tiles, load 2, stream 10, drain 10: 2 + 10 + 10, then 20, then 10 + 7
        ({}, (10, 8, 8, 0), 59),
        # 1 high tile, 2 low ones, 1 k tile, bound by drains of 10 and 15: 2 + 10, 10 + 4, 15 + 4, then 15 + 7
        ({}, (10, 4, 4, 7), 67),
        # low tiles alone: 2 + 10, 15 + 4, 15 + 7
        ({}, (10, 4, 0, 7), 53),
        # one token, narrow weight stream: load 16 governs; 16 + 16 + 1, then 32, then 1 + 7
        ({"weight_stream_bits": 8}, (1, 8, 8, 0), 73),
        # activations from memory: 8*10*4/16 = 20 cycles a tile; 20 + 20 + 10, then 10 + 7
        ({"activations": "ddr"}, (10, 8, 4, 0), 67),
        # atomic holds one 8-bit row a DSP: 2 row tiles; 1 + 10 + 10, then 20, then 5 + 7
        ({"backend": "atomic"}, (10, 8, 4, 0), 53),
        # nothing to do
        ({}, (10, 8, 0, 0), 0),
    ],
)
def test_hand_computed_products(*, config, gemm, workload, changes, shape, expected):
    assert cycles_of(config(**changes), workload(gemm(*shape))) == expected
    assert by_schedule(config(**changes), gemm(*shape)) == expected
    assert cycles_of(config(**changes), workload(gemm(*shape, count=3))) == 3 * expected


@given(
    shape=st.tuples(sizes, sizes, rows, rows),
    array=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    backend=backends,
    streams=st.tuples(widths, widths, widths),
    activations=st.sampled_from(["onchip", "ddr"]),
)
def test_closed_form_is_the_schedule(*, config, gemm, workload, shape, array, backend, streams, activations):
    accelerator = config(
        array_rows=array[0],
        array_inputs=array[1],
        backend=backend,
        weight_stream_bits=streams[0],
        activation_stream_bits=streams[1],
        output_stream_bits=streams[2],
        activations=activations,
        activation_buffer_bytes=10**6,
    )
    assert cycles_of(accelerator, workload(gemm(*shape))) == by_schedule(accelerator, gemm(*shape))


@given(tokens=long_streams, inputs=sizes, high=rows, low=rows, more=st.integers(1, 60), backend=backends, po=widths)
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


@given(tokens=sizes, inputs=sizes, tiles=st.integers(1, 9), pw=widths, po=widths)
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
        VectorOp(name="n", kind="layernorm", tokens=10, width=9),  # 10 * (3 * ceil(9/4) + 8)
        VectorOp(name="s", kind="softmax", tokens=10, width=8, count=3),  # 3 * 10 * (3 * 2 + 8)
        VectorOp(name="r", kind="residual", tokens=10, width=8),  # 10 * 2
    ]
    population = Population.of(workload(vectors=vectors))
    columns = AcceleratorColumns.one(config())
    assert vector_cycles(columns, population).tolist() == [[170, 420, 20]]
    odd = workload(vectors=[dataclasses.replace(vectors[0], kind="conv")])
    with pytest.raises(UsageError, match="vector operation 'conv' is unknown; known: layernorm, softmax"):
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
    assert gemm_bounds(columns, Population.of(workload(gemm(*shape)))).tolist() == [[bound]]
