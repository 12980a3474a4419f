"""The RTL of one accelerator as a folder that needs no Python: sources, a test bench, and scripts with its parameters.

    *.sv, *.vlt                  `quasar_accelerator` and all modules under it, waivers of Verilator's warnings
    network_bench.cpp, *.h       a program that runs a network on it
    Makefile, settings.mk        build that program by Verilator, and run it
    vivado.tcl, settings.tcl     synthesis, placement and routing out of context

What the network is, `network.txt`, comes from whoever knows it.
"""

from __future__ import annotations

from collections.abc import Mapping

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.device import Device
from hwmodel.resources import ENGINE_PARTS, VECTOR_PARTS
from hwmodel.rtl_build import RTL_FOLDER, modules_under
from hwmodel.rtl_parameters import ACCELERATOR, accelerator_parameters

BENCH = "network_bench.cpp"
_SCRIPTS = ("Makefile", "vivado.tcl")


def rtl_files(config: AcceleratorConfig, device: Device, *, device_name: str) -> dict[str, bytes]:
    """The files by name; equal arguments give equal bytes.

    Args:
        device_name: of the device, as `quasar hw calibrate` takes it.

    Raises:
        UsageError: a stream width does not fit the array.
    """
    sources = [*modules_under(ACCELERATOR), *sorted(RTL_FOLDER.glob("*.vlt")), *sorted(RTL_FOLDER.glob("*.h"))]
    sources += [RTL_FOLDER / name for name in (BENCH, *_SCRIPTS)]
    parameters = accelerator_parameters(config)
    return {path.name: path.read_bytes() for path in sources} | {
        "settings.mk": _settings_mk(parameters).encode(),
        "settings.tcl": _settings_tcl(parameters, config, device, device_name).encode(),
    }


def _settings_mk(parameters: Mapping[str, int]) -> str:
    return "\n".join(
        [
            "# Generated: the accelerator of this bundle.",
            f"TOP := {ACCELERATOR}",
            f"BENCH := {BENCH}",
            f"PARAMETERS := {_pairs(parameters)}",
            "",
        ]
    )


def _settings_tcl(parameters: Mapping[str, int], config: AcceleratorConfig, device: Device, name: str) -> str:
    return "\n".join(
        [
            "# Generated: the accelerator of this bundle, and the device that it is for.",
            f"set top {ACCELERATOR}",
            f"set parameters {{{_pairs(parameters)}}}",
            f"set part {device.part}",
            f"set period_ns {1000 / config.clock_mhz:.4f}",
            f"set device {{{name}}}",
            f"set parts {{{','.join((*ENGINE_PARTS, *VECTOR_PARTS))}}}",
            "",
        ]
    )


def _pairs(parameters: Mapping[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in parameters.items())
