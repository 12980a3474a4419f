"""The closed form of the RTL engine: cases by hand, and its array form. That it is exact is shown in simulation."""

import numpy as np
import pytest

from hwmodel.accelerator import AcceleratorColumns
from hwmodel.engine import array_latency, engine_cycles
from hwmodel.workload import Population

BASE = {
    "array_rows": 2,
    "array_inputs": 4,
    "weight_stream_bits": 64,
    "activation_stream_bits": 16,
    "output_stream_bits": 32,
}


def cycles_of(config, workload):
    return int(engine_cycles(AcceleratorColumns.one(config), Population.of(workload)).sum())


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


def test_many_accelerators_give_the_integers_of_one(config, gemm, workload):
    configs = [
        config(**BASE | {"backend": backend, "array_inputs": inputs, "activations": activations})
        for backend in ("dual", "atomic")
        for inputs in (4, 8)
        for activations in ("onchip", "ddr")
    ]
    network = workload(gemm(20, 33, 17, 9), gemm(1, 5, 0, 3), gemm(7, 8, 9, 0, count=2))
    together = engine_cycles(AcceleratorColumns.of(configs), Population.of(network))
    alone = [engine_cycles(AcceleratorColumns.one(one), Population.of(network))[0] for one in configs]
    assert np.array_equal(together, np.stack(alone))
