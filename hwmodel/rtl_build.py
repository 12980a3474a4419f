"""Builds simulations of the RTL (`hwmodel/rtl`) with Verilator, and keeps them.

A program belongs to one top module, one set of parameters and one test bench. It is kept under
`$XDG_CACHE_HOME/quasar` (or `~/.cache/quasar`), in a folder named by a hash of the modules under the top, the bench,
the parameters and the version of Verilator; it appears there by a rename, so that an interrupted build leaves nothing
behind that looks whole.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from hwmodel.errors import QuasarError, UsageError

RTL_FOLDER = Path(__file__).with_name("rtl")

_MODULE = re.compile(r"\bquasar_\w+")


def build(top: str, *, parameters: Mapping[str, int], bench: str, defines: Mapping[str, int]) -> Path:
    """The simulation program of module `top` with these parameters, from the cache or built now.

    `bench` is the C++ file in `RTL_FOLDER` that drives it, compiled with `-D` for each of the `defines`. Modules lie in
    files of their names.

    Raises:
        UsageError: Verilator, g++ or make is missing; the message names the package.
        QuasarError: the build failed, or the cache cannot be written.
    """
    verilator = tool("verilator", package="verilator")
    compiler = tool("g++", package="g++")
    tool("make", package="make")
    sources = [*sorted(RTL_FOLDER.glob("*.vlt")), *_modules_under(top), RTL_FOLDER / bench]
    version = run([verilator, "--version"], what="verilator")
    key = (version, compiler, top, sorted(parameters.items()), bench, sorted(defines.items()))
    digest = hashlib.sha256(repr(key).encode())
    for source in sources:
        digest.update(source.name.encode() + source.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quasar" / "rtl"
    program = cache / digest.hexdigest()[:24] / f"V{top}"
    if program.exists():
        return program
    # Registers start with random values, so that nothing can lean on an initial zero.
    command = [verilator, "--cc", "--exe", "--build", "--build-jobs", "2", "-Wno-fatal", "--top-module", top]
    command += ["--x-assign", "unique", "--x-initial", "unique", "-O2", "-MAKEFLAGS", "OPT_FAST=-O2 OPT_GLOBAL=-O2"]
    command += [f"-G{name}={value}" for name, value in parameters.items()]
    command += ["-CFLAGS", " ".join(f"-D{name}={value}" for name, value in defines.items())]
    command += map(str, sources)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".build-") as folder:
            _build(command, Path(folder))
            whole = Path(folder, "whole")
            whole.mkdir()
            Path(folder, program.name).rename(whole / program.name)
            try:
                whole.rename(program.parent)
            except OSError:
                if not program.exists():  # otherwise another process was faster
                    raise
    except OSError as error:
        raise QuasarError(f"{cache}: cannot be written: {error.strerror or error}; set XDG_CACHE_HOME") from error
    return program


def run(command: Sequence[str], *, what: str) -> str:
    """Standard output of a program; raises `QuasarError` with its first error, or its last line, if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        problem = next((line for line in lines if line.startswith("%Error") or "error:" in line), lines[-1])
        raise QuasarError(f"{what} failed with status {done.returncode}: {problem.strip()}")
    return done.stdout


def tool(name: str, *, package: str) -> str:
    """Path of a program; raises `UsageError` with the package to install if it is missing."""
    path = shutil.which(name)
    if path is None:
        raise UsageError(f"'{name}' is not installed, and simulation needs it; apt-get install {package}")
    return path


def _modules_under(top: str) -> list[Path]:
    """Sources of a module and of all that it instantiates, so that a change elsewhere costs no build."""
    found: dict[str, Path] = {}
    waiting = [top]
    while waiting:
        name = waiting.pop()
        path = RTL_FOLDER / f"{name}.sv"
        if name not in found and path.exists():
            found[name] = path
            waiting += _MODULE.findall(path.read_text(encoding="utf-8"))
    return [found[name] for name in sorted(found)]


def _build(command: Sequence[str], folder: Path) -> None:
    run([*command, "-Mdir", str(folder)], what="the build of the simulation")
