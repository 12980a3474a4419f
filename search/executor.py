"""Where subnets are measured: an executor takes the tasks of a generation and gives their records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from search.measurer import Task
from search.record import Record

#: measures one subnet; see `search.measurer.Measurer`
Measure = Callable[[Task], Record]


class Executor(Protocol):
    """Measures subnets."""

    def records(self, tasks: Sequence[Task]) -> Iterator[Record]:
        """One record for each task, in their order, each as soon as it and all before it are known."""
        ...


class LocalExecutor:
    """Measures here, one subnet after the other, none before it is asked for."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure

    def records(self, tasks: Sequence[Task]) -> Iterator[Record]:
        """See `Executor`."""
        return map(self._measure, tasks)
