"""One search: bounds first, then generations of ask, evaluate and tell, then the best subnet for each target.

Evaluated trials are appended to a journal. A search is a function of its settings and seed, so resuming is replaying:
the algorithm asks for the same subnets again and those in the journal are not evaluated a second time. Subnets may race
(`search.racing`): the incumbents of a generation are from those before it, so that its subnets do not depend on each
other, and each is written down as soon as its race is over. In the end the best under each target are measured in full
and in float32, and the most accurate of them is chosen.

A search for one accelerator that targets share has two halves, each with an algorithm of its own; see `search.sharing`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwmodel.adaptive import AdaptiveCostModel
from hwmodel.cost import CostModel
from hwmodel.errors import DamagedInputError
from hwmodel.files import append_line, write_atomic
from search.algorithm import ALGORITHMS, FloatArray, SearchAlgorithm, SearchProblem
from search.bounds import LatencyBounds
from search.cache import whole_lines
from search.config import Limits, SearchConfig, Target
from search.evaluator import Evaluator, Job
from search.limits import Feasibility, costs_function
from search.racing import Outcome
from search.sharing import repriced, shared_model, within_limits
from search.trial import Choice, ParetoFront, Trial, best_under, most_accurate_first
from supernet.config import Progress
from supernet.evaluate import Evaluation
from supernet.space import Genotypes, SearchSpace
from supernet.subnet import Subnet


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """A choice for each target, in the order of the targets, and all trials behind them.

    `model` is the hardware that latencies and `bounds` are for: the one that the search was given, or the accelerator
    that it found for all targets. `curve` is the hypervolume after each generation, as (evaluations, hypervolume);
    `report` what the algorithm says about itself; `stopped` why the search ended before its budget, if it did.
    """

    choices: tuple[Choice, ...]
    trials: tuple[Trial, ...]
    front: ParetoFront
    bounds: LatencyBounds
    model: CostModel
    hypervolume: float
    curve: tuple[tuple[int, float], ...]
    report: dict[str, Any]
    stopped: str | None


def algorithm_names() -> list[str]:
    """The registered search algorithms."""
    import search.evolution
    import search.optuna_search
    import search.predictor_search
    import search.random_search
    import search.sensitivity  # noqa: F401  (they register themselves)

    return ALGORITHMS.names()


def run_search(
    *,
    space: SearchSpace,
    model: CostModel,
    config: SearchConfig,
    evaluator: Evaluator,
    journal: Path,
    seed: int,
    progress: Progress,
    shared: bool = False,
    observe: Callable[[Sequence[Trial]], None] | None = None,
    expected_divergence: FloatArray | None = None,
) -> SearchResult:
    """Searches `space` for the best subnet under each target.

    A target that no subnet meets is answered at once, with the nearest latency that the space has; nothing is
    evaluated if that goes for all of them.

    Args:
        model: the hardware: one accelerator for all subnets, or the best one for each.
        evaluator: measures subnets on the validation split, against the best ones so far where it lets them race.
        journal: JSONL file to which trials are appended; those already in it are reused.
        shared: with the best accelerator for each subnet, find one for all targets on the way: see `search.sharing`.
        observe: is given the trials of each generation, as measured by then, on the hardware of the result.
        expected_divergence: see `SearchProblem`; algorithms that need it cannot go without.

    Raises:
        UsageError: an unknown algorithm, or one that is not made for this space.
        DamagedInputError: the journal cannot be read.
    """
    algorithm_names()
    build = ALGORITHMS.get(config.algorithm)
    part = _Part.of(space, model, config, expected_divergence)
    own = part.feasibility
    found, finalists = _Found(trials=[], report={}, stopped=None), frozenset[int]()
    if part.limits_ms:
        ledger = Ledger(space, evaluator, journal)
        budget = -(-config.evaluations // 2) if shared else config.evaluations
        rng = np.random.default_rng(seed)
        found = part.run(
            build, ledger, budget, known=[], rng=rng, progress=progress, observe=None if shared else observe
        )
        if shared:
            assert isinstance(model, AdaptiveCostModel)
            model = shared_model(space, model, found.trials, config.limits, part.limits_ms)
            part = _Part.of(space, model, config, expected_divergence)
            known = repriced(space, part.model, found.trials)
            # A stream of its own: what the first half has drawn from the other one differs between algorithms.
            rng = np.random.default_rng((seed, 1))
            found = dataclasses.replace(found, trials=known)
            if part.limits_ms:
                if observe is not None:
                    observe(known)
                found = part.run(
                    build, ledger, config.evaluations, known=known, rng=rng, progress=progress, observe=observe
                )
            ledger.set_latencies(found.trials)
        found, finalists = part.with_finalists(found, ledger)
    trials = within_limits(space, part.model, found.trials, config.limits) if shared else found.trials
    curve = _hypervolumes(found.trials, trials, part.feasibility.bounds.slowest_ms)
    return SearchResult(
        choices=tuple(_choose(target, trials, finalists, part, own) for target in config.targets),
        trials=tuple(found.trials),
        front=ParetoFront.of(trials),
        bounds=part.feasibility.bounds,
        model=part.model,
        hypervolume=curve[-1][1] if curve else 0.0,
        curve=curve,
        report=found.report,
        stopped=found.stopped,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """What a part of a search has measured, with what it was told, and what its algorithm says."""

    trials: list[Trial]
    report: dict[str, Any]
    stopped: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """The part of a search, or all of it, that is on one hardware; `limits_ms` are those of targets that can be met."""

    space: SearchSpace
    model: CostModel
    config: SearchConfig
    feasibility: Feasibility
    limits_ms: tuple[float, ...]
    expected_divergence: FloatArray | None

    @staticmethod
    def of(
        space: SearchSpace,
        model: CostModel,
        config: SearchConfig,
        expected_divergence: FloatArray | None,
    ) -> _Part:
        feasibility, cap_ms = Feasibility.of(space, model, config.limits), config.limits.limit_ms
        limits_ms = sorted({min(t.limit_ms, cap_ms) for t in config.targets if not feasibility.reason(t)})
        return _Part(
            space=space,
            model=model,
            config=config,
            feasibility=feasibility,
            limits_ms=tuple(limits_ms),
            expected_divergence=expected_divergence,
        )

    def run(
        self,
        build: Callable[[SearchProblem], SearchAlgorithm],
        ledger: Ledger,
        evaluations: int,
        *,
        known: list[Trial],
        rng: np.random.Generator,
        progress: Progress,
        observe: Callable[[Sequence[Trial]], None] | None,
    ) -> _Found:
        """Goes on from the known trials until there are `evaluations`, or the algorithm finds no more."""
        config = self.config
        costs_of = costs_function(self.space, self.model, config.limits)
        problem = SearchProblem(
            space=self.space,
            costs_of=costs_of,
            bounds=self.feasibility.bounds,
            anchors=self.feasibility.anchors,
            limits_ms=self.limits_ms,
            settings=config,
            rng=rng,
            known=tuple(known),
            expected_divergence=self.expected_divergence,
        )
        algorithm = build(problem)
        trials = list(known)
        generation = known[-1].generation + 1 if known else 0
        leaders: dict[float, Trial] = {}  # the best so far under each limit
        for trial in problem.known_within():
            self._lead(leaders, trial)
        summary = _summary(leaders)
        stopped: str | None = None
        while len(trials) < evaluations:
            genotypes = algorithm.ask(min(config.population, evaluations - len(trials)))
            if len(genotypes) == 0:
                stopped = (
                    f"{config.algorithm} found no further subnet within the limits, in its bounded number of attempts, "
                    f"after {len(trials)} of {config.evaluations} evaluations"
                )
                break
            told = len(trials)
            latency_ms = costs_of(genotypes).latency_ms
            # Of the targets that a subnet meets, the tightest is the one where it has the least to beat.
            tightest = (
                next((limit for limit in self.limits_ms if ms <= limit), math.inf) for ms in latency_ms.tolist()
            )
            incumbents = [leaders.get(limit_ms) for limit_ms in tightest]
            for trial in ledger.measure(genotypes, latency_ms, incumbents, start=told, generation=generation):
                trials.append(trial)
                if self._lead(leaders, trial):
                    summary = _summary(leaders)
                progress(len(trials), config.evaluations, summary)
            algorithm.tell(trials[told:])
            if observe is not None:
                observe(trials[told:])
            generation += 1
        return _Found(trials=trials, report=algorithm.report(), stopped=stopped)

    def _lead(self, leaders: dict[float, Trial], trial: Trial) -> bool:
        """Makes the trial the leader under each limit where it is the best one measured in full; says if it is one."""
        led = False
        for limit_ms in self.limits_ms:
            leader = leaders.get(limit_ms)
            if trial.complete and trial.latency_ms <= limit_ms and (leader is None or trial.quality > leader.quality):
                leaders[limit_ms], led = trial, True
        return led

    def with_finalists(self, found: _Found, ledger: Ledger) -> tuple[_Found, frozenset[int]]:
        """What was found, with exact figures of the best trials under each limit, and the indices of these."""
        trials, count = found.trials, self.config.finalists_of_target
        exact = {trial.index for trial in trials if trial.complete and not ledger.approximate}
        while True:
            kept = within_limits(self.space, self.model, trials, self.config.limits)
            best = [trial for limit_ms in self.limits_ms for trial in best_under(kept, limit_ms, count=count)]
            missing = {trial.index: trial for trial in best if trial.index not in exact}
            if not missing:
                return dataclasses.replace(found, trials=trials), frozenset(trial.index for trial in best)
            completed = dict(zip(missing, ledger.completed(list(missing.values())), strict=True))
            trials = [completed.get(trial.index, trial) for trial in trials]
            exact.update(missing)


class Ledger:
    """Measures subnets, and writes each one down before the next; what a journal holds is not measured again."""

    def __init__(self, space: SearchSpace, evaluator: Evaluator, journal: Path) -> None:
        self._space = space
        self._evaluator = evaluator
        self._journal = journal
        self._known = read_journal(journal)

    def measure(
        self,
        genotypes: Genotypes,
        latency_ms: FloatArray,
        incumbents: Sequence[Trial | None] | None = None,
        *,
        start: int,
        generation: int,
    ) -> Iterator[Trial]:
        """The trials of canonical genotypes (N, G) with latencies (N,), in their order; indices from `start`.

        Args:
            incumbents: what each is to race against, N of them; without one it is measured in full.
        """
        subnets = [self._space.decode(genotype) for genotype in genotypes]
        digests = [subnet.digest for subnet in subnets]
        known = [self._known.get(digest) for digest in digests]
        bests = {trial: self._subnet(trial) for trial in set(incumbents or []) if trial is not None}
        measured = self._evaluator.outcomes(
            [
                Job(subnet=subnet, incumbent=None if incumbent is None else bests[incumbent])
                for subnet, incumbent, outcome in zip(subnets, incumbents or [None] * len(subnets), known, strict=True)
                if outcome is None
            ]
        )
        rows = zip(genotypes, digests, latency_ms.tolist(), known, strict=True)
        for index, (genotype, digest, latency, before) in enumerate(rows, start=start):
            outcome = next(measured) if before is None else before
            trial = Trial(
                index=index,
                generation=generation,
                digest=digest,
                genotype=tuple(genotype.tolist()),
                latency_ms=latency,
                **_figures(outcome),
            )
            if before is None:
                append_line(self._journal, json.dumps(trial.to_dict() | {"images": outcome.evaluation.images}))
            yield trial

    @property
    def approximate(self) -> bool:
        """Whether figures of complete trials differ a little from those of `completed`."""
        return self._evaluator.approximate

    def completed(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials with exact figures. The journal keeps what the algorithm was told: it must ask for these again."""
        outcomes = self._evaluator.exact([self._subnet(trial) for trial in trials])
        return [
            dataclasses.replace(trial, **_figures(outcome)) for trial, outcome in zip(trials, outcomes, strict=True)
        ]

    def _subnet(self, trial: Trial) -> Subnet:
        return self._space.decode(np.array(trial.genotype, dtype=np.int64))

    def set_latencies(self, trials: Sequence[Trial]) -> None:
        """Gives the trials in the journal these latencies, for readers; a search reads none of them back."""
        latency = {trial.digest: trial.latency_ms for trial in trials}
        lines = [json.loads(line) for line in self._journal.read_text(encoding="utf-8").splitlines()]
        lines = [line | {"latency_ms": latency.get(line["digest"], line["latency_ms"])} for line in lines]
        write_atomic(self._journal, "".join(json.dumps(line) + "\n" for line in lines))


