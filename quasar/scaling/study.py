"""The stage behind `quasar scale`: candidates near each budget, their trainings, the law, and what it is worth.

Candidates are ranked on the validation split. What is compared at the end (the best candidate, the law's shape and that
of compound scaling by hand at each budget, and the unscaled baseline) is then trained again with other seeds, each
alike, and only these trainings see the test images: the best of many candidates has had luck, too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hwmodel.cost import CostModel
from hwmodel.errors import InfeasibleError
from quasar.config import PLACE_KEYS
from quasar.pipeline import check_names, load_supernet, open_splits, open_test_split, set_up_torch, train_stage
from quasar.progress import stage
from quasar.run_folder import RunFolder
from quasar.scaling.candidates import COSTS, Candidates, cost_text, device_models, find_candidates
from quasar.scaling.families import Multipliers, VitFamily
from quasar.scaling.folder import open_folder
from quasar.scaling.outcome import Outcome, Row, mean_and_error
from quasar.scaling.plan import Study
from quasar.scaling.results import write_results
from quasar.scaling.shapes import DIMENSIONS, VitShape
from quasar.scaling.strategy import (
    Exponents,
    Measured,
    Strategy,
    cost_function,
    exponents_of,
    fit,
    reference_cost,
)
from quasar.scaling.trainings import Trained, TrainingJournal
from supernet.alone import settings_alone, train_alone
from supernet.config import Progress
from supernet.data.splits import Split
from supernet.evaluate import Evaluation, evaluate
from supernet.standalone import extract


def scale(study: Study, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Does a study, or goes on with it; writes its results and gives `scale.json`.

    Raises:
        UsageError: settings that cannot be trained; a folder that holds something else, another study, or a study with
            neither flag set.
        InfeasibleError: a budget that nothing reaches; no accelerator fits.
        DamagedInputError: the journal or the data cannot be read.
        QuasarError: a training diverges.
    """
    check_names(study.config)
    models = device_models(study)
    candidates = find_candidates(study, models)
    _by_hand(study, models)  # a baseline that the device cannot hold shows before anything is trained
    splits = open_splits(study.config)
    with open_folder(study, resume=resume, overwrite=overwrite) as folder:
        trainer = _Trainer(study, splits, folder)
        if study.plan.mode == "supernet":
            evaluations = _inherited(study, candidates, splits)
        else:
            evaluations = _alone(trainer, candidates)
        return write_results(_outcome(trainer, candidates, models, evaluations))


