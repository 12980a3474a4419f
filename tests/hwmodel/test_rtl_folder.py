"""The RTL as a folder of its own: whole, with the parameters of its accelerator, and a script that Tcl can read."""

import dataclasses
import re
import shutil
import subprocess

import pytest

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.calibrate import part_names
from hwmodel.device import load_device
from hwmodel.rtl_build import modules_under
from hwmodel.rtl_folder import rtl_files
from hwmodel.rtl_parameters import ACCELERATOR, accelerator_parameters

CONFIG = AcceleratorConfig(
    array_rows=4,
    array_inputs=8,
    backend="dual",
    clock_mhz=200,
    weight_stream_bits=64,
    activation_stream_bits=64,
    output_stream_bits=32,
    activations="onchip",
    activation_buffer_bytes=4096,
    max_tokens=64,
    vector_lanes=3,
)
ATOMIC = dataclasses.replace(CONFIG, backend="atomic", activations="ddr", array_rows=3)


@pytest.fixture(params=[CONFIG, ATOMIC], ids=["dual", "atomic"])
def folder(request, tmp_path):
    for name, content in rtl_files(request.param, load_device("zcu102"), device_name="zcu102").items():
        (tmp_path / name).write_bytes(content)
    return request.param, tmp_path


def test_every_module_is_there(folder):
    _, path = folder
    assert {source.name for source in path.glob("*.sv")} == {source.name for source in modules_under(ACCELERATOR)}
    sources = "".join(source.read_text() for source in path.glob("*.sv"))
    used = set(re.findall(r"^\s*(quasar_\w+) #?\(", sources, flags=re.MULTILINE)) | {ACCELERATOR}
    assert used <= set(re.findall(r"^module (quasar_\w+)", sources, flags=re.MULTILINE))
    for source in (*path.glob("*.h"), *path.glob("*.cpp")):
        included = set(re.findall(r'#include "(\w+\.(?:h|cpp))"', source.read_text()))
        assert all((path / name).is_file() for name in included - {"Vmodel.h", "verilated.h"})


def test_settings_are_those_of_the_accelerator(folder):
    config, path = folder
    parameters = accelerator_parameters(config)
    module = (path / f"{ACCELERATOR}.sv").read_text()
    assert set(re.findall(r"parameter int (\w+)", module)) == parameters.keys()
    for name in ("settings.mk", "settings.tcl"):
        found = dict(re.findall(r"\b([A-Z_]+)=(\d+)", (path / name).read_text()))
        assert {key: int(value) for key, value in found.items()} == parameters


VIVADO = """
foreach name {read_verilog read_xdc synth_design opt_design place_design phys_opt_design route_design \\
              report_utilization report_timing_summary} {
    proc $name args "lappend ::calls \\[list $name {*}\\$args\\]"
}
source vivado.tcl
foreach call $calls { puts "call: $call" }
"""


def test_the_script_for_vivado_runs_in_tcl(folder):
    """With commands of Vivado that do nothing: what it would call, not what Vivado would make of it."""
    tclsh = shutil.which("tclsh")
    if tclsh is None:
        pytest.skip("tclsh is not installed")
    config, path = folder
    done = subprocess.run([tclsh], input=VIVADO, cwd=path, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    calls = re.findall(r"^call: (\S+) ?(.*)$", done.stdout, flags=re.MULTILINE)
    assert [name for name, _ in calls] == [
        "read_verilog",
        "read_xdc",
        "synth_design",
        "opt_design",
        "place_design",
        "phys_opt_design",
        "route_design",
        "report_utilization",
        "report_timing_summary",
    ]
    arguments = dict(calls)
    assert all(source.name in arguments["read_verilog"] for source in path.glob("*.sv"))
    assert f"-top {ACCELERATOR} -part xczu9eg-ffvb1156-2-e -mode out_of_context" in arguments["synth_design"]
    for name, value in accelerator_parameters(config).items():
        assert f"-generic {name}={value}" in arguments["synth_design"]
    assert (path / "build" / "clock.xdc").read_text() == "create_clock -name clk -period 5.0000 [get_ports clk]\n"
    (following,) = re.findall(r"^next: quasar hw calibrate (.*)$", done.stdout, flags=re.MULTILINE)
    (parts,) = re.findall(r'--parts "([^"]*)"', following)
    assert set(parts.split(",")) < set(part_names())
    assert "--device zcu102" in following


def test_lint(folder):
    if shutil.which("verilator") is None:
        pytest.skip("verilator is not installed")
    config, path = folder
    values = [f"-G{name}={value}" for name, value in accelerator_parameters(config).items()]
    command = ["verilator", "--lint-only", "-Wall", "--top-module", ACCELERATOR, *values]
    sources = [*sorted(path.glob("*.vlt")), *sorted(path.glob("*.sv"))]
    lint = subprocess.run([*command, *sources], capture_output=True, text=True, check=False)
    assert lint.stderr == ""
