"""What a search costs beside its evaluations, and which algorithm finds the best front.

    python experiments/benchmarks/search.py [--quick] [--run RUN]

Evaluation is stubbed by a synthetic accuracy: a function of the subnet alone, with unequal layers, diminishing returns,
interactions between neighbouring choices, and noise as large as that of a thousand validation images. Five
instances of it (seeds), medians over them; times are CPU time of this process, on one thread (set
OMP_NUM_THREADS=1). `--quick` takes fewer evaluations and seeds, and leaves out TPE.

For each algorithm: the hypervolume after 100, 200 and all evaluations (reference: the slowest subnet and accuracy 0);
the mean accuracy of the subnets chosen for four targets; CPU milliseconds per candidate of the algorithm alone
(`ask_tell_ms`) and of the whole run without evaluation (`run_ms`); subnets evaluated twice, in percent; for the
predictor its rank correlation with accuracies that it has not seen, beside that of the latency. AutoFormer's evolution
takes 4.56 ms per candidate; 64 % of OFA's and 10.6 % of DyNAS-T's are duplicates.

Then the filter: how many random genotypes a second are tested against a target, with one accelerator for all subnets
and with the best of a grid for each (`hardware.accelerator`).

With `--run`, a folder with a trained supernet (such as that of `quasar train experiments/cifar10-small.yaml
data.root=…`), also what a search saves on real images: one with the settings of the run, its racing and
`search.precision` included, then all its candidates on the whole validation split in float32, both in CPU time.
Without it these keys are left out.

The last line is JSON: a key for each algorithm, and
    overhead_us               `run_ms` of evolution in microseconds: all that a candidate costs beside its evaluation
    ask_tell_us               `ask_tell_ms` of evolution in microseconds, the part of it that is the algorithm's
    duplicates                subnets evaluated twice, by all algorithms together
    analytic_per_s            candidates filtered a second with one accelerator (1,000,000 in at most 10 s is the mark)
    analytic_per_subnet_per_s the same with an accelerator for each
    shortlist, grid           designs that can be best for a subnet of the space, of so many
    shortlist_s               CPU seconds that it takes to prove that
    search_over_full_evaluation  the search with racing over its candidates on all images (0.2 at most is the mark)
    racing_loss_points        by how much the subnet chosen for a target is worse than the best candidate for it, in
                              points of accuracy, for the target where that is most (0.3 at most is the mark)
    racing_evaluation_s       CPU seconds of one candidate on all images, on average
    racing_share_of_images    images that the candidates saw, of those that they would have seen without racing

`--run RUN --ray` prints other keys and no more, in seconds of the clock, so the machine has to be idle:
    ray2_speedup              a search of the run by one actor of Ray over it by two (1.5 on two cores is the mark)
    ray1_startup_s, …         until the actors have measured a subnet each; not part of the search
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hypervolume import evaluations_to_random

from hwmodel.adaptive import AdaptiveCostModel
from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from hwmodel.explore import best_accelerator
from quasar.pipeline import load_supernet, open_splits
from quasar.run_folder import RunFolder
from quasar.search_evaluator import search_evaluator
from quasar.targets import build_cost_model
from search.algorithm import ALGORITHMS, SearchAlgorithm, SearchProblem
from search.bounds import latency_bounds
from search.cache import EvaluationCache
from search.config import HardwareConfig, Limits, SearchConfig, Target
from search.evaluator import Direct, Job, SupernetEvaluator
from search.executor import LocalExecutor
from search.limits import costs_function
from search.measurer import Measurer
from search.racing import racing_of
from search.run import SearchResult, algorithm_names, run_search
from search.shortlist import adaptive_model
from supernet.evaluate import Evaluation
from supernet.lowering import lower
from supernet.space import BLOCK_GENES, GLOBAL_GENES, SearchSpace
from supernet.subnet import Subnet

SPACE = SearchSpace(
    num_classes=100,
    in_chans=3,
    patch_size=4,
    head_dim=32,
    image_size=(32,),
    embed_dim=(96, 128, 192),
    depth=(4, 6, 8),
    num_heads=(3, 4, 6),
    mlp_ratio=(2.0, 3.0, 4.0),
    high_precision_ratio=(0.0, 0.25, 0.5, 1.0),
)
TARGET_SHARES = (0.15, 0.3, 0.5, 0.8)  # of the way from the fastest to the slowest subnet
NOISE = 0.004
REPEATS = 3  # of searches whose CPU time is measured; the least of them counts
TO_RANDOM = ("predictor", "evolution", "nsga2", "autoformer")
MOST_TO_RANDOM = 200
RAY_EVALUATIONS = 60
COLUMNS = (
    "hypervolume_100",
    "hypervolume_200",
    "hypervolume",
    "accuracy",
    "ask_tell_ms",
    "run_ms",
    "duplicates_percent",
)


def synthetic_accuracy(seed: int) -> Callable[[Subnet], Evaluation]:
    """An instance of the accuracy function: monotone in every choice on average, not in each."""
    rng = np.random.default_rng(seed)
    sizes = np.maximum(SPACE.gene_sizes - 1, 1)
    worth = rng.lognormal(0.0, 1.0, size=len(sizes))
    worth[: len(GLOBAL_GENES)] = 6 * rng.lognormal(0.0, 0.3, size=len(GLOBAL_GENES))
    bend = rng.uniform(0.3, 1.0, size=len(sizes))  # below 1: diminishing returns
    pairs = rng.integers(len(sizes), size=(60, 2))
    strength = rng.normal(0.0, 0.8, size=len(pairs))
    most = worth.sum()

    def accuracy(subnet: Subnet) -> Evaluation:
        genotype = SPACE.encode(subnet)
        level = (genotype / sizes) ** bend
        active = np.arange(SPACE.max_depth) < subnet.depth
        share = np.concatenate([np.ones(len(GLOBAL_GENES)), np.repeat(active, len(BLOCK_GENES))])
        # A choice matters less the more blocks there are to make up for it.
        score = (worth * level * share).sum() + (strength * level[pairs[:, 0]] * level[pairs[:, 1]]).sum()
        noise = np.random.default_rng(genotype).normal(0.0, NOISE)
        value = float(np.clip(0.4 + 0.5 * (1 - np.exp(-2.5 * score / most)) + noise, 0, 1))
        return Evaluation(accuracy=value, loss=1 - value, images=1000)

    return accuracy


class Clock:
    """Adds up the CPU seconds of calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            started = time.process_time()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.process_time() - started

        return timed


