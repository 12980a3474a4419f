import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from hwmodel.roofline import roofline
from hwmodel.workload import VectorOp


def of(workload, accelerator, device):
    return roofline(workload, FpgaCostModel(device, accelerator).estimate(workload), accelerator, device)


def test_ceilings_by_hand(config, zcu102, workload, gemm):
    # 8 DSPs at 150 MHz: 2 rows of 8 bits or 3 of 4 bits, an operation is a multiply or an add
    chart = of(workload(gemm(10, 8, 4, 4)), config(), zcu102)
    assert chart.array_gops == {8: pytest.approx(2 * 2 * 8 * 0.15), 4: pytest.approx(2 * 3 * 8 * 0.15)}
    # 64 and 32 bits per cycle
    assert [(s.name, s.gb_per_s, s.from_memory) for s in chart.streams] == [
        ("weights", pytest.approx(1.2), True),
        ("output", pytest.approx(0.6), False),
    ]
    # four ports of 128 bits at 150 MHz carry 9.6 GB/s, less than the 14.4 that the memory sustains
    assert (chart.memory_gb_per_s, chart.memory_limit) == (pytest.approx(9.6), "4 ports of 128 bits")
    fast = of(workload(gemm(10, 8, 4)), config(clock_mhz=300), zcu102)
    assert (fast.memory_gb_per_s, fast.memory_limit) == (pytest.approx(14.4), "DDR4-2400, sustained")
    assert set(fast.array_gops) == {8}  # no rows of 4 bits, no ceiling for them


def test_points_by_hand(config, zcu102, workload, gemm):
    network = workload(
        gemm(10, 8, 4, 6, name="fc", count=3), vectors=[VectorOp(name="norm", kind="layernorm", tokens=10, width=8)]
    )
    accelerator = config(activations="ddr")
    cost = FpgaCostModel(zcu102, accelerator).estimate(network)
    (point,) = roofline(network, cost, accelerator, zcu102).points
    operations = 2 * 10 * 8 * 10
    # rows of a tile: 2 * 2 of 8 bits and 3 * 2 of 4 bits, so one tile of each
    assert point.intensity == {
        "weights": pytest.approx(operations / (8 * 4 + 8 * 6 / 2)),
        "activations": pytest.approx(operations / (2 * 10 * 8)),
        "output": pytest.approx(operations / (10 * 10)),
    }
    layer = cost.layers[0]
    assert point.gops == pytest.approx(3 * operations * 0.15 / layer.cycles)
    assert (point.name, point.kind, point.bound) == ("fc", "fc", layer.bound)
    assert point.share == pytest.approx(layer.cycles / cost.cycles)
    assert point.share < 1


def test_a_product_that_waits_for_its_weights_touches_their_roof(config, zcu102, workload, gemm):
    slow = config(weight_stream_bits=8)
    chart = of(workload(gemm(5, 4096, 400)), slow, zcu102)
    (point,) = chart.points
    assert point.bound == "weights"
    assert point.gops == pytest.approx(point.intensity["weights"] * chart.streams[0].gb_per_s, rel=0.01)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 300)] * 3, st.integers(0, 300)),
    array=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    streams=st.tuples(*[st.sampled_from([8, 32, 128, 512])] * 3),
    backend=st.sampled_from(["dual", "atomic"]),
    activations=st.sampled_from(["onchip", "ddr"]),
)
def test_no_product_is_above_a_roof(*, shape, array, streams, backend, activations, config, workload, gemm):
    tokens, inputs, high, low = shape
    accelerator = config(
        array_rows=array[0],
        array_inputs=array[1],
        backend=backend,
        weight_stream_bits=streams[0],
        activation_stream_bits=streams[1],
        output_stream_bits=streams[2],
        activations=activations,
        max_tokens=300,
        activation_buffer_bytes=2**20,
    )
    chart = of(workload(gemm(tokens, inputs, high, low)), accelerator, load_device("zcu102"))
    (point,) = chart.points
    assert point.gops <= max(chart.array_gops.values()) * (1 + 1e-9)
    for stream in chart.streams:
        assert point.gops <= point.intensity[stream.name] * stream.gb_per_s * (1 + 1e-9)
