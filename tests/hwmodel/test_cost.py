import dataclasses
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodel.cost import CostModel, FpgaCostModel
from hwmodel.vector_cycles import KINDS
from hwmodel.workload import GemmColumns, Population, VectorColumns, VectorOp


@st.composite
def populations(draw):
    """Random populations; parts may have no layers, and layers may be absent."""
    gemm_counts = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    vector_counts = draw(st.lists(st.integers(0, 2), min_size=len(gemm_counts), max_size=len(gemm_counts)))
    networks, slots = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    g, v = sum(gemm_counts), sum(vector_counts)

    def ints(low, high, columns):
        return rng.integers(low, high, size=(1, columns), dtype=np.int64)

    gemms = GemmColumns(
        names=tuple(f"{{}}.g{i}" for i in range(g)),
        kinds=("fc1",) * g,
        stored=rng.integers(0, 2, (1, g)) > 0,
        tokens=ints(1, 300, g),
        inputs=ints(1, 300, g),
        rows_high=ints(0, 200, g),
        rows_low=ints(0, 200, g),
        count=ints(0, 3, g),
    )
    vectors = VectorColumns(
        names=tuple(f"{{}}.v{i}" for i in range(v)),
        kinds=tuple(KINDS[i] for i in rng.integers(0, 3, v)),
        tokens=ints(1, 300, v),
        width=ints(1, 300, v),
        count=ints(0, 3, v),
    )
    return Population(
        gemms=gemms,
        vectors=vectors,
        gemm_starts=np.cumsum([0, *gemm_counts]),
        vector_starts=np.cumsum([0, *vector_counts]),
        part_activation_bytes=rng.integers(1, 8000, size=len(gemm_counts), dtype=np.int64),
        slots=tuple(f"slot{i}" for i in range(slots)),
        parts=rng.integers(0, len(gemm_counts), (networks, slots)),
        high_bits=draw(st.sampled_from([8, 6])),
        low_bits=draw(st.sampled_from([4, 2])),
        act_bits=draw(st.sampled_from([8, 5])),
    )


@given(
    population=populations(),
    backend=st.sampled_from(["dual", "atomic"]),
    activations=st.sampled_from(["onchip", "ddr"]),
)
def test_one_network_costs_what_it_costs_among_many(config, zcu102, population, backend, activations):
    model = FpgaCostModel(zcu102, config(backend=backend, activations=activations))
    batch = model.estimate_many(population)
    for i in range(len(population)):
        workload = population.workload(i, name="row")
        estimate = model.estimate(workload)
        assert estimate.cycles == batch.cycles[i] == sum(layer.cycles for layer in estimate.layers)
        assert estimate.latency_ms == batch.latency_ms[i]
        assert estimate.energy_mj == batch.energy_mj[i]
        assert (estimate.violations == ()) == batch.fits[i]
        assert sum(layer.macs for layer in estimate.layers) == workload.macs == population.macs()[i]
        assert workload.weight_bytes == population.weight_bytes()[i]
        assert [layer.name for layer in estimate.layers] == [x.name for x in (*workload.gemms, *workload.vectors)]


def test_fpga_model_is_a_cost_model_and_pickles(config, zcu102, deit):
    model: CostModel = FpgaCostModel(zcu102, config())
    assert model.device is zcu102
    again = pickle.loads(pickle.dumps(model))
    assert again.estimate(deit(depth=1)) == model.estimate(deit(depth=1))


def test_layers_and_totals_by_hand(config, zcu102, gemm, workload):
    network = workload(
        gemm(10, 8, 8, name="fc1"),
        gemm(10, 4, 4, name="scores", count=2, stored=False),
        vectors=[VectorOp(name="r", kind="residual", tokens=10, width=8)],
    )
    estimate = FpgaCostModel(zcu102, config()).estimate(network)
    first, second, third = estimate.layers
    # fc1: 63, see the cycle tests; scores: 1 + 6 + 7 + 10 + 9 = 33, twice; residual 10 * 2 + 3
    assert (first.cycles, second.cycles, third.cycles) == (63, 66, 23)
    assert (first.macs, second.macs, third.macs) == (640, 320, 0)
    assert (first.weight_bytes, second.weight_bytes, third.weight_bytes) == (64, 0, 0)
    assert (first.bound, third.bound) == ("compute", "vector")
    assert estimate.cycles == 152
    assert estimate.latency_ms == pytest.approx(152 / 150_000)
    assert estimate.fps == pytest.approx(150e6 / 152)
    document = json.loads(json.dumps(estimate.to_dict()))
    assert document["cycles"] == 152
    assert document["dsp"] == estimate.resources.dsp
    assert document["layers"][0]["name"] == "fc1"


def test_clock_scales_latency_but_not_cycles(config, zcu102, deit):
    slow, fast = (FpgaCostModel(zcu102, config(clock_mhz=c)).estimate(deit()) for c in (100, 200))
    assert slow.cycles == fast.cycles
    assert slow.latency_ms == pytest.approx(2 * fast.latency_ms)


@pytest.mark.parametrize(
    ("changes", "network", "sentence"),
    [
        ({}, {"activation_bytes": 4097}, "activation bytes 4097 exceed 4096 (activation_buffer_bytes)"),
        ({"max_tokens": 9}, {}, "tokens 10 of fc1 exceed 9 (max_tokens)"),
        ({"clock_mhz": 334}, {}, "clock in MHz 334 exceeds 333 (the most that zcu102 supports)"),
    ],
)
def test_violations(*, config, zcu102, gemm, workload, changes, network, sentence):
    model = FpgaCostModel(zcu102, config(**changes))
    assert model.estimate(workload(gemm(10, 8, 8, name="fc1"), **network)).violations == (sentence,)


def test_rows_too_wide_for_layernorm_do_not_fit(config, zcu102, gemm, workload):
    model = FpgaCostModel(zcu102, config())
    for width, fits in ((1024, True), (1025, False)):
        network = workload(
            gemm(10, 8, 8),
            vectors=[
                VectorOp(name="norm1", kind="layernorm", tokens=10, width=width),
                VectorOp(name="add", kind="residual", tokens=10, width=5000),
            ],
        )
        found = model.estimate(network).violations
        assert found == (() if fits else ("width 1025 of norm1 exceeds 1024 (LayerNorm unit)",))
        assert model.estimate_many(Population.of(network)).fits.tolist() == [fits]


def test_large_activations_fit_when_they_live_in_memory(config, zcu102, gemm, workload):
    model = FpgaCostModel(zcu102, config(activations="ddr"))
    assert model.estimate(workload(gemm(10, 8, 8), activation_bytes=10**9)).violations == ()


def test_an_absent_layer_does_not_spoil_the_fit(config, zcu102, gemm, workload):
    population = Population.of(workload(gemm(10, 8, 8), gemm(999, 8, 8)))
    model = FpgaCostModel(zcu102, config())
    assert not model.estimate_many(population).fits[0]
    gemms = dataclasses.replace(population.gemms, count=np.array([[1, 0]]))
    assert model.estimate_many(dataclasses.replace(population, gemms=gemms)).fits[0]