def _figures(outcome: Outcome) -> dict[str, Any]:
    """What a trial says of an outcome."""
    measured = outcome.evaluation
    return {
        "val_accuracy": measured.accuracy,
        "val_loss": measured.loss,
        "val_kl": outcome.kl,
        "complete": outcome.complete,
    }


def _hypervolumes(
    trials: Sequence[Trial], counted: Sequence[Trial], slowest_ms: float
) -> tuple[tuple[int, float], ...]:
    """(evaluations, hypervolume of the trials that count) after each generation."""
    new: dict[int, list[Trial]] = {}
    for trial in counted:
        new.setdefault(trial.generation, []).append(trial)
    front, curve = ParetoFront(trials=()), []
    for generation, evaluations in sorted({trial.generation: trial.index + 1 for trial in trials}.items()):
        front = ParetoFront.of([*front.trials, *new.get(generation, [])])
        curve.append((evaluations, front.hypervolume(slowest_ms=slowest_ms)))
    return tuple(curve)


def _choose(
    target: Target, trials: Sequence[Trial], finalists: frozenset[int], part: _Part, own: Feasibility
) -> Choice:
    """The most accurate of the finalists; `own` is what accelerators of their own can meet, if targets share one."""
    config, limit_ms, fastest_ms = part.config, target.limit_ms, part.feasibility.bounds.fastest_ms
    reason = part.feasibility.reason(target)
    if reason:
        if not own.reason(target):
            reason += "; that is on the accelerator for all targets: hardware.accelerator=per_subnet may meet it"
        return Choice(limit_ms=limit_ms, reason=reason, nearest_latency_ms=fastest_ms)
    best = best_under([t for t in trials if t.index in finalists], limit_ms, count=config.finalists_of_target)
    best = most_accurate_first(best, count=config.finalists)[: config.top]
    if not best:
        together = " together with search.limits" if config.limits != Limits() else ""
        return Choice(
            limit_ms=limit_ms,
            reason=f"{target} can be met, but none of the {len(trials)} evaluated subnets does{together}; raise "
            f"search.evaluations{' or a limit' if together else ''}",
            nearest_latency_ms=min((t.latency_ms for t in trials), default=fastest_ms),
        )
    return Choice(
        limit_ms=limit_ms,
        trial=best[0],
        subnet=part.space.decode(np.array(best[0].genotype, dtype=np.int64)),
        alternatives=tuple(best[1:]),
    )


def _summary(leaders: Mapping[float, Trial]) -> str:
    def figure(trial: Trial) -> str:
        return f"{trial.val_accuracy:.1%}" if trial.val_kl is None else f"KL {trial.val_kl:.4f}"

    return "best: " + "  ".join(f"{limit:.3g} ms {figure(leaders[limit])}" for limit in sorted(leaders))


def read_journal(journal: Path) -> dict[str, Outcome]:
    """What has been evaluated, by digest. A last line without its end, as a kill leaves it, is cut off."""
    known = {}
    for number, line in enumerate(whole_lines(journal), start=1):
        try:
            row = json.loads(line)
            evaluation = Evaluation(
                accuracy=float(row["val_accuracy"]), loss=float(row["val_loss"]), images=int(row["images"])
            )
            kl = None if row.get("val_kl") is None else float(row["val_kl"])
            known[row["digest"]] = Outcome(evaluation=evaluation, kl=kl, complete=bool(row.get("complete", True)))
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedInputError(
                f"{journal}:{number}: is not a trial ({type(error).__name__}: {error}); remove the file to search anew"
            ) from None
    return known
