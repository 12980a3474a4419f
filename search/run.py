"""One search: bounds first, then generations of ask, evaluate and tell, then the best subnet for each target.

Evaluated trials are appended to a journal. A search is a function of its settings and seed, so resuming is replaying:
the algorithm asks for the same subnets again and those in the journal are not evaluated a second time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwmodel.cost import CostModel
from hwmodel.errors import DamagedInputError
from hwmodel.files import append_line, write_atomic
from search.algorithm import ALGORITHMS, CostsOf, SearchProblem
from search.bounds import LatencyBounds
from search.config import Limits, SearchConfig, Target
from search.evaluator import Evaluator
from search.limits import Feasibility, costs_function
from search.trial import Choice, ParetoFront, Trial, best_under
from supernet.config import Progress
from supernet.evaluate import Evaluation
from supernet.space import Genotypes, SearchSpace


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """A choice for each target, in the order of the targets, and all trials behind them.

    `curve` is the hypervolume after each generation, as (evaluations, hypervolume); `report` what the algorithm says
    about itself; `stopped` why the search ended before its budget, if it did.
    """

    choices: tuple[Choice, ...]
    trials: tuple[Trial, ...]
    front: ParetoFront
    bounds: LatencyBounds
    hypervolume: float
    curve: tuple[tuple[int, float], ...]
    report: dict[str, Any]
    stopped: str | None


def algorithm_names() -> list[str]:
    """The registered search algorithms."""
    import search.evolution
    import search.optuna_search
    import search.predictor_search
    import search.random_search  # noqa: F401  (they register themselves)

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
) -> SearchResult:
    """Searches `space` for the most accurate subnet under each target.

    A target that no subnet meets is answered at once, with the nearest latency that the space has; nothing is
    evaluated if that goes for all of them.

    Args:
        evaluator: the accuracy and loss of one subnet on the validation split.
        journal: JSONL file to which trials are appended; those already in it are reused.

    Raises:
        UsageError: an unknown algorithm.
        DamagedInputError: the journal cannot be read.
    """
    algorithm_names()
    build = ALGORITHMS.get(config.algorithm)
    feasibility = Feasibility.of(space, model, config.limits)
    bounds, cap_ms = feasibility.bounds, config.limits.limit_ms
    limits_ms = sorted({min(t.limit_ms, cap_ms) for t in config.targets if not feasibility.reason(t)})
    trials: list[Trial] = []
    curve: list[tuple[int, float]] = []
    front = ParetoFront(trials=())
    leaders: dict[float, Trial] = {}  # the best so far under each limit
    report: dict[str, Any] = {}
    stopped: str | None = None
    if limits_ms:
        costs_of = costs_function(space, model, config.limits)
        algorithm = build(
            SearchProblem(
                space=space,
                costs_of=costs_of,
                bounds=bounds,
                anchors=feasibility.anchors,
                limits_ms=tuple(limits_ms),
                settings=config,
                rng=np.random.default_rng(seed),
            )
        )
        ledger = Ledger(space, costs_of, evaluator, journal)
        generation = 0
        while len(trials) < config.evaluations:
            genotypes = algorithm.ask(min(config.population, config.evaluations - len(trials)))
            if len(genotypes) == 0:
                stopped = (
                    f"{config.algorithm} found no further subnet within the limits, in its bounded number of attempts, "
                    f"after {len(trials)} of {config.evaluations} evaluations"
                )
                break
            told = len(trials)
            for trial in ledger.measure(genotypes, start=told, generation=generation):
                trials.append(trial)
                for limit_ms in limits_ms:
                    leader = leaders.get(limit_ms)
                    if trial.latency_ms <= limit_ms and (leader is None or trial.quality > leader.quality):
                        leaders[limit_ms] = trial
                progress(len(trials), config.evaluations, _summary(leaders))
            algorithm.tell(trials[told:])
            generation += 1
            front = ParetoFront.of([*front.trials, *trials[told:]])
            curve.append((len(trials), front.hypervolume(slowest_ms=bounds.slowest_ms)))
        report = algorithm.report()
    return SearchResult(
        choices=tuple(_choose(target, trials, space, feasibility, config) for target in config.targets),
        trials=tuple(trials),
        front=front,
        bounds=bounds,
        hypervolume=curve[-1][1] if curve else 0.0,
        curve=tuple(curve),
        report=report,
        stopped=stopped,
    )


class Ledger:
    """Measures subnets, and writes each one down before the next; what a journal holds is not measured again."""

    def __init__(self, space: SearchSpace, costs_of: CostsOf, evaluator: Evaluator, journal: Path) -> None:
        self._space = space
        self._costs_of = costs_of
        self._evaluator = evaluator
        self._journal = journal
        self._known = read_journal(journal)

    def measure(self, genotypes: Genotypes, *, start: int, generation: int) -> Iterator[Trial]:
        """The trials of canonical genotypes (N, G), one after the other; their indices count from `start`."""
        latency = self._costs_of(genotypes).latency_ms.tolist()
        for index, (genotype, latency_ms) in enumerate(zip(genotypes, latency, strict=True), start=start):
            subnet = self._space.decode(genotype)
            digest = subnet.digest
            known = self._known.get(digest)
            measured = self._evaluator(subnet) if known is None else known
            trial = Trial(
                index=index,
                generation=generation,
                digest=digest,
                genotype=tuple(genotype.tolist()),
                val_accuracy=measured.accuracy,
                val_loss=measured.loss,
                latency_ms=latency_ms,
            )
            if known is None:
                append_line(self._journal, json.dumps(trial.to_dict() | {"images": measured.images}))
            yield trial


def _choose(
    target: Target, trials: Sequence[Trial], space: SearchSpace, feasibility: Feasibility, config: SearchConfig
) -> Choice:
    limit_ms, fastest_ms = target.limit_ms, feasibility.bounds.fastest_ms
    reason = feasibility.reason(target)
    if reason:
        return Choice(limit_ms=limit_ms, reason=reason, nearest_latency_ms=fastest_ms)
    best = best_under(trials, limit_ms, count=config.top)
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
        subnet=space.decode(np.array(best[0].genotype, dtype=np.int64)),
        alternatives=tuple(best[1:]),
    )


def _summary(leaders: Mapping[float, Trial]) -> str:
    return "best: " + "  ".join(f"{limit:.3g} ms {leaders[limit].val_accuracy:.1%}" for limit in sorted(leaders))


def read_journal(journal: Path) -> dict[str, Evaluation]:
    """What has been evaluated, by digest. A last line without its end, as a kill leaves it, is cut off."""
    if not journal.exists():
        return {}
    try:
        text = journal.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DamagedInputError(f"{journal}: cannot be read as text ({error}); remove it to search anew") from None
    whole, _, rest = text.rpartition("\n")
    if rest:
        write_atomic(journal, whole + "\n" if whole else "")
    known = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            known[row["digest"]] = Evaluation(
                accuracy=float(row["val_accuracy"]), loss=float(row["val_loss"]), images=int(row["images"])
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedInputError(
                f"{journal}:{number}: is not a trial ({type(error).__name__}: {error}); remove the file to search anew"
            ) from None
    return known
