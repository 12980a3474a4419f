"""Several searches in one picture and one table, with one reference for all hypervolumes."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from hwmodel.errors import DamagedInputError, UsageError
from hwmodel.files import write_atomic
from quasar import figures
from quasar.front import Front, height
from quasar.report import RunData
from quasar.run_folder import RunFolder
from search.trial import ParetoFront, Trial, best_under


def compare(runs: Sequence[Path], *, out: Path, overwrite: bool) -> dict[str, Any]:
    """Writes the picture and gives the table as plain data. A single run stands for its searches for several devices.

    The reference of all hypervolumes is the slowest subnet of any of the spaces, at score 0. Every run is judged at
    the targets of all runs: a trial meets any limit that it is fast enough for.

    Returns:
        `reference_ms`, `picture`, and for each run its device, data set, algorithm, evaluations, seconds (null where
        they are not known), hypervolume, and for each limit in ms the best validation accuracy (null if none meets it).

    Raises:
        UsageError: fewer than two runs, one given twice, not a run, no finished search in it, `out` exists, or the
            searches ranked subnets by different signals.
        DamagedInputError: a file of a run is damaged.
    """
    if len(runs) == 1:
        runs = [folder.path for folder in RunFolder(runs[0]).of_devices().values()] or runs
    folders = [path.resolve() for path in runs]
    if len(folders) < 2:
        raise UsageError("compare needs at least two run folders")
    if len(set(folders)) < len(folders):
        raise UsageError("compare: a run folder is given twice")
    if out.exists() and not overwrite:
        raise UsageError(f"{out}: exists; give another --out, or --overwrite")
    names = _labels(runs)
    signals = [RunFolder(path).config().search.signal for path in runs]
    if len(set(signals)) > 1:
        ranked = ", ".join(f"{path}: {signal}" for path, signal in zip(runs, signals, strict=True))
        raise UsageError(f"compare: the searches ranked subnets by different signals ({ranked})")
    searches = [_read(path) for path in runs]
    reference_ms = max(
        front.slowest_latency_ms or max((trial.latency_ms for trial in trials), default=0.0)
        for front, trials in searches
    )
    limits = sorted({target.latency_ms for front, _ in searches for target in front.targets})
    rows: list[dict[str, Any]] = []
    curves: dict[str, list[figures.Point]] = {}
    fronts: dict[str, list[figures.Point]] = {}
    for name, path, (front, trials) in zip(names, runs, searches, strict=True):
        pareto = ParetoFront.of(trials)
        measured = [trial for trial in trials if trial.complete]
        fronts[name] = [(trial.latency_ms, height(trial)) for trial in pareto.trials]
        curves[name] = _curve(trials, reference_ms)
        config = RunFolder(path).config()
        rows.append(
            {
                "run": str(path),
                "name": name,
                "device": front.device,
                "data": config.data.name,
                "space": config.space.digest,
                "algorithm": front.algorithm,
                "evaluations": len(trials),
                "seconds": _seconds(path),
                "hypervolume": pareto.hypervolume(slowest_ms=reference_ms),
                "best_accuracy": {
                    f"{limit:.6g}": best[0].val_accuracy if (best := best_under(measured, limit)) else None
                    for limit in limits
                },
            }
        )
    png = io.BytesIO()
    figures.fronts_figure(fronts, curves, kl="kl" in signals).savefig(png, format="png", dpi=150, facecolor="white")
    write_atomic(out, png.getvalue())
    return {"reference_ms": reference_ms, "picture": str(out), "runs": rows}


def _read(path: Path) -> tuple[Front, tuple[Trial, ...]]:
    RunFolder(path).config()  # says so if this is no run folder
    RunFolder(path).read_front()
    data = RunData.read(path)
    assert data.front is not None
    return data.front, data.trials


def _labels(runs: Sequence[Path]) -> list[str]:
    """The names of the folders, or as much of their paths as tells them apart."""
    parts = [path.resolve().parts for path in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different folders have different paths")


def _curve(trials: Sequence[Trial], reference_ms: float) -> list[figures.Point]:
    """(evaluations, hypervolume) after each generation."""
    front = ParetoFront(trials=())
    curve: list[figures.Point] = []
    for generation in sorted({trial.generation for trial in trials}):
        new = [trial for trial in trials if trial.generation == generation]
        front = ParetoFront.of([*front.trials, *new])
        curve.append(((curve[-1][0] if curve else 0) + len(new), front.hypervolume(slowest_ms=reference_ms)))
    return curve


def _seconds(path: Path) -> float | None:
    """How long the search took, by its run's own record; None for a run without one."""
    file = RunFolder(path).timing
    if not file.exists():
        return None
    try:
        seconds = json.loads(file.read_text(encoding="utf-8"))["search_s"]
        return TypeAdapter(float).validate_python(seconds)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedInputError(f"{file}: is not a record of times ({type(error).__name__}); search again") from None
