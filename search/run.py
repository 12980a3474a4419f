"""One search: bounds first, then generations of ask, evaluate and tell, then the best subnet for each target.

Evaluated trials are appended to a journal. A search is a function of its settings and seed, so resuming is replaying:
the algorithm asks for the same subnets again and those in the journal are not evaluated a second time.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwmodel.cost import CostModel
from hwmodel.errors import DamagedInputError
from hwmodel.files import append_line, write_atomic
from search.algorithm import ALGORITHMS, SearchProblem
from search.bounds import LatencyBounds, latency_bounds
from search.config import SearchConfig, Target
from search.evaluator import Evaluator
from search.trial import Choice, ParetoFront, Trial, best_under
from supernet.config import Progress
from supernet.evaluate import Evaluation
from supernet.lowering import lower_many
from supernet.space import Genotypes, SearchSpace


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """A choice for each target, in the order of the targets, and all trials behind them."""

    choices: tuple[Choice, ...]
    trials: tuple[Trial, ...]
    front: ParetoFront
    bounds: LatencyBounds
    hypervolume: float


def algorithm_names() -> list[str]:
    """The registered search algorithms."""
    import search.evolution
    import search.random_search  # noqa: F401  (both register themselves)

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
    bounds = latency_bounds(space, model)
    feasible = sorted(t.limit_ms for t in config.targets if not infeasible_reason(t, bounds))
    trials: list[Trial] = []
    if feasible:

        def latency_of(genotypes: Genotypes) -> NDArray[np.float64]:
            batch = model.estimate_many(lower_many(space.arrays(genotypes)))
            return np.where(batch.fits, batch.latency_ms, np.inf)

        algorithm = build(
            SearchProblem(
                space=space,
                latency_of=latency_of,
                bounds=bounds,
                limits_ms=tuple(feasible),
                settings=config,
                rng=np.random.default_rng(seed),
            )
        )
        known = _read_journal(journal)
        generation = 0
        while len(trials) < config.evaluations:
            genotypes = algorithm.ask(min(config.population, config.evaluations - len(trials)))
            if len(genotypes) == 0:
                break  # the algorithm knows no further feasible subnet
            told = len(trials)
            for genotype, latency_ms in zip(genotypes, latency_of(genotypes), strict=True):
                subnet = space.decode(genotype)
                measured = known.get(subnet.digest)
                fresh = measured is None
                if measured is None:
                    measured = evaluator(subnet)
                trial = Trial(
                    index=len(trials),
                    generation=generation,
                    digest=subnet.digest,
                    genotype=tuple(genotype.tolist()),
                    val_accuracy=measured.accuracy,
                    val_loss=measured.loss,
                    latency_ms=float(latency_ms),
                )
                if fresh:
                    _append(journal, trial, images=measured.images)
                trials.append(trial)
                progress(len(trials), config.evaluations, _summary(trials, feasible))
            algorithm.tell(trials[told:])
            generation += 1
    front = ParetoFront.of(trials)
    return SearchResult(
        choices=tuple(_choose(target, trials, space, bounds) for target in config.targets),
        trials=tuple(trials),
        front=front,
        bounds=bounds,
        hypervolume=front.hypervolume(slowest_ms=bounds.slowest_ms),
    )


def infeasible_reason(target: Target, bounds: LatencyBounds) -> str | None:
    """Why no subnet of the space can meet the target, with the nearest latency; None if one can."""
    if target.limit_ms >= bounds.fastest_ms:
        return None
    return (
        f"no subnet of the space meets {target}: the fastest takes {_up(bounds.fastest_ms)} ms "
        f"({math.floor(1000 / bounds.fastest_ms)} FPS); give the space smaller choices, or the device a larger array "
        "or a faster clock"
    )


def _up(latency_ms: float) -> str:
    """Six digits, rounded up: as a target it can be met."""
    step = 10.0 ** (math.floor(math.log10(latency_ms)) - 5)
    return f"{math.ceil(latency_ms / step - 1e-6) * step:.6g}"


def _choose(target: Target, trials: list[Trial], space: SearchSpace, bounds: LatencyBounds) -> Choice:
    limit_ms = target.limit_ms
    reason = infeasible_reason(target, bounds)
    if reason:
        return Choice(limit_ms=limit_ms, trial=None, subnet=None, reason=reason, nearest_latency_ms=bounds.fastest_ms)
    best = best_under(trials, limit_ms)
    if not best:
        return Choice(
            limit_ms=limit_ms,
            trial=None,
            subnet=None,
            reason=f"{target} can be met, but none of the {len(trials)} evaluated subnets does; raise "
            "search.evaluations",
            nearest_latency_ms=min((t.latency_ms for t in trials), default=bounds.fastest_ms),
        )
    return Choice(limit_ms=limit_ms, trial=best[0], subnet=space.decode(np.array(best[0].genotype, dtype=np.int64)))


def _summary(trials: list[Trial], limits_ms: list[float]) -> str:
    best = (best_under(trials, limit) for limit in limits_ms)
    return "best: " + "  ".join(
        f"{limit:.3g} ms {found[0].val_accuracy:.1%}" for limit, found in zip(limits_ms, best, strict=True) if found
    )


def _append(journal: Path, trial: Trial, *, images: int) -> None:
    append_line(journal, json.dumps(trial.to_dict() | {"images": images}))


def _read_journal(journal: Path) -> dict[str, Evaluation]:
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
