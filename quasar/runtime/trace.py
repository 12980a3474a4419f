"""A budget over time, as a CSV file: `time_s` and either `latency_ms` or `energy_mj` for each image.

    time_s,latency_ms
    0.0,0.025
    2.5,0.009

A budget holds from its time to the next one. Times are seconds from any start, in strictly rising order.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from hwmodel.errors import DamagedInputError, UsageError
from quasar.runtime.budget import Budget, Limited

#: more would not fit into memory
_MOST_FRAMES = 2_000_000
_LIMITED: tuple[Limited, ...] = ("latency_ms", "energy_mj")


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """An image that comes at a time, and what it may take at most."""

    arrival_s: float
    budget: Budget


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """The steps of a budget; see the module's docstring."""

    limited: Limited
    steps: tuple[Frame, ...]

    def frames(self, fps: float | None = None) -> list[Frame]:
        """The images to be processed: one at each step, or `fps` a second from the first step to the last.

        Raises:
            UsageError: `fps` is not a positive number, or there would be too many.
        """
        if fps is None:
            return list(self.steps)
        if not (math.isfinite(fps) and fps > 0):
            raise UsageError(f"--fps must be a positive number, not {fps}")
        start, end = self.steps[0].arrival_s, self.steps[-1].arrival_s
        count = math.floor((end - start) * fps + 1e-9) + 1
        if count > _MOST_FRAMES:
            raise UsageError(
                f"--fps {fps:g} makes {count:,} images of this trace; give one for {_MOST_FRAMES:,} at most"
            )
        frames, step = [], 0
        for number in range(count):
            arrival_s = start + number / fps
            while step + 1 < len(self.steps) and self.steps[step + 1].arrival_s <= arrival_s + 1e-9:
                step += 1
            frames.append(Frame(arrival_s=arrival_s, budget=self.steps[step].budget))
        return frames


def read_trace(path: Path) -> Trace:
    """The trace in a file.

    Raises:
        UsageError: there is no such file.
        DamagedInputError: a line is not what it must be; the message has its number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such trace; give a CSV file with the columns time_s and latency_ms") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedInputError(f"{path}: cannot be read as a trace ({error})") from None
    lines = csv.reader(text.splitlines())
    try:
        header = [name.strip() for name in next(lines, [])]
        limited = next((name for name in _LIMITED if sorted(header) == sorted(("time_s", name))), None)
        if limited is None:
            raise DamagedInputError(
                f"{path}, line 1: the columns must be time_s and either latency_ms or energy_mj, not "
                f"{', '.join(header) or 'none'}"
            )
        steps: list[Frame] = []
        for cells in lines:
            steps.append(_step(cells, header, limited, steps[-1] if steps else None, f"{path}, line {lines.line_num}"))
    except csv.Error as error:
        raise DamagedInputError(f"{path}, line {lines.line_num}: is not CSV ({error})") from None
    if not steps:
        raise DamagedInputError(f"{path}, line 2: the trace has no steps; give a time and a budget in each line")
    return Trace(limited=limited, steps=tuple(steps))


def _step(cells: list[str], header: list[str], limited: Limited, before: Frame | None, where: str) -> Frame:
    if len(cells) != len(header) or not all(cell.strip() for cell in cells):
        raise DamagedInputError(f"{where}: a value is missing or too many; give {' and '.join(header)}")
    values = {}
    for name, cell in zip(header, cells, strict=True):
        try:
            values[name] = float(cell)
        except ValueError:
            raise DamagedInputError(f"{where}: {name} must be a number, not '{cell.strip()}'") from None
        if not math.isfinite(values[name]):
            raise DamagedInputError(f"{where}: {name} must be finite, not {cell.strip()}")
    time_s, limit = values["time_s"], values[limited]
    if time_s < 0:
        raise DamagedInputError(f"{where}: time_s must not be negative, not {time_s:g}")
    if before is not None and time_s <= before.arrival_s:
        raise DamagedInputError(
            f"{where}: time_s {time_s:g} does not come after {before.arrival_s:g} of the line before; sort the lines"
        )
    if limit <= 0:
        raise DamagedInputError(f"{where}: {limited} must be positive, not {limit:g}")
    budget = Budget(latency_ms=limit) if limited == "latency_ms" else Budget(energy_mj=limit)
    return Frame(arrival_s=time_s, budget=budget)
