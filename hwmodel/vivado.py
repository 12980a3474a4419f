"""Reads two reports of AMD Vivado, as it writes them to text files.

    report_utilization       counts, from the tables of CLB logic, block RAM and DSPs of an UltraScale+ part
    report_timing_summary    one clock: its period, from the clock summary, and the worst setup slack of the paths
                             within it, from the table of clocks

Nothing else is read. Paths between clocks, hold and pulse widths say nothing about how fast the engine could run.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from hwmodel.errors import DamagedInputError, UsageError
from hwmodel.registry import unknown_name


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Utilization:
    """What a utilization report says; `part` is the device in its head, `state` for example "Routed"."""

    path: Path
    part: str
    state: str
    lut: int
    ff: int
    bram18: int
    dsp: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """What a timing report says of one clock: period and worst slack in ns (negative if it failed)."""

    path: Path
    part: str
    clock: str
    period_ns: float
    slack_ns: float

    @property
    def clock_mhz(self) -> float:
        """The clock that the worst path allows."""
        return 1000 / (self.period_ns - self.slack_ns)


def read_report(path: Path, *, clock: str | None = None) -> Utilization | Timing:
    """The report in a file, whichever of the two it is; `clock` names the engine's clock where there are several.

    Raises:
        UsageError: no such file, or a timing report with several clocks and none named.
        DamagedInputError: another format; the message says what is missing.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"report '{path}' cannot be read: {error.strerror}; give the text files of Vivado") from error
    if "Design Timing Summary" in text:
        return _timing(path, text, clock)
    if re.search(r"^\|\s+Site Type\s+\|", text, re.MULTILINE):
        return _utilization(path, text)
    raise DamagedInputError(
        f"{path}: neither a utilization nor a timing report of Vivado: no table 'Site Type' and no "
        "'Design Timing Summary'; write it with report_utilization -file or report_timing_summary -file"
    )


def _utilization(path: Path, text: str) -> Utilization:
    rows: dict[str, float] = {}
    for name, used in re.findall(r"^\|\s*([^|]+?)\*?\s*\|\s*([\d.]+)\s*\|", text, re.MULTILINE):
        rows.setdefault(name, float(used))  # some rows come again in later tables

    def row(name: str) -> float:
        if name not in rows:
            raise DamagedInputError(
                f"{path}: no row '{name}' in its tables; write it with report_utilization (without -hierarchical) for "
                "an UltraScale+ part"
            )
        return rows[name]

    return Utilization(
        path=path,
        part=_head(path, text, "Device"),
        state=_head(path, text, "Design State"),
        lut=int(row("CLB LUTs")),
        ff=int(row("CLB Registers")),
        bram18=round(2 * row("Block RAM Tile")),
        dsp=int(row("DSPs")),
    )


def _timing(path: Path, text: str, clock: str | None) -> Timing:
    periods = {
        name: float(period)
        for name, period in re.findall(
            r"^[ \t]*(\S+)[ \t]+\{[^}\n]*\}[ \t]+([\d.]+)[ \t]+[\d.]+[ \t]*$", text, re.MULTILINE
        )
    }
    if not periods:
        raise DamagedInputError(f"{path}: no clock in its 'Clock Summary'; constrain the design and report it again")
    slacks = _slacks(path, text)
    timed = [name for name in slacks if name in periods]
    if not timed:
        raise DamagedInputError(
            f"{path}: no slack in its 'Intra Clock Table'; constrain the design and report it again"
        )
    if clock is None and len(timed) > 1:
        raise UsageError(f"{path}: has several clocks: {', '.join(timed)}; name that of the engine with --clock")
    name = timed[0] if clock is None else clock
    if name not in timed:
        raise unknown_name(f"clock of {path}", name, timed)
    if periods[name] <= slacks[name]:
        raise DamagedInputError(f"{path}: clock '{name}' has a slack of {slacks[name]:g} ns in {periods[name]:g} ns")
    return Timing(
        path=path, part=_head(path, text, "Device"), clock=name, period_ns=periods[name], slack_ns=slacks[name]
    )


def _slacks(path: Path, text: str) -> dict[str, float]:
    """Worst setup slack of each clock in the table of paths within a clock."""
    table = re.search(
        r"^\| Intra Clock Table\n(?:[|-].*\n)+\n*(Clock\s+WNS\(ns\)\s+TNS\(ns\).*)\n[- ]+\n((?:.*\S.*\n)*)", text, re.M
    )
    if table is None:
        raise DamagedInputError(f"{path}: no 'Intra Clock Table'; write it with report_timing_summary")
    # A clock without timed paths has only the columns of pulse widths, further right.
    end = table[1].index("TNS(ns)")
    found = (re.match(r"\s*(\S+)\s+(-?\d+\.\d+)", line) for line in table[2].splitlines())
    return {row[1]: float(row[2]) for row in found if row and row.end() <= end}


def _head(path: Path, text: str, key: str) -> str:
    entry = re.search(rf"^\| {key}\s*: (\S.*?)\s*$", text, re.MULTILINE)
    if entry is None and key == "Device":
        raise DamagedInputError(f"{path}: no line '| {key} :' in its head; give the report as Vivado wrote it")
    return entry[1] if entry else "unknown"
