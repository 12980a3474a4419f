import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from hwmodel.errors import InfeasibleError, UsageError
from hwmodel.explore import best_accelerator, explore


def test_deit_tiny_on_the_zcu102_is_plausible(deit, zcu102):
    network = deit()
    assert network.macs == pytest.approx(1.25e9, rel=0.01)
    best = explore([network], zcu102, limit=1)[0]
    # Quasar-ViT reports 101.5 to 251.6 FPS for networks of this class on this board and clock.
    assert 100 < 1000 / best.latency_ms < 400
    # No design can beat two 8-bit products per usable DSP and cycle.
    assert best.cycles[0] > network.macs / (2 * 2016)


@pytest.mark.parametrize("activations", ["onchip", "ddr"])
def test_points_are_feasible_and_agree_with_the_cost_model(deit, zcu102, activations):
    networks = [deit(depth=2, high=0.5), deit(depth=3, width=384, heads=6)]
    points = explore(networks, zcu102, activations=activations, limit=12)
    assert len(points) == 12
    for point in points:
        model = FpgaCostModel(zcu102, point.accelerator)
        estimates = [model.estimate(network) for network in networks]
        assert point.cycles == tuple(estimate.cycles for estimate in estimates)
        assert point.latency_ms == pytest.approx(sum(estimate.latency_ms for estimate in estimates))
        assert point.resources == model.resources
        assert all(estimate.violations == () for estimate in estimates)


@settings(max_examples=10, deadline=None)
@given(
    rows=st.integers(1, 32),
    inputs=st.integers(1, 32),
    backend=st.sampled_from(["dual", "atomic"]),
    high=st.floats(0, 1),
)
def test_exploration_agrees_with_the_cost_model(*, deit, zcu102, rows, inputs, backend, high):
    network = deit(depth=1, high=high)
    for point in explore([network], zcu102, array=(rows, inputs), backend=backend, limit=3):
        accelerator = point.accelerator
        assert (accelerator.array_rows, accelerator.array_inputs, accelerator.backend) == (rows, inputs, backend)
        assert point.cycles == (FpgaCostModel(zcu102, accelerator).estimate(network).cycles,)


def test_the_grid_is_ordered_by_latency_then_dsp_then_block_ram(deit, zcu102):
    network = deit(depth=2, high=0.25)
    everything = explore([network], zcu102, limit=10**6)
    best = best_accelerator([network], zcu102)
    assert everything[0].accelerator == best
    keys = [(point.cycles[0], point.resources.dsp, point.resources.bram18) for point in everything]
    assert keys == sorted(keys)
    assert {point.accelerator.backend for point in everything} == {"dual", "atomic"}
    for point in everything[:: len(everything) // 50]:
        assert FpgaCostModel(zcu102, point.accelerator).estimate(network).cycles >= everything[0].cycles[0]


def test_clock_is_the_devices_unless_given(deit, zcu102):
    network = deit(depth=1)
    assert best_accelerator([network], zcu102).clock_mhz == zcu102.clock_mhz
    assert best_accelerator([network], zcu102, clock_mhz=100).clock_mhz == 100


def test_nothing_fits_a_tiny_device(deit, zcu102):
    tiny = dataclasses.replace(zcu102, bram18=100)
    with pytest.raises(InfeasibleError, match=r"no accelerator fits zcu102.* BRAM18 \d+ exceeds 80 \(80 % of 100\)"):
        explore([deit(depth=1)], tiny)


@pytest.mark.parametrize("changes", [{"dsp": 0}, {"bram18": 0}, {"hp_ports": 0}, {"ddr_gb_per_s": 0.0}])
def test_nothing_fits_a_device_without_a_resource(deit, zcu102, changes):
    with pytest.raises(InfeasibleError, match=r"no accelerator fits zcu102; the nearest has .* exceeds 0 "):
        explore([deit(depth=1)], dataclasses.replace(zcu102, **changes))


def test_networks_of_different_bits_share_an_accelerator(deit, zcu102):
    networks = [deit(depth=1), dataclasses.replace(deit(depth=2, high=0.5), high_bits=6, low_bits=3)]
    for point in explore(networks, zcu102, array=(8, 16), activations="ddr", limit=20):
        model = FpgaCostModel(zcu102, point.accelerator)
        assert point.cycles == tuple(model.estimate(network).cycles for network in networks)


def test_an_array_that_does_not_fit_names_every_limit(deit, zcu102):
    with pytest.raises(InfeasibleError, match=r"64 x 64 DSPs \(atomic\) and DSP \d+ exceeds 2016"):
        explore([deit(depth=1)], zcu102, array=(64, 64))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"workloads": []}, "at least one workload"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"clock_mhz": 400}, "clock_mhz 400 exceeds 333, the most that zcu102 supports"),
        ({"backend": "doul"}, "unknown backend 'doul': did you mean 'dual'"),
        ({"activations": "on-chip"}, "unknown activations 'on-chip': did you mean 'onchip'"),
        ({"array": (0, 4)}, "array_rows must be a whole number"),
    ],
)
def test_impossible_arguments(deit, zcu102, arguments, problem):
    with pytest.raises(UsageError, match=problem):
        explore(**{"workloads": [deit(depth=1)], "device": zcu102, **arguments})


def test_streams_of_a_slow_memory_are_narrower_than_its_ports(deit):
    device = load_device("ultra96v2")
    best = best_accelerator([deit(depth=1)], device, activations="ddr")
    widths = (best.weight_stream_bits, best.activation_stream_bits, best.output_stream_bits)
    assert min(widths) < device.port_bits
    assert sum(widths) * device.clock_mhz / 8000 <= device.ddr_gb_per_s * device.ddr_efficiency
