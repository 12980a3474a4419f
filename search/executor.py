"""Where subnets are measured: an executor takes the tasks of a generation and gives their records.

Records do not depend on the executor or on the number of workers, as long as each worker computes as one process does:
sums of floats depend on the number of threads (`threads` in the configuration), and on the kind of device.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Protocol

from hwmodel.errors import QuasarError, WorkerLostError
from search.measurer import Task
from search.record import Record

#: measures one subnet; see `search.measurer.Measurer`
Measure = Callable[[Task], Record]

#: times that a task is given to another worker after its worker has ended
RETRIES = 2


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


class Worker(Protocol):
    """Measures one subnet at a time, elsewhere."""

    def start(self, task: Task) -> Future[Record]:
        """Begins with a task."""
        ...

    def result(self, future: Future[Record]) -> Record:
        """What came of a task that is done: raises `WorkerLostError` if the worker has ended, else its error."""
        ...


class PoolExecutor:
    """Measures by several workers at once; each gets its next task when it is done with the one before.

    The task of a worker that has ended goes to a new one, before all others that wait. So nothing is lost by it, and
    since it is the caller who keeps records, nothing is doubled.

    Args:
        hire: makes a worker.
        count: workers at the same time, 1 or more.
    """

    def __init__(self, hire: Callable[[], Worker], *, count: int) -> None:
        self._hire = hire
        self._count = count
        self._idle: list[Worker] = []

    def records(self, tasks: Sequence[Task]) -> Iterator[Record]:
        """See `Executor`. All workers are hired at the first task.

        Raises:
            QuasarError: so many workers have ended over one task that it is given up.
        """
        waiting = deque(range(len(tasks)))
        busy: dict[Future[Record], tuple[int, Worker]] = {}
        done: dict[int, Record] = {}
        lost: Counter[int] = Counter()
        for index in range(len(tasks)):
            while index not in done:
                while waiting and len(busy) < self._count:
                    number, worker = waiting.popleft(), self._worker(len(busy))
                    busy[worker.start(tasks[number])] = (number, worker)
                for future in wait(busy, return_when=FIRST_COMPLETED).done:
                    number, worker = busy.pop(future)
                    try:
                        done[number] = worker.result(future)
                    except WorkerLostError as error:
                        lost[number] += 1
                        if lost[number] > RETRIES:
                            raise QuasarError(
                                f"search: {lost[number]} workers in turn have ended over subnet "
                                f"{tasks[number].subnet.digest} ({error}); continue with --resume"
                            ) from error
                        waiting.appendleft(number)
                    else:
                        self._idle.append(worker)
            yield done.pop(index)

    def _worker(self, busy: int) -> Worker:
        """One without a task; those that are missing are hired together, so that they get ready at the same time."""
        while len(self._idle) + busy < self._count:
            self._idle.append(self._hire())
        return self._idle.pop(0)
