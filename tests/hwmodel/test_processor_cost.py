import dataclasses

import numpy as np
import pytest

from hwmodel.errors import UsageError
from hwmodel.processor import PeakRates, Processor
from hwmodel.processor_cost import RooflineCostModel
from hwmodel.workload import Population, VectorOp

# 50 operations and 5 bytes a nanosecond in fp16, 10 operations in fp32; 2 us a launch
PROCESSOR = Processor(
    name="chip",
    title="a chip",
    part="x",
    memory="DDR",
    precision="fp16",
    peak_gops=PeakRates(fp32=20, fp16=100, int8=200),
    compute_efficiency=0.5,
    memory_gb_per_s=10,
    memory_efficiency=0.5,
    launch_us=2,
    power_w=3,
    sources={},
)


def chip(**changes):
    return RooflineCostModel(dataclasses.replace(PROCESSOR, **changes))


def only_layer(estimate):
    (layer,) = estimate.layers
    return layer


@pytest.mark.parametrize(
    ("shape", "nanoseconds", "bound"),
    [
        # 2 * 500 * 400 * 300 operations are 2,400,000 ns; (500 * (400 + 300)) * 2 + 400 * 300 bytes are 164,000 ns
        ((500, 400, 300), 2_400_000, "arithmetic"),
        # one token: 2 * 400 * 3000 / 50 = 48,000 ns; (400 + 3000) * 2 + 400 * 3000 = 1,206,800 bytes are 241,360 ns
        ((1, 400, 3000), 241_360, "memory"),
        # 2 * 10 * 20 * 30 / 50 = 240 ns; 10 * 50 * 2 + 600 = 1,600 bytes are 320 ns
        ((10, 20, 30), 320, "launch"),
    ],
)
def test_a_product_by_hand(gemm, workload, shape, nanoseconds, bound):
    layer = only_layer(chip().estimate(workload(gemm(*shape))))
    assert layer.latency_us == pytest.approx(nanoseconds / 1000 + 2)
    assert layer.bound == bound
    assert layer.macs == np.prod(shape)
    assert layer.weight_bytes == shape[1] * shape[2]


def test_4_bit_rows_save_bytes_and_no_operations(gemm, workload):
    def time_us(*shape):
        return only_layer(chip(launch_us=0).estimate(workload(gemm(*shape)))).latency_us

    # one token: 300 of 600 rows of 400 inputs at half a byte are 60,000 bytes less, 12,000 ns
    assert time_us(1, 400, 600) - time_us(1, 400, 300, 300) == pytest.approx(12)
    assert time_us(500, 400, 600) == time_us(500, 400, 300, 300)


def test_attention_reads_both_operands_and_launches_all_heads_at_once(gemm, workload):
    product = gemm(100, 8, 100, count=5, stored=False)
    # 5 * (100 * 8 + 100 * 100 + 8 * 100) * 2 = 116,000 bytes are 23,200 ns
    assert only_layer(chip().estimate(workload(product))).latency_us == pytest.approx(25.2)


@pytest.mark.parametrize(
    ("kind", "nanoseconds"),
    # 1,000 elements of 2 bytes: 3 numbers moved are 1,200 ns and 2 are 800 ns; 5 operations are 500 ns
    [("residual", 1200), ("softmax", 800), ("layernorm", 800)],
)
def test_vector_operations_by_hand(workload, kind, nanoseconds):
    vector = VectorOp(name="v", kind=kind, tokens=10, width=50, count=2)
    layer = only_layer(chip().estimate(workload(vectors=[vector])))
    assert layer.latency_us == pytest.approx(nanoseconds / 1000 + 2)


def test_a_slow_unit_computes_longer_than_it_moves(workload):
    vector = VectorOp(name="v", kind="layernorm", tokens=10, width=100)
    slow = chip(peak_gops=PeakRates(fp32=2, fp16=100, int8=None), launch_us=0)
    layer = only_layer(slow.estimate(workload(vectors=[vector])))  # 8,000 operations at one a nanosecond
    assert (layer.latency_us, layer.bound) == (8, "arithmetic")


def test_without_fp16_numbers_take_4_bytes(workload):
    vector = VectorOp(name="v", kind="residual", tokens=10, width=100)
    old = chip(precision="fp32", peak_gops=PeakRates(fp32=20, fp16=None, int8=None), launch_us=0)
    assert only_layer(old.estimate(workload(vectors=[vector]))).latency_us == pytest.approx(2.4)


def test_precision_decides_peak_and_bytes(gemm, workload):
    long, wide = workload(gemm(500, 400, 300)), workload(gemm(1000, 10, 10))

    def time_us(network, precision):
        return only_layer(chip(precision=precision, launch_us=0).estimate(network)).latency_us

    assert time_us(long, "fp32") == 5 * time_us(long, "fp16") == 10 * time_us(long, "int8")
    # 1000 * 20 numbers of 1, 2 or 4 bytes, and 100 bytes of weights
    assert [time_us(wide, p) for p in ("int8", "fp16")] == pytest.approx([20.1 / 5, 40.1 / 5])


def test_energy_is_power_times_latency(deit):
    estimate = chip().estimate(deit())
    assert estimate.energy_mj == 3 * estimate.latency_ms
    assert estimate.fps == 1000 / estimate.latency_ms


def test_shares_of_time_by_what_bounds_it(gemm, workload):
    estimate = chip().estimate(workload(gemm(500, 400, 300), gemm(10, 20, 30), gemm(10, 20, 30)))
    # 2,402,000 ns of arithmetic beside twice 2,320 ns in launches
    assert estimate.time_by_bound() == pytest.approx({"arithmetic": 2402 / 2406.64, "launch": 4.64 / 2406.64})
    assert next(iter(estimate.time_by_bound())) == "arithmetic"


def test_absent_layers_take_no_time(gemm, workload):
    population = Population.of(workload(gemm(10, 20, 30), gemm(10, 20, 30)))
    gemms = dataclasses.replace(population.gemms, count=np.array([[1, 0]]))
    batch = chip().estimate_many(dataclasses.replace(population, gemms=gemms))
    assert batch.latency_ms[0] == pytest.approx(2.32e-3)


def test_an_unknown_vector_operation_is_named(workload):
    with pytest.raises(UsageError, match="vector operation 'fft' is unknown; known: residual, softmax, layernorm"):
        chip().estimate(workload(vectors=[VectorOp(name="v", kind="fft", tokens=1, width=2)]))


def test_wider_deeper_and_longer_networks_are_slower(deit):
    model = chip()
    base = model.estimate(deit()).latency_ms
    assert base < min(
        model.estimate(deit(**more)).latency_ms for more in ({"width": 256}, {"depth": 13}, {"tokens": 300})
    )
