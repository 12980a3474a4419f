"""The trials of a sweep, and the file that keeps them: one line for each start, evaluated epoch and end.

{"trial": 1, "parameters": {"train.lr": 0.001}}
{"trial": 1, "epoch": 2, "value": 0.81}
{"trial": 1, "state": "stopped", "cause": null}
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hwmodel.errors import DamagedInputError
from hwmodel.files import append_line, write_atomic

#: finished: trained to the last epoch; stopped: early, as others were better
End = Literal["finished", "stopped", "failed"]


@dataclass(kw_only=True, slots=True)
class Trial:
    """One training; `values` has the sweep's metric by evaluated epoch, in order."""

    number: int
    parameters: dict[str, Any]
    values: dict[int, float] = field(default_factory=dict)
    state: End | None = None  # None: not ended yet
    cause: str | None = None  # of a failure

    @property
    def epochs(self) -> int:
        """Until the last evaluation."""
        return max(self.values, default=0)

    @property
    def value(self) -> float | None:
        """The metric at the last evaluation."""
        return self.values[self.epochs] if self.values else None


class Journal:
    """The trials, numbered from 1, of which every change is in the file before anything comes of it."""

    def __init__(self, path: Path) -> None:
        """Reads what there is; what a kill left half written is dropped.

        Raises:
            DamagedInputError: a line that cannot be one of a journal.
        """
        self._path = path
        self.trials: dict[int, Trial] = {}
        whole, _, rest = (path.read_text(encoding="utf-8") if path.exists() else "").rpartition("\n")
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                self._apply(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise DamagedInputError(
                    f"{path}: line {number} is damaged ({error!r}); start over with --overwrite"
                ) from None
        if rest:
            write_atomic(path, whole + "\n" if whole else "")

    @property
    def open(self) -> list[Trial]:
        """The trials that have started and not ended."""
        return [trial for trial in self.trials.values() if trial.state is None]

    def start(self, parameters: dict[str, Any]) -> Trial:
        """Adds a trial."""
        number = len(self.trials) + 1
        self._write({"trial": number, "parameters": parameters})
        return self.trials[number]

    def report(self, number: int, *, epoch: int, value: float) -> None:
        """Adds an evaluated epoch, unless it is known: a trial that goes on tells all it has."""
        if epoch not in self.trials[number].values:
            self._write({"trial": number, "epoch": epoch, "value": value})

    def end(self, number: int, state: End, *, cause: str | None = None) -> None:
        """Notes that a trial has ended."""
        self._write({"trial": number, "state": state, "cause": cause})

    def _write(self, row: dict[str, Any]) -> None:
        append_line(self._path, json.dumps(row))
        self._apply(row)

    def _apply(self, row: dict[str, Any]) -> None:
        number = row["trial"]
        if "parameters" in row:
            if number != len(self.trials) + 1:
                raise ValueError(f"trial {number} after trial {len(self.trials)}")
            self.trials[number] = Trial(number=number, parameters=dict(row["parameters"]))
        elif "epoch" in row:
            self.trials[number].values[int(row["epoch"])] = float(row["value"])
        else:
            self.trials[number].state = row["state"]
            self.trials[number].cause = row["cause"]