class _Trainer:
    """Trains networks by themselves, all with the same settings."""

    def __init__(self, study: Study, splits: tuple[Split, Split], folder: Path) -> None:
        self.study = study
        self._train_split, self._val_split = splits
        self._settings = settings_alone(study.config.train, epochs=study.epochs)
        config = study.config.to_dict()
        about = {
            "data": {key: value for key, value in config["data"].items() if f"data.{key}" not in PLACE_KEYS},
            "images": self._train_split.digest,
            "image_size": study.config.space.image_size[-1],
            "supernet": config["supernet"],
            "train": dataclasses.asdict(self._settings),
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        self.journal = TrainingJournal(folder / "trainings.jsonl", settings=digest)

    @cached_property
    def _test_split(self) -> Split:
        return open_test_split(self.study.config)

    def trained(
        self, shapes: Iterable[VitShape], seeds: Iterable[int], *, title: str, test: bool
    ) -> dict[VitShape, list[Trained]]:
        """The results of each shape with each seed, done now or earlier."""
        jobs = [(shape, seed) for shape in shapes for seed in seeds]
        results: dict[VitShape, list[Trained]] = {}
        with stage(title) as progress:
            for done, (shape, seed) in enumerate(jobs):

                def steps(step: int, of: int, text: str, done: int = done) -> None:
                    progress(done, len(jobs), f"training alone: step {step} of {of}")

                results.setdefault(shape, []).append(self._one(shape, seed, test=test, progress=steps))
            progress(len(jobs), len(jobs), "")
        return results

    def _one(self, shape: VitShape, seed: int, *, test: bool, progress: Progress) -> Trained:
        config = self.study.config
        subnet = shape.subnet(config.space)
        known = self.journal.get((subnet.digest, seed))
        if known is not None:
            return known
        module = train_alone(
            subnet,
            supernet=config.supernet,
            config=self._settings,
            train_split=self._train_split,
            seed=seed,
            device=set_up_torch(config),
            progress=progress,
        )
        batch_size = config.search.batch_size
        trained = Trained(
            validation=evaluate(module, self._val_split, batch_size=batch_size),
            test=evaluate(module, self._test_split, batch_size=batch_size) if test else None,
        )
        self.journal.add((subnet.digest, seed), trained)
        return trained


def _numbers(candidates: Candidates) -> list[int]:
    """All chosen shapes, each once: budgets may be so near that they share some."""
    return sorted({number for chosen in candidates.chosen for number in chosen})


def _alone(trainer: _Trainer, candidates: Candidates) -> dict[int, list[Evaluation]]:
    """What each candidate reaches, by seed, after a training by itself."""
    numbers, config = _numbers(candidates), trainer.study.config
    seeds = range(config.seed, config.seed + trainer.study.plan.seeds)
    shapes = {number: VitShape.of_row(candidates.shapes[number]) for number in numbers}
    results = trainer.trained(shapes.values(), seeds, title="candidates", test=False)
    return {number: [trained.validation for trained in results[shape]] for number, shape in shapes.items()}


def _inherited(study: Study, candidates: Candidates, splits: tuple[Split, Split]) -> dict[int, list[Evaluation]]:
    """What each candidate reaches with the weights of one supernet over the space, trained now or earlier."""
    run, config = RunFolder(study.folder), study.config
    train_stage(run, config, splits)
    model, checkpoint = load_supernet(run, config)
    journal = TrainingJournal(study.folder / "inherited.jsonl", settings=checkpoint.digest)
    numbers, found = _numbers(candidates), {}
    with stage("candidates") as progress:
        for done, number in enumerate(numbers):
            progress(done, len(numbers), "inherited weights")
            subnet = VitShape.of_row(candidates.shapes[number]).subnet(config.space)
            key = (subnet.digest, config.seed)
            inherited = journal.get(key)
            if inherited is None:
                result = evaluate(extract(model, subnet), splits[1], batch_size=config.search.batch_size)
                inherited = Trained(validation=result, test=None)
                journal.add(key, inherited)
            found[number] = [inherited.validation]
        progress(len(numbers), len(numbers), "")
    return found


def _by_hand(study: Study, models: dict[int, CostModel] | None) -> Strategy:
    """Compound scaling from the baseline; raises `InfeasibleError` if the device cannot hold that."""
    plan = study.plan
    law = Strategy(unit=plan.unit, exponents=Exponents.of_compound(plan.compound), cost=1.0)
    cost_of = cost_function(plan.unit, None if models is None else models[study.patch_sizes[0]])
    return law.moved(VitFamily(base=plan.baseline, space=study.config.space), cost_of)


def _outcome(
    trainer: _Trainer,
    candidates: Candidates,
    models: dict[int, CostModel] | None,
    evaluations: Mapping[int, list[Evaluation]],
) -> Outcome:
    study = trainer.study
    plan, config = study.plan, study.config
    measured = tuple(_measured(candidates, chosen, evaluations, study) for chosen in candidates.chosen)
    found, law = fit(measured, best=plan.best, seed=config.seed)
    family = VitFamily(base=_base(candidates, measured, plan.best), space=config.space)
    base = family.base
    strategy = Strategy(
        unit=plan.unit,
        exponents=exponents_of(found),
        cost=reference_cost(measured),
        anchor=Multipliers(
            depth=law.depth / base.depth, width=law.width / base.embed_dim, resolution=law.resolution / base.grid
        ),
    )
    cost_of = cost_function(plan.unit, None if models is None else models[study.patch_sizes[0]])
    unscaled = VitFamily(base=plan.baseline, space=config.space)
    by_hand = _by_hand(study, models)
    compared: list[tuple[str, float | None, VitShape]] = [("baseline", None, plan.baseline)]
    left_out = []
    for budget, chosen, of_budget in zip(plan.budgets, candidates.chosen, measured, strict=True):
        compared.append(("best", budget.cost, VitShape.of_row(candidates.shapes[chosen[of_budget.best(1)[0]]])))
        for what, grows, of_family in (("strategy", strategy, family), ("compound", by_hand, unscaled)):
            try:
                compared.append((what, budget.cost, grows.at(budget.cost, of_family, cost_of).shape))
            except InfeasibleError as error:  # no reason to lose the trainings of the candidates
                left_out.append(f"{what} at {cost_text(budget.cost, plan.unit)}: {error}")
    return Outcome(
        study=study,
        candidates=candidates,
        measured=measured,
        found=found,
        strategy=strategy,
        family=family,
        compound=by_hand,
        rows=_confirmed(trainer, compared, models),
        left_out=tuple(left_out),
    )


def _confirmed(
    trainer: _Trainer, compared: list[tuple[str, float | None, VitShape]], models: dict[int, CostModel] | None
) -> tuple[Row, ...]:
    """The compared shapes after trainings with seeds of their own."""
    plan, config = trainer.study.plan, trainer.study.config
    first = config.seed + plan.seeds
    shapes = list(dict.fromkeys(shape for _, _, shape in compared))
    results = trainer.trained(shapes, range(first, first + plan.confirm_seeds), title="comparison", test=True)
    macs = cost_function("macs", None)
    model = None if models is None else next(iter(models.values()))
    latency = None if model is None else cost_function("latency_ms", model)
    rows = []
    for what, budget, shape in compared:
        workload = VitFamily(base=shape, space=config.space).lower(shape)
        latency_ms = None if latency is None else latency(workload)
        rows.append(
            Row(
                what=what,
                budget=budget,
                shape=shape,
                macs=macs(workload),
                latency_ms=latency_ms if latency_ms is not None and np.isfinite(latency_ms) else None,
                validation=tuple(trained.validation for trained in results[shape]),
                test=tuple(trained.test for trained in results[shape] if trained.test is not None),
            )
        )
    return tuple(rows)


def _measured(
    candidates: Candidates, chosen: list[int], evaluations: Mapping[int, list[Evaluation]], study: Study
) -> Measured:
    """The candidates of one budget."""
    shapes = candidates.shapes[chosen]
    grid = shapes[:, DIMENSIONS.index("image_size")] / shapes[:, DIMENSIONS.index("patch_size")]
    means, errors = zip(*(mean_and_error(evaluations[number]) for number in chosen), strict=True)
    return Measured(
        growths=np.stack(
            [shapes[:, DIMENSIONS.index("depth")], shapes[:, DIMENSIONS.index("embed_dim")], grid], axis=1
        ),
        cost=candidates.costs[chosen, COSTS.index(study.plan.unit)],
        accuracy=np.array(means),
        error=np.array(errors),
    )


def _base(candidates: Candidates, measured: tuple[Measured, ...], best: int) -> VitShape:
    """What the fitted law scales: the best candidate of the cheapest budget, but for what the law leaves constant.

    Patch size and MLP ratio are the most frequent ones among the best of all budgets, heads for each channel the
    geometric mean of theirs.
    """
    rows = np.concatenate(
        [
            candidates.shapes[[chosen[index] for index in budget.best(best)]]
            for chosen, budget in zip(candidates.chosen, measured, strict=True)
        ]
    )
    first = VitShape.of_row(rows[0])
    most = {}
    for name in ("patch_size", "mlp_ratio"):
        values, counts = np.unique(rows[:, DIMENSIONS.index(name)], return_counts=True)
        most[name] = values[counts.argmax()].item()
    heads = np.exp(np.log(rows[:, DIMENSIONS.index("num_heads")] / rows[:, DIMENSIONS.index("embed_dim")]).mean())
    return dataclasses.replace(
        first,
        num_heads=max(1, round(heads * first.embed_dim)),
        mlp_ratio=most["mlp_ratio"],
        patch_size=round(most["patch_size"]),
        image_size=first.grid * round(most["patch_size"]),
    )
