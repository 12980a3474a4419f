"""What every board file must satisfy. For boards kept elsewhere, set QUASAR_DEVICE_FOLDER to their folder."""

import dataclasses
import os
from pathlib import Path

import pytest

from hwmodel.device import DEVICE_FOLDER, Device, EnergyConstants, Limits, load_device

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
    figures -= {"name", "title", "part", "limits", "energy", "sources"}
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
