"""The log of a training: `metrics.jsonl` and `tensorboard/` in its folder.

A line of the log is an epoch, or a rollback: `{"epoch", "step", "rollback": cause}`, where the epoch is the one that
was given up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from hwmodel.files import append_line, write_atomic
from supernet.evaluate import Evaluation

_ROWS = "metrics.jsonl"


class Metrics:
    """Appends to the log in a folder; without one, nothing is kept: of several workers one logs."""

    def __init__(self, folder: Path | None, *, epochs_done: int) -> None:
        """Drops rows of epochs that are done again, and what a kill left half written."""
        self._folder = folder
        self._epochs_done = epochs_done
        if folder is None:
            return
        path, kept = folder / _ROWS, []
        if epochs_done and path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _epoch_of(line) <= epochs_done]
        write_atomic(path, "".join(line + "\n" for line in kept))

    @cached_property
    def _writer(self) -> SummaryWriter:
        # It makes a file at once: not for a finished training that is resumed.
        return SummaryWriter(f"{self._folder}/tensorboard", purge_step=self._epochs_done + 1)

    def epoch(self, row: dict[str, Any]) -> None:
        """Logs an epoch, with `val` the results of the probe subnets, or None."""
        if self._folder is None:
            return
        append_line(self._folder / _ROWS, json.dumps(row))
        for name in ("train_loss", "lr"):
            self._writer.add_scalar(name, row[name], row["epoch"])
        for name, values in (row["val"] or {}).items():
            for metric in ("accuracy", "loss"):
                self._writer.add_scalar(f"val_{metric}/{name}", values[metric], row["epoch"])

    def rollback(self, *, epoch: int, step: int, cause: str) -> None:
        """Logs that an epoch was given up."""
        if self._folder is not None:
            append_line(self._folder / _ROWS, json.dumps({"epoch": epoch, "step": step, "rollback": cause}))

    def close(self) -> None:
        """Writes out what is kept in memory."""
        if "_writer" in vars(self):
            self._writer.close()


@contextmanager
def open_metrics(folder: Path | None, *, epochs_done: int) -> Iterator[Metrics]:
    """The log in `folder`, see `Metrics`, closed at the end."""
    metrics = Metrics(folder, epochs_done=epochs_done)
    try:
        yield metrics
    finally:
        metrics.close()


def read_evaluations(folder: Path) -> dict[int, dict[str, Evaluation]]:
    """The results of the probe subnets after each evaluated epoch in the log of `folder`, which may not exist yet.

    A line that a kill left half written is passed over.
    """
    path = folder / _ROWS
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if math.isfinite(_epoch_of(line))]
    return {
        row["epoch"]: {name: Evaluation(**values) for name, values in row["val"].items()}
        for row in rows
        if row.get("val") is not None
    }


def _epoch_of(line: str) -> float:
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
