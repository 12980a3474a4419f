"""The second stage of a run: searching the trained supernet, and measuring what was chosen."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from hwmodel.cost import CostModel, FpgaCostModel
from hwmodel.errors import InfeasibleError, UsageError
from hwmodel.files import write_atomic
from quasar.config import CONFIG_FILE, RunConfig, changed_settings
from quasar.expected import expected_of_rows
from quasar.pipeline import calibration_images, check_same_images, load_supernet, open_test_split
from quasar.progress import stage
from quasar.report import write_front_picture
from quasar.run_folder import RunFolder
from quasar.search_evaluator import search_evaluator
from quasar.targets import build_cost_model, check_targets
from search.baselines import uniform_ladder
from search.cache import EvaluationCache
from search.evaluator import Evaluator
from search.importance import choice_importance
from search.limits import costs_function
from search.run import Ledger, SearchResult, run_search
from search.study import Study
from search.trial import Trial
from supernet.checkpoint import Checkpoint
from supernet.data.splits import Split
from supernet.evaluate import Evaluation, evaluate, evaluate_integer
from supernet.integer_vit import IntegerViT, find_ranges
from supernet.lowering import lower
from supernet.standalone import SubnetViT, extract
from supernet.subnet import Subnet
from supernet.vit import SupernetViT

#: multiply-accumulates that the integer accuracy of a chosen subnet may take: half a minute of a CPU core
INTEGER_MACS = 1e11
COST_KEYS = ("latency_ms", "fps", "cycles", "dsp", "bram18", "lut", "ff", "energy_mj")


def search_stage(
    run: RunFolder, config: RunConfig, splits: tuple[Split, Split], *, overwrite: bool = False
) -> dict[str, Any]:
    """Searches, reads the test split once for the chosen subnets, and writes `front.json` and a picture of it.

    Args:
        overwrite: remove an earlier search and what came of it, once all that this one needs has been read.

    Raises:
        InfeasibleError: no target can be met; `front.json` says for each why.
    """
    if overwrite:
        check_targets(config)  # a search that cannot find anything must not cost the one before it
    (front,) = search_stages({"search": (run, config, overwrite)}, splits)
    if not any_feasible(front):
        raise InfeasibleError("no target is feasible: " + "; ".join(t["reason"] for t in front["targets"]))
    return front


def search_stages(
    searches: Mapping[str, tuple[RunFolder, RunConfig, bool]], splits: tuple[Split, Split]
) -> list[dict[str, Any]]:
    """Several searches of one supernet, one after the other, each with its own result; gives those.

    They share the supernet, the images, what measures subnets, and all that it has measured.

    Args:
        searches: by what their progress is called: the folder, the settings, and whether to remove an earlier search.
            All are of one run, and agree in all settings but those of the hardware, and targets and limits of the
            search.
    """
    models = [build_cost_model(config) for _, config, _ in searches.values()]
    first, settings, _ = next(iter(searches.values()))
    supernet, checkpoint = load_supernet(first, settings)
    check_same_images(splits[0], checkpoint, first)
    caches = partial(
        EvaluationCache,
        first.evaluations,
        checkpoint=checkpoint.digest,
        data=splits[1].digest,
        batch_size=settings.search.batch_size,
        signal=settings.search.signal,
    )
    studies = [_study(config, checkpoint, splits[1]) for _, config, _ in searches.values()]
    started = time.monotonic()
    fronts = []
    with search_evaluator(first, settings, supernet, splits[1], caches) as evaluator:
        for run, config, overwrite in searches.values():
            if overwrite:
                run.remove("search", "finetune", "export", "report")
            write_atomic(run.path / CONFIG_FILE, config.to_yaml())
        finals = Finals(supernet, splits, settings)
        for (name, (run, config, _)), model, study in zip(searches.items(), models, studies, strict=True):
            expected = None
            if config.search.algorithm == "sensitivity":
                expected = expected_of_rows(run, config, supernet, splits[0])
            with stage(name) as progress:
                result = run_search(
                    space=config.space,
                    model=model,
                    config=config.search,
                    evaluator=evaluator,
                    journal=run.journal,
                    seed=config.seed,
                    progress=progress,
                    shared=config.hardware.accelerator == "shared",
                    observe=None if study is None else study.add,
                    expected_divergence=expected,
                )
            if not run.timing.exists():  # a finished search that is only reported anew keeps its time
                write_atomic(run.timing, json.dumps({"search_s": round(time.monotonic() - started, 3)}) + "\n")
            front = _front_document(result, config, finals)
            front["importance"] = choice_importance(config.space, result.trials, seed=config.seed)
            front["baselines"] = None
            if config.search.baselines and any_feasible(front):
                front["baselines"] = _baselines(run, config, result.model, evaluator)
            write_front_picture(run.front.with_suffix(".png"), front, result.trials)
            write_atomic(run.front, json.dumps(front, indent=2) + "\n")  # last: it says that the search is done
            fronts.append(front)
            started = time.monotonic()
    return fronts


class Finals:
    """The accuracies of chosen subnets beside those by which they were chosen, each measured once."""

    def __init__(self, supernet: SupernetViT, splits: tuple[Split, Split], config: RunConfig) -> None:
        self._supernet, self._splits, self._config = supernet, splits, config
        self._known: dict[Subnet, tuple[Evaluation, Evaluation | None]] = {}
        self._images: tuple[Split, Tensor] | None = None

    def of(self, subnet: Subnet) -> tuple[Evaluation, Evaluation | None]:
        """On the test split, and in the exported integer arithmetic on the validation split; see `Target`."""
        if subnet not in self._known:
            if self._images is None:
                self._images = open_test_split(self._config), calibration_images(self._splits[0])
            split, images = self._images
            module = extract(self._supernet, subnet)
            test = evaluate(module, split, batch_size=self._config.search.batch_size)
            self._known[subnet] = test, _integer_evaluation(module.cpu(), self._splits[1], images)
        return self._known[subnet]


def _study(config: RunConfig, checkpoint: Checkpoint, val_split: Split) -> Study | None:
    """Where the configuration wants a copy of all measured subnets; errors of `Study`."""
    wanted = config.search.study
    if wanted is None:
        return None
    hardware = json.dumps([asdict(config.hardware), asdict(config.search.limits)], sort_keys=True)
    belongs = {
        "space": config.space.digest,
        "supernet": checkpoint.digest,
        "validation split": val_split.digest,
        "hardware": hashlib.sha256(hardware.encode()).hexdigest()[:16],
        "search.signal": config.search.signal,
    }
    return Study(wanted.storage, wanted.name or config.name, space=config.space, belongs=belongs)


def _baselines(run: RunFolder, config: RunConfig, cost_model: CostModel, evaluator: Evaluator) -> dict[str, Any]:
    """Random search with the same budget and the uniform ladders, on the validation split, as in `front.json`.

    They get the hardware of the result, also where the search had to find it first.
    """
    space = config.space
    with stage("baselines") as progress:
        random = run_search(
            space=space,
            model=cost_model,
            config=dataclasses.replace(config.search, algorithm="random"),
            evaluator=evaluator,
            journal=run.baseline("random"),
            seed=config.seed,
            progress=progress,
        )
        costs_of = costs_function(space, cost_model, config.search.limits)
        ledger = Ledger(space, evaluator, run.baseline("uniform"))
        uniform: list[dict[str, Any]] = []
        for bits, ratio in zip(space.weight_bits, (0.0, 1.0), strict=True):
            ladder = uniform_ladder(space, cost_model, config.search, ratio=ratio)
            uniform += [
                {
                    "bits": bits,
                    "digest": trial.digest,
                    "latency_ms": trial.latency_ms,
                    "val_accuracy": trial.val_accuracy,
                    **_kl(trial),
                }
                for trial in ledger.measure(ladder, costs_of(ladder).latency_ms, start=len(uniform), generation=0)
            ]
    return {
        "random": {
            "evaluations": len(random.trials),
            "hypervolume": random.hypervolume,
            "hypervolume_curve": random.curve,
            "pareto": [
                (trial.latency_ms, trial.val_accuracy if trial.val_kl is None else trial.val_kl)
                for trial in random.front.trials
            ],
        },
        "uniform": uniform,
    }


def any_feasible(front: dict[str, Any]) -> bool:
    """Whether the search found a subnet for at least one target."""
    return any(target["status"] == "ok" for target in front["targets"])


def _front_document(result: SearchResult, config: RunConfig, finals: Finals) -> dict[str, Any]:
    model = result.model
    targets = []
    for target, choice in zip(config.search.targets, result.choices, strict=True):
        entry: dict[str, Any] = {
            "latency_ms": choice.limit_ms,
            "fps": target.fps,
            "status": "infeasible" if choice.trial is None else "ok",
            "reason": choice.reason,
            "nearest_latency_ms": choice.nearest_latency_ms,
            "digest": None,
            "subnet": None,
            "accelerator": model.accelerator.to_dict() if isinstance(model, FpgaCostModel) else None,
            "val_accuracy": None,
            "test_accuracy": None,
            "val_accuracy_integer": None,
            "val_images_integer": None,
            "cost": None,
            "alternatives": [],
        }
        if choice.trial is not None and choice.subnet is not None:
            test, in_integers = finals.of(choice.subnet)
            accelerator, cost = _hardware(choice.subnet, model)
            entry |= {
                "accelerator": accelerator,
                "digest": choice.trial.digest,
                "subnet": choice.subnet.to_dict(),
                "val_accuracy": choice.trial.val_accuracy,
                **_kl(choice.trial),
                "test_accuracy": test.accuracy,
                "val_accuracy_integer": None if in_integers is None else in_integers.accuracy,
                "val_images_integer": None if in_integers is None else in_integers.images,
                "cost": cost,
                "alternatives": [
                    {
                        "digest": trial.digest,
                        "subnet": subnet.to_dict(),
                        "val_accuracy": trial.val_accuracy,
                        **_kl(trial),
                        "cost": own_cost,
                        **({} if isinstance(model, FpgaCostModel) else {"accelerator": own_accelerator}),
                    }
                    for trial in choice.alternatives
                    for subnet in [config.space.decode(np.array(trial.genotype, dtype=np.int64))]
                    for own_accelerator, own_cost in [_hardware(subnet, model)]
                ],
            }
        targets.append(entry)
    return {
        "device": config.hardware.device,
        "hypervolume": result.hypervolume,
        "fastest_latency_ms": result.bounds.fastest_ms,
        "slowest_latency_ms": result.bounds.slowest_ms,
        "algorithm": config.search.algorithm,
        "evaluations": len(result.trials),
        "hypervolume_curve": result.curve,
        "algorithm_report": result.report,
        "stopped": result.stopped,
        "targets": targets,
        "pareto": [trial.to_dict() for trial in result.front.trials],
    }


def _kl(trial: Trial) -> dict[str, float]:
    """The divergence of a trial, where subnets are ranked by it."""
    return {} if trial.val_kl is None else {"val_kl": trial.val_kl}


def _integer_evaluation(module: SubnetViT, val_split: Split, images: Tensor) -> Evaluation | None:
    """Of the integer network that would be exported, on as much of the validation split as `INTEGER_MACS` allow.

    None for a subnet without an integer form, which cannot be exported either; it is warned of.
    """
    try:
        network = IntegerViT.of(module, find_ranges(module, images))
    except UsageError as error:
        print(f"warning: subnet {module.subnet.digest} has no integer accuracy: {error}", file=sys.stderr)
        return None
    return evaluate_integer(network, val_split, limit=max(1, int(INTEGER_MACS / lower(module.subnet).macs)))


def _hardware(subnet: Subnet, model: CostModel) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The accelerator of a subnet, if it has one, and its cost; what the model does not know is null."""
    workload = lower(subnet)
    accelerator, cost = model.accelerator_for(workload), model.estimate(workload).to_dict()
    return None if accelerator is None else accelerator.to_dict(), {key: cost.get(key) for key in COST_KEYS}


