"""The command that times this host."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hwmodel.errors import UsageError
from quasar.command import Debug, Json, command

#: the largest median error of a table that needs no warning
GOOD_ERROR = 0.1


@command
def measure(
    *,
    runtime: Annotated[str, typer.Option(help="onnxruntime (the exported int8 form) or torch (plain float32).")],
    out: Annotated[Path, typer.Option(help="Device file to write, for example host.yaml.")],
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the runtime; by default one a core.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A coarser table for smaller networks, within a minute.")
    ] = False,
    power_w: Annotated[
        float | None, typer.Option(help="Power of the host while a network runs, for energy; else there is none.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the networks that the table is fitted to and checked with.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a measurement was stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is there.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Time operators on this host, and write a device file that estimates networks on it."""
    if out.suffix not in (".yaml", ".yml"):
        raise UsageError(f"--out must end in .yaml or .yml, not '{out.name}'")
    if power_w is not None and not (power_w > 0 and math.isfinite(power_w)):
        raise UsageError(f"--power-w must be positive, not {power_w}")
    if seed < 0:
        raise UsageError(f"--seed must not be negative, but is {seed}")
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    if out.exists() and not overwrite:
        raise UsageError(f"{out}: exists; give another --out, or --overwrite")
    from quasar.measuring.measure import journal_of
    from quasar.measuring.measure import measure as measure_host
    from quasar.measuring.opening import open_runtime
    from quasar.measuring.plan import FULL, QUICK

    journal = journal_of(out)
    if journal.exists() and not (resume or overwrite):
        raise UsageError(f"{journal}: a measurement was stopped; use --resume to go on or --overwrite to begin anew")
    number = threads or os.cpu_count() or 1
    host = open_runtime(runtime, threads=number)
    if overwrite:
        journal.unlink(missing_ok=True)
    measured = measure_host(host, QUICK if quick else FULL, threads=number, out=out, power_w=power_w, seed=seed)
    if not as_json:
        from quasar.processor_summary import print_measured

        print_measured(measured)
        print(f"wrote {out}; give it as --device {out}, or as hardware.device")
    error = measured.median_error
    assert error is not None  # a plan has networks to check with
    if error > GOOD_ERROR:
        print(
            f"warning: the median error of {error:.1%} exceeds {GOOD_ERROR:.0%}; measure again when the host is idle",
            file=sys.stderr,
        )
    return {
        "device": str(out),
        "title": measured.title,
        "form": measured.form,
        "clock": measured.clock,
        "noise": measured.noise,
        "median_error": error,
        "worst_error": max(network.error for network in measured.check),
        "check_ms": sorted(network.measured_ms for network in measured.check),
    }