def register_timed(name: str, clock: Clock) -> str:
    """The algorithm `name` under another name, with `clock` on all that it does."""
    build = ALGORITHMS.get(name)

    def timed(problem: SearchProblem) -> SearchAlgorithm:
        algorithm = clock.wrap(build)(problem)
        algorithm.ask, algorithm.tell = clock.wrap(algorithm.ask), clock.wrap(algorithm.tell)
        return algorithm

    ALGORITHMS.register(f"timed-{name}")(timed)
    return f"timed-{name}"


def cost_model() -> FpgaCostModel:
    device = load_device("zcu102")
    return FpgaCostModel(device, best_accelerator([lower(SPACE.largest())], device))


def measure(algorithm: str, model: FpgaCostModel, clock: Clock, *, seed: int, evaluations: int) -> dict[str, float]:
    """One search: its quality and what it cost."""
    bounds = latency_bounds(SPACE, model)
    spread = bounds.slowest_ms - bounds.fastest_ms
    targets = tuple(Target(latency_ms=bounds.fastest_ms + share * spread) for share in TARGET_SHARES)
    accuracy = synthetic_accuracy(seed)
    seen: list[tuple[str, Evaluation]] = []

    def search(evaluate: Callable[[Subnet], Evaluation]) -> SearchResult:
        with tempfile.TemporaryDirectory() as folder:
            return run_search(
                space=SPACE,
                model=model,
                config=SearchConfig(targets=targets, algorithm=algorithm, evaluations=evaluations),
                evaluator=Direct(evaluate),
                journal=Path(folder) / "trials.jsonl",
                seed=seed,
                progress=lambda done, total, text: None,
            )

    def evaluate(subnet: Subnet) -> Evaluation:
        seen.append((subnet.digest, accuracy(subnet)))
        return seen[-1][1]

    clock.seconds = 0.0
    result = search(evaluate)
    ask_tell_s = clock.seconds
    # The same again, without evaluations and without a clock for each, which would be a part of what it measures.
    run_s = []
    for _ in range(REPEATS):
        answers = (evaluation for _, evaluation in seen)
        started = time.process_time()
        again = search(lambda subnet: next(answers))  # noqa: B023  (it is called in this round)
        run_s.append(time.process_time() - started)
        assert again.hypervolume == result.hypervolume
    digests = [digest for digest, _ in seen]
    return {
        "hypervolume": result.hypervolume,
        "accuracy": statistics.mean(choice.trial.val_accuracy for choice in result.choices if choice.trial),
        "curve": dict(result.curve),
        "ask_tell_ms": ask_tell_s / len(seen) * 1e3,
        "run_ms": min(run_s) / len(seen) * 1e3,
        "duplicates": len(seen) - len(set(digests)),
        "duplicates_percent": 100 * (1 - len(set(digests)) / len(seen)),
        **{key: value for key, value in result.report.items() if isinstance(value, float)},
    }