def check_search(run: RunFolder, config: RunConfig, *, resume: bool, overwrite: bool) -> None:
    """Whether a run, or a device's folder in it, may be searched with the settings of `config`.

    Raises:
        UsageError: there is a result or a started search and no flag says what to do with it; a setting that the
            supernet depends on differs from that of the run.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    fixed = [key for key in _changed(config, run.base) if not key.startswith(("search.", "hardware."))]
    if fixed:
        raise UsageError(
            f"{run.base.path}: {fixed[0]} was settled when the supernet was trained; only search.* and hardware.* can "
            "change"
        )
    started = run.front.exists() or run.journal.exists()
    if started and not (resume or overwrite):
        raise UsageError(f"{run.path}: has been searched; use --resume to continue or --overwrite to search anew")
    if not (resume and started):
        return
    # These only add to a result: the search asks for the same subnets and finds them in its journal.
    adding = ("search.top", "search.baselines", "search.study")
    changed = [key for key in _changed(config, run) if not key.startswith(adding)]
    if changed:
        raise UsageError(f"{run.path}: cannot resume: {changed[0]} differs from the started search; use --overwrite")


def _changed(config: RunConfig, run: RunFolder) -> list[str]:
    """The settings that differ from those of a run; a device has another folder than its run, and no more."""
    earlier = run.config()
    if run.of_device(config.name).path == config.folder:
        earlier = dataclasses.replace(earlier, name=config.name, output_dir=config.output_dir)
    return changed_settings(config, earlier)
