"""The log of a training: `metrics.jsonl` and `tensorboard/` in its folder.

A line of the log is an epoch, or a rollback: `{"epoch", "step", "rollback": cause}`, where the epoch is the one that
was given up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from hwmodel.files import append_line, write_atomic


class Metrics:
    """Appends to the log."""

    def __init__(self, path: Path, writer: SummaryWriter) -> None:
        self._path = path
        self._writer = writer

    def epoch(self, row: dict[str, Any]) -> None:
        """Logs an epoch, with `val` the results of the probe subnets, or None."""
        append_line(self._path, json.dumps(row))
        for name in ("train_loss", "lr"):
            self._add(name, row[name], row["epoch"])
        for name, values in (row["val"] or {}).items():
            for metric in ("accuracy", "loss"):
                self._add(f"val_{metric}/{name}", values[metric], row["epoch"])

    def rollback(self, *, epoch: int, step: int, cause: str) -> None:
        """Logs that an epoch was given up."""
        append_line(self._path, json.dumps({"epoch": epoch, "step": step, "rollback": cause}))

    def _add(self, name: str, value: float, epoch: int) -> None:
        self._writer.add_scalar(name, value, epoch)


@contextmanager
def open_metrics(folder: Path, *, epochs_done: int) -> Iterator[Metrics]:
    """The log in `folder`; rows of epochs that are done again, and what a kill left half written, are dropped."""
    path = folder / "metrics.jsonl"
    kept = []
    if epochs_done and path.exists():
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _epoch_of(line) <= epochs_done]
    write_atomic(path, "".join(line + "\n" for line in kept))
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs_done + 1)
    try:
        yield Metrics(path, writer)
    finally:
        writer.close()


def _epoch_of(line: str) -> float:
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
