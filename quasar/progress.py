"""Progress of long stages on stderr: a live bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from supernet.config import Progress

#: seconds between lines where stderr is no terminal
LINE_INTERVAL_S = 5.0


@contextmanager
def stage(title: str) -> Iterator[Progress]:
    """Shows how far a stage is; the function it gives takes (done, total, text)."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("[bold]{task.description:8}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[text]}"),
        )
        with Bar(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=None, text="")
            yield lambda done, total, text: bar.update(task, completed=done, total=total, text=text)
        return
    started = shown = time.monotonic()
    last = (0, 0, "")

    def report(done: int, total: int, text: str) -> None:
        nonlocal shown, last
        last = (done, total, text)
        if time.monotonic() - shown >= LINE_INTERVAL_S:
            shown = time.monotonic()
            _line(title, last, shown - started)

    print(f"{title}: started", file=sys.stderr, flush=True)
    yield report
    _line(title, last, time.monotonic() - started)


def _line(title: str, state: tuple[int, int, str], seconds: float) -> None:
    done, total, text = state
    print(f"{title}: {done}/{total}  {seconds:.0f} s  {text}".rstrip(), file=sys.stderr, flush=True)
