"""What every device file must satisfy. For devices kept elsewhere, set QUASAR_DEVICE_FOLDER to their folder."""

import dataclasses
import os
from pathlib import Path

import pytest

from hwmodel.cost import FpgaCostModel
from hwmodel.device import DEVICE_FOLDER, Device, EnergyConstants, Limits, load_device, load_hardware
from hwmodel.explore import best_accelerator
from hwmodel.measured import MeasuredHost
from hwmodel.measured_cost import MeasuredCostModel
from hwmodel.processor import PRECISION_BYTES, PeakRates, Processor
from hwmodel.processor_cost import RooflineCostModel
from hwmodel.workload import Gemm, Population, VectorOp, Workload

FOLDER = Path(os.environ.get("QUASAR_DEVICE_FOLDER", DEVICE_FOLDER))
DEVICES = {path: load_hardware(path) for path in sorted(FOLDER.glob("*.yaml"))}
BOARDS, PROCESSORS, HOSTS = (
    [path for path, device in DEVICES.items() if isinstance(device, kind)] for kind in (Device, Processor, MeasuredHost)
)


def one_layer():
    return Workload(
        name="one layer",
        gemms=(Gemm(name="fc", kind="fc1", tokens=197, inputs=192, rows_high=192, rows_low=0),),
        vectors=(VectorOp(name="norm", kind="layernorm", tokens=197, width=192),),
        activation_bytes=7 * 197 * 192,
    )


def test_the_folder_holds_devices():
    assert DEVICES, f"no .yaml file in {FOLDER}"


@pytest.mark.parametrize("path", DEVICES, ids=lambda path: path.stem)
def test_the_name_is_that_of_the_file(path):
    assert DEVICES[path].name == path.stem
    assert DEVICES[path].title


@pytest.fixture(params=BOARDS, ids=lambda path: path.stem)
def board(request):
    return request.param, load_device(request.param)


def test_every_figure_has_a_source(board):
    _, device = board
    figures = {f.name for f in dataclasses.fields(Device)}
    figures -= {"name", "title", "part", "memory", "limits", "energy", "sources", "calibration"}
    figures |= {f"limits.{f.name}" for f in dataclasses.fields(Limits)}
    figures |= {f"energy.{f.name}" for f in dataclasses.fields(EnergyConstants)}
    assert {figure for figure, source in device.sources.items() if source.strip()} == figures


def test_energy_is_labelled_an_estimate(board):
    _, device = board
    for figure, source in device.sources.items():
        if figure.startswith("energy."):
            assert "estimate" in source or "measured" in source, figure


def test_default_clock_is_within_reach(board):
    _, device = board
    assert 0 < device.clock_mhz <= device.max_clock_mhz


def test_limits_are_shares(board):
    _, device = board
    assert all(0 < share <= 1 for share in (*dataclasses.astuple(device.limits), device.ddr_efficiency))


def test_figures_are_those_of_an_ultrascale_plus_board(board):
    _, device = board
    assert device.ff == 2 * device.lut  # two flip-flops beside each LUT
    assert device.bram18 % 2 == 0  # two in each block of 36 Kb
    assert 100 <= device.dsp <= 12288
    assert 50 <= device.clock_mhz <= device.max_clock_mhz <= 775  # no DSP of the family is faster
    assert 1 <= device.ddr_gb_per_s <= 1000
    assert device.port_bits in (32, 64, 128, 256, 512)
    assert 1 <= device.hp_ports <= 32


def test_ports_and_memory_are_of_one_order(board):
    _, device = board
    ports_gb_per_s = device.hp_ports * device.port_bits * device.max_clock_mhz / 8000
    assert 1 / 4 <= ports_gb_per_s / device.ddr_gb_per_s <= 8


def test_assumptions_say_so(board):
    _, device = board
    efficiency = device.sources["ddr_efficiency"]
    assert "measured" in efficiency or efficiency.startswith("assumption:")


def test_an_accelerator_fits(board):
    _, device = board
    for activations in ("onchip", "ddr"):
        best = best_accelerator([one_layer()], device, array=(8, 8), activations=activations)
        assert FpgaCostModel(device, best).estimate(one_layer()).violations == ()


@pytest.fixture(params=PROCESSORS, ids=lambda path: path.stem)
def processor(request):
    return DEVICES[request.param]


class TestProcessors:
    def test_every_figure_has_a_source(self, processor):
        figures = {f.name for f in dataclasses.fields(Processor)}
        figures -= {"name", "title", "part", "memory", "precision", "peak_gops", "sources"}
        figures |= {
            f"peak_gops.{f.name}"
            for f in dataclasses.fields(PeakRates)
            if getattr(processor.peak_gops, f.name) is not None
        }
        assert {figure for figure, source in processor.sources.items() if source.strip()} == figures

    def test_assumptions_and_estimates_say_so(self, processor):
        for figure in ("compute_efficiency", "memory_efficiency", "launch_us"):
            source = processor.sources[figure]
            assert "measured" in source or source.startswith("assumption:"), figure
        assert processor.sources["power_w"].startswith(("estimate:", "assumption:", "measured"))

    def test_figures_are_those_of_a_processor(self, processor):
        assert processor.precision in PRECISION_BYTES
        peaks = [processor.peak_gops.at(precision) for precision in PRECISION_BYTES]
        known = [peak for peak in peaks if peak is not None]
        assert min(known) == processor.peak_gops.fp32  # narrow numbers are no slower
        assert 1 <= known[0] <= 1e6
        assert 1 <= processor.memory_gb_per_s <= 1e4
        assert 0 <= processor.launch_us <= 100
        assert 1 <= processor.power_w <= 1500

    def test_a_cost_model_can_be_built(self, processor):
        model = RooflineCostModel(processor)
        estimate = model.estimate(one_layer())
        assert estimate.violations == ()
        assert estimate.latency_ms == model.estimate_many(Population.of(one_layer())).latency_ms[0] > 0
        assert estimate.energy_mj == processor.power_w * estimate.latency_ms


def test_hosts_that_were_measured_estimate_networks():  # there is none among the devices that come with the program
    for path in HOSTS:
        host = DEVICES[path]
        assert MeasuredCostModel(host).estimate(one_layer()).latency_ms > 0
        assert len(host.check) >= 20