def filtered_per_s(model: FpgaCostModel | AdaptiveCostModel, count: int) -> float:
    """Random genotypes tested against a target by one second of CPU time; they are drawn beforehand."""
    bounds = latency_bounds(SPACE, model)
    limit_ms = bounds.fastest_ms + 0.3 * (bounds.slowest_ms - bounds.fastest_ms)
    costs_of = costs_function(SPACE, model, Limits())
    drawn = np.array_split(SPACE.sample(np.random.default_rng(0), count), max(1, count // 20_000))
    costs_of(drawn[0][:1])  # which designs hold a subnet is looked up once
    started = time.process_time()
    met = sum(int(costs_of(genotypes).meet(limit_ms).sum()) for genotypes in drawn)
    seconds = time.process_time() - started
    assert 0 < met < count
    return count / seconds


def filters(model: FpgaCostModel, count: int) -> dict[str, float]:
    """The keys of the last line that are about analytic candidates."""
    started = time.process_time()
    adaptive = adaptive_model(SPACE, HardwareConfig(accelerator="per_subnet"), model.device, limited=model.device)
    shortlist_s = time.process_time() - started
    return {
        "analytic_per_s": round(filtered_per_s(model, count)),
        "analytic_per_subnet_per_s": round(filtered_per_s(adaptive, count)),
        "shortlist": len(adaptive.shortlist),
        "grid": adaptive.grid_size,
        "shortlist_s": round(shortlist_s, 2),
    }


def racing(folder: Path) -> dict[str, float]:
    """The keys of the last line that are about a search whose subnets race, on the supernet of a run."""
    run = RunFolder(folder)
    config = run.config()
    settings = config.search
    model = build_cost_model(config)
    supernet, checkpoint = load_supernet(run, config)
    _, split = open_splits(config)
    next(split.batches(1))  # images in memory are made ready once
    if racing_of(settings, images=len(split)) is None:
        raise SystemExit(f"{folder}: search.racing is off, or {len(split)} validation images are too few for it")
    key = {"checkpoint": checkpoint.digest, "data": split.digest, "batch_size": settings.batch_size}

    with tempfile.TemporaryDirectory() as name:
        caches = partial(EvaluationCache, Path(name) / "evaluations.jsonl", **key)
        started = time.process_time()
        with search_evaluator(run, config, supernet, split, caches) as evaluator:
            result = run_search(
                space=config.space,
                model=model,
                config=settings,
                evaluator=evaluator,
                journal=Path(name) / "trials.jsonl",
                seed=config.seed,
                progress=lambda done, total, text: None,
            )
        search_s = time.process_time() - started
        rows = [json.loads(line) for line in (Path(name) / "trials.jsonl").read_text(encoding="utf-8").splitlines()]
        started = time.process_time()
        measurer = Measurer(supernet, split, batch_size=settings.batch_size)
        whole = SupernetEvaluator(LocalExecutor(measurer), EvaluationCache(Path(name) / "whole.jsonl", **key))
        subnets = [config.space.decode(np.array(trial.genotype)) for trial in result.trials]
        accuracy = [found.evaluation.accuracy for found in whole.outcomes([Job(subnet=s) for s in subnets])]
        full_s = time.process_time() - started
    losses = [
        max(a for a, trial in zip(accuracy, result.trials, strict=True) if trial.latency_ms <= choice.limit_ms)
        - choice.trial.val_accuracy
        for choice in result.choices
        if choice.trial
    ]
    return {
        "search_over_full_evaluation": round(search_s / full_s, 3),
        "racing_loss_points": round(100 * max(losses), 2),
        "racing_evaluation_s": round(full_s / len(rows), 3),
        "racing_share_of_images": round(sum(row["images"] for row in rows) / (len(rows) * len(split)), 3),
    }


def ray_speedup(folder: Path) -> dict[str, float]:
    """The keys of the last line that are about actors of Ray, on the supernet of a run."""
    run = RunFolder(folder)
    config = run.config()
    supernet, checkpoint = load_supernet(run, config)
    _, split = open_splits(config)
    key = {"checkpoint": checkpoint.digest, "data": split.digest, "batch_size": config.search.batch_size}
    startup_s, search_s = {}, {}
    for workers in (1, 2):
        settings = dataclasses.replace(config.search, evaluations=RAY_EVALUATIONS, executor="ray", workers=workers)
        with tempfile.TemporaryDirectory() as name:
            caches = partial(EvaluationCache, Path(name) / "evaluations.jsonl", **key)
            started = time.monotonic()
            settled = dataclasses.replace(config, search=settings)
            with search_evaluator(run, settled, supernet, split, caches) as evaluator:
                ends = [Job(subnet=config.space.smallest()), Job(subnet=config.space.largest())]
                list(evaluator.outcomes(ends))  # a task for each worker, which gets ready for it
                startup_s[workers], started = time.monotonic() - started, time.monotonic()
                run_search(
                    space=config.space,
                    model=build_cost_model(config),
                    config=settings,
                    evaluator=evaluator,
                    journal=Path(name) / "trials.jsonl",
                    seed=config.seed,
                    progress=lambda done, total, text: None,
                )
                search_s[workers] = time.monotonic() - started
    return {
        "ray2_speedup": round(search_s[1] / search_s[2], 2),
        **{f"ray{workers}_search_s": round(seconds, 1) for workers, seconds in search_s.items()},
        **{f"ray{workers}_startup_s": round(seconds, 1) for workers, seconds in startup_s.items()},
    }


def to_random(folder: Path, cache: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """The keys of the last line that are about evaluations to reach random search."""
    return evaluations_to_random(
        folder, cache, TO_RANDOM, seeds=seeds, most=MOST_TO_RANDOM, say=lambda line: print(line, flush=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer evaluations and seeds, no TPE")
    parser.add_argument("--evaluations", type=int, help="of each search; 400 by default, 200 with --quick")
    parser.add_argument("--run", type=Path, help="a folder with a trained supernet, for what racing saves")
    parser.add_argument("--hypervolume", type=Path, metavar="FILE", help="with --run, instead of racing; see above")
    parser.add_argument("--algorithms", nargs="+", help="only these")
    parser.add_argument("--ray", action="store_true", help="with --run, only what two actors of Ray save")
    options = parser.parse_args()
    if options.ray:
        print(json.dumps(ray_speedup(options.run)))
        return
    evaluations = options.evaluations or (200 if options.quick else 400)
    seeds = range(2 if options.quick else 5)
    left_out = {"sensitivity"} | ({"tpe"} if options.quick else set())  # the first chooses row precisions only
    names = [name for name in algorithm_names() if name not in left_out]
    names = options.algorithms or names
    model = cost_model()
    medians = {}
    duplicates = 0
    for name in names:
        clock = Clock()
        timed = register_timed(name, clock)
        runs = [measure(timed, model, clock, seed=seed, evaluations=evaluations) for seed in seeds]
        duplicates += sum(run.pop("duplicates") for run in runs)
        curves = [run.pop("curve") for run in runs]
        median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for part in (100, 200):
            reached = [max(value for done, value in curve.items() if done <= part) for curve in curves]
            median[f"hypervolume_{part}"] = statistics.median(reached)
        if not medians:
            print(f"{'':10}", *(f"{key:>18}" for key in COLUMNS))
        print(f"{name:10}", *(f"{median[key]:18.4f}" for key in COLUMNS), flush=True)
        medians[name] = median
    found = filters(model, 200_000 if options.quick else 1_000_000)
    if options.run:
        found |= to_random(options.run, options.hypervolume, seeds) if options.hypervolume else racing(options.run)
    print(*(f"{key} {value:,}" for key, value in found.items() if not isinstance(value, dict)), sep="   ")
    document: dict[str, Any] = {name: {key: round(value, 5) for key, value in m.items()} for name, m in medians.items()}
    if "evolution" in medians:
        document["overhead_us"] = round(1e3 * medians["evolution"]["run_ms"], 1)
        document["ask_tell_us"] = round(1e3 * medians["evolution"]["ask_tell_ms"], 1)
    print(json.dumps(document | {"duplicates": duplicates, **found}))


if __name__ == "__main__":
    main()
