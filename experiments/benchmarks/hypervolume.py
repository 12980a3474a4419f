"""How many evaluations a search needs on a trained supernet to be as good as random search with 1,000.

Part of `experiments/benchmarks/search.py --run RUN --hypervolume`, which says what is printed.

Accuracy is that on the first 1,000 validation images, with products of codes where the CPU has them
(`supernet.stores`), at the limits of the run's targets. Random search is `search.algorithm=random`: one pool of 2,000
of its proposals is measured, and for each seed 1,000 of them are drawn without replacement. Every algorithm runs for
each seed until it has reached that draw in both figures, or its budget is spent:

    hypervolume   the area between the front and the corner (slowest subnet, accuracy 0); see `search.trial`. A front
                  gets much of it from its fastest subnet, where accuracies differ by few points
    accuracy      the mean over the targets of the best accuracy under each; nothing is gained from fast subnets

AutoFormer's evolution is our own implementation of its published rule (microsoft/Cream, AutoFormer/evolution.py): a
population of 50, the 10 best of all so far as parents, 25 children by mutation (each gene of a block is redrawn with
probability 0.2, width, depth and image size with 0.4), 25 by uniform crossover of two parents of one depth, at most ten
attempts for each, the rest drawn at random. What lies outside a range of cost is rejected. It searches one range at a
time; here it has one population for each target, in the range above the target before, and these take turns, since a
single range would leave the front between the targets to chance. Its loop over random candidates has no bound; here
that is two million.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)

from quasar.pipeline import load_supernet, open_splits
from quasar.run_folder import RunFolder
from quasar.targets import build_cost_model
from search.algorithm import ALGORITHMS, SearchAlgorithm, SearchProblem
from search.cache import EvaluationCache
from search.limits import Feasibility, costs_function
from search.record import Record
from search.trial import ParetoFront, Trial, best_under
from supernet.evaluate import outputs
from supernet.space import GLOBAL_GENES, Genotypes
from supernet.stores import Stores, fastest_precision
from supernet.subnet import Subnet

IMAGES = 1000
RANDOM = 1000
POOL = 2000
FIGURES = ("hypervolume", "accuracy")


class AutoFormerEvolution:
    """See the module's docstring, and `search.algorithm.SearchAlgorithm`."""

    population, parents, mutated, crossed = 50, 10, 25, 25
    of_block, of_whole = 0.2, 0.4
    attempts, most_drawn = 10, 2_000_000

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem
        self._ranges = list(zip((0.0, *problem.limits_ms[:-1]), problem.limits_ms, strict=True))
        self._best: list[list[tuple[float, Genotypes]]] = [[] for _ in self._ranges]
        self._seen: set[bytes] = set()
        self._queue: deque[tuple[int, Genotypes]] = deque()  # which range, and what is to be measured for it
        self._asked: list[tuple[int, Genotypes]] = []
        self._told: list[list[tuple[float, Genotypes]]] = [[] for _ in self._ranges]

    def ask(self, count: int) -> Genotypes:
        """The next candidates of the generation at hand; those of the ranges take turns."""
        if not self._queue:
            for index, told in enumerate(self._told):
                ranked = sorted([*self._best[index], *told], key=lambda pair: -pair[0])
                self._best[index], self._told[index] = ranked[: self.parents], []
            generations = [self._generation(index) for index in range(len(self._ranges))]
            for turn in range(self.population):
                self._queue.extend(
                    (i, of_range[turn]) for i, of_range in enumerate(generations) if turn < len(of_range)
                )
        self._asked = [self._queue.popleft() for _ in range(min(count, len(self._queue)))]
        return np.array([genotype for _, genotype in self._asked], dtype=np.int64)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Keeps them for the end of the generation."""
        for (index, genotype), trial in zip(self._asked, trials, strict=True):
            self._told[index].append((trial.val_accuracy, genotype))

    def report(self) -> dict[str, Any]:
        """Nothing to say."""
        return {}

    def _generation(self, index: int) -> list[Genotypes]:
        found: list[Genotypes] = []
        parents = [genotype for _, genotype in self._best[index]]
        for breed, count in ((self._mutant, self.mutated), (self._cross, self.crossed)):
            if parents:
                found += self._legal(index, (breed(parents) for _ in range(self.attempts * count)), count)
        return found + self._legal(index, self._random(index), self.population - len(found))

    def _legal(self, index: int, candidates: Iterator[Genotypes], count: int) -> list[Genotypes]:
        """The first `count` candidates in the range that are new."""
        least_ms, most_ms = self._ranges[index]
        found: list[Genotypes] = []
        while len(found) < count and (genotype := next(candidates, None)) is not None:
            latency_ms = self._problem.costs_of(genotype[None]).latency_ms[0]
            if least_ms < latency_ms <= most_ms and genotype.tobytes() not in self._seen:
                self._seen.add(genotype.tobytes())
                found.append(genotype)
        return found

    def _random(self, index: int) -> Iterator[Genotypes]:
        least_ms, most_ms = self._ranges[index]
        space, rng, batch = self._problem.space, self._problem.rng, 20_000
        for _ in range(self.most_drawn // batch):
            drawn = space.sample(rng, batch)
            latency_ms = self._problem.costs_of(drawn).latency_ms
            yield from drawn[(least_ms < latency_ms) & (latency_ms <= most_ms)]

    def _mutant(self, parents: list[Genotypes]) -> Genotypes:
        space, rng = self._problem.space, self._problem.rng
        parent = parents[rng.integers(len(parents))]
        fresh = rng.integers(0, space.gene_sizes)
        redrawn = rng.random(len(parent)) < self.of_block
        redrawn[: len(GLOBAL_GENES)] = rng.random(len(GLOBAL_GENES)) < self.of_whole
        depth = space.depth[parent[GLOBAL_GENES.index("depth")]]
        per_block = (len(parent) - len(GLOBAL_GENES)) // space.max_depth
        redrawn[len(GLOBAL_GENES) + depth * per_block :] = True  # blocks that the parent does not have
        return space.canonical(np.where(redrawn, fresh, parent)[None])[0]

    def _cross(self, parents: list[Genotypes]) -> Genotypes:
        rng, depth = self._problem.rng, GLOBAL_GENES.index("depth")
        for _ in range(50):
            first, second = (parents[rng.integers(len(parents))] for _ in range(2))
            if first[depth] == second[depth]:
                break
        return self._problem.space.canonical(np.where(rng.random(len(first)) < 0.5, first, second)[None])[0]


ALGORITHMS.register("autoformer")(AutoFormerEvolution)


class Front:
    """The two figures of what has been measured so far."""

    def __init__(self, limits_ms: Sequence[float], slowest_ms: float) -> None:
        self._limits_ms = limits_ms
        self._slowest_ms = slowest_ms
        self._front = ParetoFront(trials=())

    def add(self, trial: Trial) -> dict[str, float]:
        """The figures with one more trial."""
        self._front = front = ParetoFront.of([*self._front.trials, trial])
        best = [best_under(front.trials, limit_ms) for limit_ms in self._limits_ms]
        accuracy = statistics.mean(trials[0].val_accuracy if trials else 0.0 for trials in best)
        return {"hypervolume": front.hypervolume(slowest_ms=self._slowest_ms), "accuracy": accuracy}


class Comparison:
    """Measures algorithms on the supernet of a run; `cache` is a file that a killed comparison goes on from."""

    def __init__(self, folder: Path, cache: Path) -> None:
        run = RunFolder(folder)
        self._config = run.config()
        self._space = self._config.space
        self._model = build_cost_model(self._config)
        supernet, checkpoint = load_supernet(run, self._config)
        _, self._split = open_splits(self._config)
        precision = fastest_precision(supernet.cls_token.device)
        self._stores = Stores(supernet, precision=precision)
        data = f"{self._split.digest}, first {IMAGES}, {precision}"
        self._cache = EvaluationCache(cache, checkpoint=checkpoint.digest, data=data, batch_size=IMAGES)
        self._feasibility = Feasibility.of(self._space, self._model, self._config.search.limits)
        self._costs_of = costs_function(self._space, self._model, self._config.search.limits)
        limits_ms = {target.limit_ms for target in self._config.search.targets if not self._feasibility.reason(target)}
        self._limits_ms = tuple(sorted(limits_ms))

    def trials(self, name: str, count: int, *, seed: int) -> Iterator[Trial]:
        """What an algorithm measures, one after the other."""
        algorithm = self._algorithm(name, seed)
        index, size = 0, self._config.search.population
        while index < count:
            genotypes = algorithm.ask(min(size, count - index))
            if not len(genotypes):
                return
            told = []
            for genotype, latency_ms in zip(genotypes, self._costs_of(genotypes).latency_ms, strict=True):
                told.append(self._trial(genotype, float(latency_ms), index))
                yield told[-1]
                index += 1
            algorithm.tell(told)

    def goal(self, pool: Sequence[Trial], seed: int) -> dict[str, float]:
        """The figures of random search, whose trials are drawn from the pool."""
        front = self._front()
        drawn = np.random.default_rng(seed).choice(len(pool), size=RANDOM, replace=False)
        return [front.add(pool[place]) for place in drawn.tolist()][-1]

    def evaluations_to(self, goal: dict[str, float], name: str, most: int, *, seed: int) -> dict[str, float]:
        """How many evaluations an algorithm needs for each figure; infinite if it does not get there with `most`."""
        front, reached = self._front(), dict.fromkeys(FIGURES, float("inf"))
        for number, trial in enumerate(self.trials(name, most, seed=seed), start=1):
            figures = front.add(trial)
            for figure in FIGURES:
                if figures[figure] >= goal[figure]:
                    reached[figure] = min(reached[figure], number)
            if max(reached.values()) < float("inf"):
                break
        return reached

    def _front(self) -> Front:
        return Front(self._limits_ms, self._feasibility.bounds.slowest_ms)

    def _algorithm(self, name: str, seed: int) -> SearchAlgorithm:
        problem = SearchProblem(
            space=self._space,
            costs_of=self._costs_of,
            bounds=self._feasibility.bounds,
            anchors=self._feasibility.anchors,
            limits_ms=self._limits_ms,
            settings=self._config.search,
            rng=np.random.default_rng(seed),
        )
        return ALGORITHMS.get(name)(problem)

    def _trial(self, genotype: Genotypes, latency_ms: float, index: int) -> Trial:
        subnet = self._space.decode(genotype)
        record = self._cache.get(subnet.digest)
        if record is None:
            record = self._measured(subnet)
            self._cache.put(subnet.digest, record)
        return Trial(
            index=index,
            generation=0,
            digest=subnet.digest,
            genotype=tuple(genotype.tolist()),
            val_accuracy=record.evaluation.accuracy,
            val_loss=record.evaluation.loss,
            latency_ms=latency_ms,
        )

    @torch.inference_mode()
    def _measured(self, subnet: Subnet) -> Record:
        stream = outputs(
            self._stores.network(subnet), self._split, batch_size=IMAGES, device=self._stores.device, limit=IMAGES
        )
        ((logits, y_B),) = stream
        correct = np.asarray((logits.argmax(dim=1) == y_B).cpu().numpy(), dtype=np.bool_)
        loss = F.cross_entropy(logits, y_B, reduction="sum").item()
        return Record(correct=correct, looks=((len(correct), loss),), complete=True)


def evaluations_to_random(
    folder: Path, cache: Path, names: Sequence[str], *, seeds: Sequence[int], most: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """The keys of the last line that are about evaluations to reach random search; `say` tells how far it is."""
    comparison = Comparison(folder, cache)
    pool = []
    for trial in comparison.trials("random", POOL, seed=1_000_000):
        pool.append(trial)
        if len(pool) % 100 == 0:
            say(f"random search: {len(pool)} of {POOL}")
    goals = [comparison.goal(pool, seed) for seed in seeds]
    medians = {figure: statistics.median(goal[figure] for goal in goals) for figure in FIGURES}
    say("random search with 1,000: " + "  ".join(f"{figure} {value:.4f}" for figure, value in medians.items()))
    found: dict[str, dict[str, float | None]] = {figure: {} for figure in FIGURES}
    for name in names:
        reached = [
            comparison.evaluations_to(goal, name, most, seed=seed) for goal, seed in zip(goals, seeds, strict=True)
        ]
        for figure in FIGURES:
            values = [each[figure] for each in reached]
            found[figure][name] = _median(values)
            say(f"{name:10} {figure:12} median {found[figure][name]} of {values}")
    return {f"evals_to_random1000_{figure}": found[figure] for figure in FIGURES} | {
        "random1000": {figure: round(value, 5) for figure, value in medians.items()}
    }


def _median(values: Sequence[float]) -> float | None:
    """None where the budget was spent before in half of the cases."""
    median = statistics.median(values)
    return median if median < float("inf") else None
