"""The seam between a search and what measures its subnets, and the evaluator of a supernet, which keeps the books.

A search hands an evaluator the subnets of a generation at once. None of them depends on what another one turns out to
be, so they may be measured in any order and in parallel; outcomes come back in the order of the jobs.

Measuring itself is for an executor (`search.executor`), which may have it done by other processes. The books, which are
the file of evaluations and what follows from it, stay with the evaluator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from search.cache import EvaluationCache
from search.config import RacingConfig
from search.executor import Executor
from search.measurer import Task
from search.racing import Outcome, ends_race, outcome_of
from search.record import Record
from supernet.evaluate import Evaluation
from supernet.subnet import Subnet


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A subnet to measure; `incumbent` is what it may race against, without one it is measured in full."""

    subnet: Subnet
    incumbent: Subnet | None = None


class Evaluator(Protocol):
    """Measures subnets on the validation split."""

    @property
    def approximate(self) -> bool:
        """Whether outcomes may differ a little from the exact ones even if they are complete."""
        ...

    def outcomes(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """One outcome for each job, in their order, each as soon as it and all before it are known."""
        ...

    def exact(self, subnets: Sequence[Subnet]) -> Iterator[Outcome]:
        """Complete outcomes of what a search has chosen, in their order."""
        ...


class Direct:
    """An evaluator that asks a function for each subnet, and lets none race."""

    approximate = False

    def __init__(self, evaluate: Callable[[Subnet], Evaluation]) -> None:
        self._evaluate = evaluate

    def outcomes(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """See `Evaluator`."""
        return self.exact([job.subnet for job in jobs])

    def exact(self, subnets: Sequence[Subnet]) -> Iterator[Outcome]:
        """See `Evaluator`."""
        return (Outcome(evaluation=self._evaluate(subnet)) for subnet in subnets)


class SupernetEvaluator:
    """An `Evaluator` that measures no subnet twice, and can let subnets race.

    Args:
        executor: measures on one supernet and one validation split, by the same `racing`.
        cache: of that supernet, that split, its batches, and the precision of the executor.
        exact: the same for float32, where the precision is another one.
    """

    def __init__(
        self,
        executor: Executor,
        cache: EvaluationCache,
        *,
        exact: EvaluationCache | None = None,
        racing: RacingConfig | None = None,
    ) -> None:
        self._executor = executor
        self._cache = cache
        self._exact_cache = exact
        self._racing = racing

    @property
    def approximate(self) -> bool:
        """See `Evaluator`."""
        return self._exact_cache is not None

    def outcomes(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """See `Evaluator`."""
        # a search that goes on without its file of evaluations lacks the records of incumbents
        incumbents = [job.incumbent for job in jobs if job.incumbent and self._racing]
        bests = self._complete(incumbents, self._cache, exact=False)
        against = [bests.get(job.incumbent) if job.incumbent else None for job in jobs]
        known = [self._known(job.subnet, best) for job, best in zip(jobs, against, strict=True)]
        measured = self._executor.records(
            [
                Task(subnet=job.subnet, best=best, seen=self._looks(job.subnet))
                for job, best, record in zip(jobs, against, known, strict=True)
                if record is None
            ]
        )
        for job, best, record in zip(jobs, against, known, strict=True):
            found = record
            if found is None:
                found = next(measured)
                self._cache.put(job.subnet.digest, found)
            yield outcome_of(found, best)

    def exact(self, subnets: Sequence[Subnet]) -> Iterator[Outcome]:
        """See `Evaluator`: in float32."""
        records = self._complete(subnets, self._exact_cache or self._cache, exact=True)
        return (outcome_of(records[subnet], None) for subnet in subnets)

    def _complete(self, subnets: Sequence[Subnet], cache: EvaluationCache, *, exact: bool) -> dict[Subnet, Record]:
        wanted = {subnet: cache.get(subnet.digest) for subnet in subnets}
        known = {subnet: record for subnet, record in wanted.items() if record is not None and record.complete}
        missing = [subnet for subnet in wanted if subnet not in known]
        tasks = [Task(subnet=subnet, exact=exact) for subnet in missing]
        for subnet, record in zip(missing, self._executor.records(tasks), strict=True):
            cache.put(subnet.digest, record)
            known[subnet] = record
        return known

    def _known(self, subnet: Subnet, best: Record | None) -> Record | None:
        """What the cache has of a subnet up to the end of its race against `best`; None if that end is not in it."""
        record = self._cache.get(subnet.digest)
        if record is None or best is None or self._racing is None:
            return record if record is not None and record.complete else None
        looks = map(record.until, range(1, len(record.looks) + 1))
        return next((part for part in looks if ends_race(part, best, self._racing)), None)

    def _looks(self, subnet: Subnet) -> int:
        record = self._cache.get(subnet.digest)
        return 0 if record is None else len(record.looks)
