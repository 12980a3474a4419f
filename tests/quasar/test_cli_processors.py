"""Runs for a CPU or GPU: a search, its profile and report, and what is about accelerators."""

import json

import pytest
from measured_hosts import measured_host

from quasar import processors

ON_TX2 = ("hardware.device=jetson_tx2", "hardware.array=null", "hardware.backend=null")
ON_HOST = ("hardware.device=host.yaml", *ON_TX2[1:])


@pytest.fixture(autouse=True)
def warnings_anew():
    processors._warn.cache_clear()


@pytest.fixture
def host(here):
    """Writes what was measured of a host; networks of the tests have five tokens and up to 32 channels."""

    def write(**settings):
        measured_host(**settings).save(here / "host.yaml")

    return write


def test_a_run_is_searched_for_a_gpu_and_then_for_a_board(cli, run):
    targets = "search.targets=[{latency_ms: 0.2}, {fps: 1e6}]"
    result = cli("search", run, "--overwrite", *ON_TX2, targets)
    assert result.code == 0, result
    assert "DSP" not in result.out
    assert "device jetson_tx2; latency by the cost model of the device" in result.out
    front = json.loads((run / "search" / "front.json").read_text())
    assert front["device"] == "jetson_tx2"
    met, missed = front["targets"]
    assert met["cost"]["latency_ms"] <= 0.2
    assert met["cost"]["energy_mj"] == pytest.approx(15 * met["cost"]["latency_ms"])
    assert (met["accelerator"], met["cost"]["dsp"], met["cost"]["cycles"]) == (None, None, None)
    assert "launching operators" in missed["reason"]
    assert cli("report", run).code == 0
    assert "jetson_tx2 is no FPGA board" in (run / "report.html").read_text()
    export = cli("export", run)
    assert (export.code, "jetson_tx2 is no FPGA board" in export.err) == (2, True)
    board = cli("search", run, "--overwrite", "hardware.device=zcu102", "search.targets=[{latency_ms: 1}]")
    assert board.code == 0, board
    assert "DSP" in board.out


def test_a_profile_shows_what_is_known(cli, config, host):
    document = cli("search", config, "--profile", "--json", *ON_TX2).document
    assert (document["device"], document["resources"], document["accelerator"]) == ("jetson_tx2", {}, None)
    assert "energy" in cli("search", config, "--profile", *ON_TX2).out
    host()
    known = cli("search", config, "--profile", *ON_HOST)
    assert known.code == 0, known
    assert not any(line.strip().startswith("energy") for line in known.out.splitlines())


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["hardware.array=[8,8]"], "hardware.array is about accelerators, and jetson_tx2 is no FPGA board; give hard"),
        (["hardware.accelerator=per_subnet"], "give hardware.accelerator=fixed"),
        (["search.limits.dsp=9"], "search.limits.dsp is about accelerators"),
        (["hardware.device=jetson_tx"], "did you mean 'jetson_tx2'"),
    ],
)
def test_settings_of_accelerators_are_refused(cli, config, overrides, problem):
    result = cli("search", config, "--profile", *ON_TX2, *overrides)
    assert (result.code, result.out) == (2, "")
    assert problem in result.error


def test_a_limit_on_energy_needs_a_power(cli, config, host):
    limit = "search.limits.energy_mj=1"
    host()
    result = cli("search", config, "--profile", *ON_HOST, limit)
    assert (result.code, "--power-w" in result.error) == (2, True)
    host(power_w=5.0)
    assert cli("search", config, "--profile", *ON_HOST, limit).code == 0


def test_a_space_outside_of_what_was_measured(cli, config, host):
    host(most_tokens=4.0)
    result = cli("search", config, "--profile", *ON_HOST)
    assert result.code == 4
    assert (
        "no subnet of the space is within what was measured of host: tokens 5 of blocks.0.qkv lie outside" in result.err
    )
    host(largest=31.0)  # hidden layers of 32 are left out
    result = cli("search", config, "--profile", *ON_HOST)
    assert result.code == 0, result
    assert "of the subnets are left out: rows 32 of blocks.0.fc1 lie outside 1 to 31" in result.err


def test_a_warning_comes_once(cli, config, host, capsys):
    host()
    result = cli("search", config, "--profile", *ON_HOST)
    assert result.err.count("was measured on a CPU with 1 cores") == 1
    assert "was measured" not in cli("search", config, "--profile", *ON_HOST).err
