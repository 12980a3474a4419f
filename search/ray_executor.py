"""Actors of Ray that measure subnets, on the cluster that is connected (`ray.init`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from hwmodel.errors import QuasarError, WorkerLostError
from search.executor import Measure, PoolExecutor
from search.measurer import Task
from search.record import Record


class _Measuring:
    """What an actor is: it gets ready with its first task, so that an error on the way is that of a task."""

    def __init__(self, build: Callable[[], Measure]) -> None:
        self._build = build
        self._measure: Measure | None = None

    def measure(self, task: Task) -> Record:
        if self._measure is None:
            self._measure = self._build()
        return self._measure(task)


class _Actor:
    """A `search.executor.Worker` that is an actor."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def start(self, task: Task) -> Future[Record]:
        """See `Worker`."""
        future: Future[Record] = self._handle.measure.remote(task).future()
        return future

    def result(self, future: Future[Record]) -> Record:
        """See `Worker`."""
        from ray.exceptions import RayError, RayTaskError

        try:
            return future.result()
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, QuasarError) else error from None
        except RayError as error:
            raise WorkerLostError((str(error).strip() or type(error).__name__).splitlines()[0]) from error


@contextmanager
def ray_executor(build: Callable[[], Measure], *, count: int, cpus: int, gpus: int) -> Iterator[PoolExecutor]:
    """Measures by `count` actors, each of which takes so many of the cluster's CPU cores and GPUs. They end with this.

    Args:
        build: makes what measures, in each actor; it is pickled.
    """
    import ray

    shared = ray.put(build)  # once for all actors: it may hold the outputs of a reference
    actor = ray.remote(_Measuring).options(num_cpus=cpus, num_gpus=gpus)
    handles: list[Any] = []

    def hire() -> _Actor:
        handles.append(actor.remote(shared))
        return _Actor(handles[-1])

    try:
        yield PoolExecutor(hire, count=count)
    finally:
        for handle in handles:
            ray.kill(handle)
