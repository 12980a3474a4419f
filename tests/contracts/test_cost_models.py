"""What every cost model must do, whatever its device: one number for a network, however it is asked for."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_hosts import measured_host

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.cost import CostModel, FpgaCostModel
from hwmodel.device import load_hardware
from hwmodel.measured_cost import MeasuredCostModel
from hwmodel.processor_cost import RooflineCostModel
from hwmodel.workload import GemmColumns, Population, VectorColumns

GEMMS = ("patch_embed", "qkv", "scores", "mix", "proj", "fc1", "fc2", "head")
VECTORS = ("layernorm", "softmax", "residual")

ACCELERATOR = AcceleratorConfig(
    array_rows=2,
    array_inputs=4,
    backend="dual",
    clock_mhz=150,
    weight_stream_bits=64,
    activation_stream_bits=16,
    output_stream_bits=32,
    activations="onchip",
    activation_buffer_bytes=4096,
    max_tokens=256,
    vector_lanes=4,
)
MODELS = {
    "fpga": FpgaCostModel(load_hardware("zcu102"), ACCELERATOR),
    "roofline": RooflineCostModel(load_hardware("jetson_tx2")),
    "measured": MeasuredCostModel(measured_host(largest=150.0, power_w=20.0)),
}


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

    return Population(
        gemms=GemmColumns(
            names=tuple(f"{{}}.g{i}" for i in range(g)),
            kinds=tuple(GEMMS[i] for i in rng.integers(0, len(GEMMS), g)),
            stored=rng.integers(0, 2, (1, g)) > 0,
            tokens=ints(1, 200, g),
            inputs=ints(1, 200, g),
            rows_high=ints(0, 100, g),
            rows_low=ints(0, 100, g),
            count=ints(0, 3, g),
        ),
        vectors=VectorColumns(
            names=tuple(f"{{}}.v{i}" for i in range(v)),
            kinds=tuple(VECTORS[i] for i in rng.integers(0, len(VECTORS), v)),
            tokens=ints(1, 200, v),
            width=ints(1, 200, v),
            count=ints(0, 3, v),
        ),
        gemm_starts=np.cumsum([0, *gemm_counts]),
        vector_starts=np.cumsum([0, *vector_counts]),
        part_activation_bytes=rng.integers(1, 8000, size=len(gemm_counts), dtype=np.int64),
        slots=tuple(f"slot{i}" for i in range(slots)),
        parts=rng.integers(0, len(gemm_counts), (networks, slots)),
    )


@pytest.fixture(params=MODELS)
def model(request) -> CostModel:
    return MODELS[request.param]


@settings(max_examples=40)
@given(population=populations())
@pytest.mark.parametrize("kind", MODELS)
def test_one_network_costs_what_it_costs_among_many(kind, population):
    model = MODELS[kind]
    batch, table = model.estimate_many(population), model.table(population)
    again = table.costs(population.parts[::-1])
    for i in range(len(population)):
        estimate = model.estimate(population.workload(i, name="row"))
        assert estimate.latency_ms == batch.latency_ms[i] == again.latency_ms[len(population) - 1 - i]
        assert estimate.energy_mj == batch.energy_mj[i]
        assert (estimate.violations == ()) == batch.fits[i]
        found = estimate.time_by_bound()
        assert sum(found.values()) == pytest.approx(1) if found else estimate.latency_ms == 0


@settings(max_examples=40)
@given(population=populations())
@pytest.mark.parametrize("kind", MODELS)
def test_costs_add_up_over_parts(kind, population):
    table = MODELS[kind].table(population)
    each = table.costs(np.arange(len(population.part_activation_bytes))[:, None])
    whole = table.costs(population.parts)
    assert whole.latency_ms == pytest.approx(each.latency_ms[population.parts].sum(axis=1))
    assert (whole.fits == each.fits[population.parts].all(axis=1)).all()


def test_life_cycle(model, deit_like):
    assert model.device.name
    assert model.device.title
    assert all(design.table(Population.of(deit_like)) for design in model.designs)
    again = pickle.loads(pickle.dumps(model))
    assert again.estimate(deit_like) == model.estimate(deit_like)
    accelerator = model.accelerator_for(deit_like)
    assert (accelerator is not None) == isinstance(model, FpgaCostModel)


def test_estimates_are_plain_data(model, deit_like):
    document = json.loads(json.dumps(model.estimate(deit_like).to_dict()))
    assert document["fps"] == pytest.approx(1000 / document["latency_ms"])
    assert [layer["name"] for layer in document["layers"]] == ["0.qkv", "0.scores", "0.norm"]
    assert ("cycles" in document) == ("dsp" in document) == isinstance(model, FpgaCostModel)


def test_no_networks_have_no_costs(model, deit_like):
    batch = model.table(Population.of(deit_like)).costs(np.zeros((0, 1), dtype=np.int64))
    assert (batch.latency_ms.shape, batch.energy_mj.shape, batch.fits.shape) == ((0,), (0,), (0,))


@pytest.fixture
def deit_like():
    population = Population(
        gemms=GemmColumns(
            names=("{}.qkv", "{}.scores"),
            kinds=("qkv", "scores"),
            stored=np.array([[True, False]]),
            tokens=np.array([[17, 17]]),
            inputs=np.array([[64, 16]]),
            rows_high=np.array([[96, 17]]),
            rows_low=np.array([[96, 0]]),
            count=np.array([[1, 4]]),
        ),
        vectors=VectorColumns(
            names=("{}.norm",),
            kinds=("layernorm",),
            tokens=np.array([[17]]),
            width=np.array([[64]]),
            count=np.array([[1]]),
        ),
        gemm_starts=np.array([0, 2]),
        vector_starts=np.array([0, 1]),
        part_activation_bytes=np.array([1000]),
        slots=("0",),
        parts=np.zeros((1, 1), dtype=np.int64),
    )
    return population.workload(0, name="part of a DeiT")
