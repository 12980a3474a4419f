"""The commands that run exported subnets: over a trace of budgets, and as a server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quasar.command import Debug, Json, command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quasar.runtime.budget import Choice
    from quasar.runtime.follow import Comparison
    from quasar.runtime.runtime import Costs, Runtime

runtime_app = typer.Typer()

Bundles = Annotated[list[Path], typer.Argument(help="Exported bundles, or run folders for all of their bundles.")]
Measured = Annotated[
    bool, typer.Option("--measured", help="Compare latency budgets with times measured on this host first.")
]


@runtime_app.command()
@command
def follow(
    trace: Annotated[Path, typer.Argument(help="CSV file: time_s, and latency_ms or energy_mj for an image.")],
    bundles: Bundles,
    *,
    fps: Annotated[
        float | None,
        typer.Option(help="Images a second; by default one at each line of the trace.", show_default=False),
    ] = None,
    measured: Measured = False,
    live: Annotated[bool, typer.Option("--live", help="Run the networks on this host, by its clock.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Switch between subnets as a budget changes, and compare that with each subnet alone.

    Simulated with the modelled costs of the bundles, unless an option says otherwise.
    """
    from quasar.runtime.trace import read_trace

    steps = read_trace(trace)
    frames = steps.frames(fps)
    from quasar.progress import stage
    from quasar.runtime.follow import compare, follow_live

    runtime = _load(bundles)
    if live:
        with stage("follow") as progress:
            comparison = follow_live(runtime, frames, fps=fps, progress=progress)
    else:
        costs = _costs(runtime, measured=measured)
        comparison = compare(runtime.offers(costs), frames, fps=fps, costs=costs)
    if not as_json:
        _print_comparison(comparison)
    return {"trace": str(trace), "limited": steps.limited, "accuracy_of": runtime.accuracy_of, **comparison.to_dict()}


@runtime_app.command()
@command
def serve(
    bundles: Bundles,
    *,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this host.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any free one.", min=0, max=65535)] = 8000,
    latency_ms: Annotated[
        float | None, typer.Option(help="Budget to begin with, for an image.", show_default=False)
    ] = None,
    energy_mj: Annotated[
        float | None, typer.Option(help="Budget to begin with, for an image.", show_default=False)
    ] = None,
    measured: Measured = False,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more get 503.", min=0)] = 16,
    workers: Annotated[int, typer.Option(help="Requests that are worked on at a time.", min=1)] = 1,
    max_megabytes: Annotated[float, typer.Option(help="Largest image file, in 10^6 bytes.")] = 10,
    max_megapixels: Annotated[float, typer.Option(help="Largest image, in 10^6 pixels.")] = 20,
    as_json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Answer images over HTTP with the subnet that a budget allows; Ctrl-C ends it when all answers are sent."""
    from quasar.export.optional import require

    for package in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
        require(package, extra="serve")
    from quasar.runtime.listen import bound, run
    from quasar.runtime.server import Limits, create_app

    limits = Limits(
        queue=queue, workers=workers, max_bytes=int(max_megabytes * 1e6), max_pixels=int(max_megapixels * 1e6)
    )
    with bound(host, port) as listener:
        runtime = _load(bundles)
        costs = _costs(runtime, measured=measured)
        if latency_ms is not None or energy_mj is not None:
            _say(runtime.set_budget(latency_ms=latency_ms, energy_mj=energy_mj, costs=costs))
        print(f"serving {len(runtime.subnets)} subnets at {listener.url}", file=sys.stderr, flush=True)
        run(create_app(runtime, limits=limits, costs=costs), listener)
    stats = runtime.stats()
    if not as_json:
        print(f"{sum(stats['predictions'].values()):,} predictions, {stats['switches']:,} switches")
    return stats


def _load(paths: Sequence[Path]) -> Runtime:
    """The runtime of bundles, and of all bundles of runs."""
    from quasar.export.manifest import MANIFEST
    from quasar.runtime.runtime import Runtime

    folders: list[Path] = []
    for path in paths:
        of_run = sorted(found.parent for found in (path / "export").glob(f"*/{MANIFEST}"))
        folders += of_run or [path]
    runtime = Runtime.load(folders)
    if runtime.accelerators > 1:
        print(
            f"warning: the bundles are for {runtime.accelerators} different accelerators, so that on a board each "
            "switch needs another bitstream; search with hardware.accelerator=shared or fixed",
            file=sys.stderr,
        )
    return runtime


def _costs(runtime: Runtime, *, measured: bool) -> Costs:
    if not measured:
        return "modelled"
    print("measuring the latency of each subnet on this host", file=sys.stderr, flush=True)
    runtime.calibrate()
    return "measured"


def _say(choice: Choice) -> None:
    print(("" if choice.met else "warning: ") + str(choice), file=sys.stderr, flush=True)


def _print_comparison(comparison: Comparison) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    best, whole = comparison.best_static, comparison.controller
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("", "missed", "accuracy", "energy mJ", "slowest ms", "images"):
        table.add_column(column, justify="right" if column else "left")
    rows = {"switching": whole} | {
        f"{name} alone{' (best)' if name == best else ''}": outcome for name, outcome in comparison.static.items()
    }
    for label, outcome in rows.items():
        table.add_row(
            label,
            f"{outcome.missed:,}",
            f"{outcome.accuracy:.2%}",
            f"{outcome.energy_mj:.4g}",
            f"{outcome.worst_response_ms:.4g}",
            f"{outcome.images:,}",
        )
    Console(width=100).print(table)
    for name, use in whole.subnets.items():
        print(f"{name}: {use.images:,} images, current for {use.current_s:.4g} s, busy for {use.busy_s:.4g} s")
    against = comparison.against_best
    if against is None:
        print(f"{whole.switches:,} switches; no subnet alone meets every budget")
    else:
        print(
            f"{whole.switches:,} switches; against {best} alone {against['accuracy_points']:+.2f} points of accuracy, "
            f"{against['energy_percent']:+.1f} % of energy"
        )
