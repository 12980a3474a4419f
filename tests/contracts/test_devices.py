"""What every board file must satisfy. For boards kept elsewhere, set QUASAR_DEVICE_FOLDER to their folder."""

import dataclasses
import os
from pathlib import Path

import pytest

from hwmodel.cost import FpgaCostModel
from hwmodel.device import DEVICE_FOLDER, Device, EnergyConstants, Limits, load_device
from hwmodel.explore import best_accelerator
from hwmodel.workload import Gemm, Workload

FOLDER = Path(os.environ.get("QUASAR_DEVICE_FOLDER", DEVICE_FOLDER))
FILES = sorted(FOLDER.glob("*.yaml"))


def test_the_folder_holds_boards():
    assert FILES, f"no .yaml file in {FOLDER}"


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def board(request):
    return request.param, load_device(request.param)


def test_the_name_is_that_of_the_file(board):
    path, device = board
    assert device.name == path.stem


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
    workload = Workload(
        name="one layer",
        gemms=(Gemm(name="fc", kind="fc", tokens=197, inputs=192, rows_high=192, rows_low=0),),
        vectors=(),
        activation_bytes=7 * 197 * 192,
    )
    for activations in ("onchip", "ddr"):
        best = best_accelerator([workload], device, array=(8, 8), activations=activations)
        assert FpgaCostModel(device, best).estimate(workload).violations == ()
