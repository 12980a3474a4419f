"""The stages of a run, each on the files that the one before it left: train, search, export, report."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.adaptive import AdaptiveCostModel
from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from hwmodel.errors import DamagedInputError, InfeasibleError, UsageError
from hwmodel.files import write_atomic
from quasar.config import CONFIG_FILE, RunConfig, changed_settings
from quasar.export.bundle import BundleInfo, target_folder_name, write_bundle
from quasar.progress import stage
from quasar.report import write_front_picture, write_report
from quasar.run_folder import RunFolder
from quasar.targets import build_cost_model, check_targets
from search.algorithm import ALGORITHMS
from search.baselines import uniform_ladder
from search.cache import EvaluationCache
from search.evaluator import SupernetEvaluator
from search.importance import choice_importance
from search.limits import costs_function
from search.run import Ledger, SearchResult, algorithm_names, run_search
from supernet.checkpoint import Checkpoint
from supernet.data.splits import Split, open_test, open_train
from supernet.distill import check_teacher
from supernet.evaluate import Evaluation, evaluate, evaluate_integer
from supernet.integer_vit import IntegerViT, find_ranges
from supernet.lowering import lower
from supernet.parallel import ALONE, Workers
from supernet.pretrained import check_source
from supernet.standalone import SubnetViT, extract
from supernet.subnet import Subnet
from supernet.train import steps_per_epoch, train
from supernet.vit import SupernetViT

#: training images from which the scales of an exported integer network come
CALIBRATION_IMAGES = 256
#: multiply-accumulates that the integer accuracy of a chosen subnet may take: half a minute of a CPU core
INTEGER_MACS = 1e11
COST_KEYS = ("latency_ms", "fps", "cycles", "dsp", "bram18", "lut", "ff", "energy_mj")


def prepare(config: RunConfig, *, workers: Workers = ALONE, resume: bool = False) -> tuple[Split, Split]:
    """Opens the data after all checks: what cannot work is said before hours of training, and before a folder is made.

    Raises:
        UsageError: an unknown name, no GPU, or data that do not fit the space.
        InfeasibleError: no subnet of the space meets any target.
        DamagedInputError: data that cannot be read.
    """
    check_names(config)
    if not resume:  # a training that goes on needs no initial weights
        check_weights(config)
    if workers.first:  # it warns
        check_targets(config)
    set_up_torch(config)
    workers.check(config.train.batch_size, config.train.accumulate)
    return open_splits(config)


def check_names(config: RunConfig) -> None:
    """Raises `UsageError` for unknown names of devices, data sets, algorithms and operators, before any work."""
    from supernet.data.registry import DATASETS
    from supernet.operators.registry import operator
    from supernet.sampling import STRATEGIES

    algorithm_names()
    for key, look_up, names in (
        ("hardware.device", load_device, [config.hardware.device]),
        ("data.name", DATASETS.get, [config.data.name]),
        ("search.algorithm", ALGORITHMS.get, [config.search.algorithm]),
        ("space.operator", operator, config.space.operator),
        ("train.sampling.strategy", STRATEGIES.get, [config.train.sampling.strategy]),
    ):
        for name in names:
            try:
                look_up(name)
            except UsageError as error:
                raise UsageError(f"{key}: {error}") from error


def check_weights(config: RunConfig) -> None:
    """Raises `UsageError` for initial weights or a teacher that do not exist; nothing is fetched."""
    if config.supernet.init_from is not None:
        check_source(config.supernet.init_from)
    check_teacher(config.train.distill)


def set_up_torch(config: RunConfig) -> torch.device:
    """Sets the number of threads and gives the device; raises `UsageError` if that is a GPU and there is none."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.compute == "cuda" and not torch.cuda.is_available():
        raise UsageError("compute: cuda was asked for, but torch finds no GPU; use compute=auto or compute=cpu")
    use_gpu = config.compute != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_gpu else "cpu")


def open_splits(config: RunConfig) -> tuple[Split, Split]:
    """Training and validation split; raises `UsageError` if they do not fit the space or a batch of the training."""
    splits = open_train(config.data, image_size=config.space.image_size[-1], seed=config.seed)
    _check_fits(splits[0], config)
    steps_per_epoch(config.train, splits[0])
    return splits


def open_test_split(config: RunConfig) -> Split:
    """The test split, for the end of a run; raises `UsageError` if it does not fit the space."""
    split = open_test(config.data, image_size=config.space.image_size[-1])
    _check_fits(split, config)
    return split


def _check_fits(split: Split, config: RunConfig) -> None:
    for key, found in (("num_classes", split.num_classes), ("in_chans", split.in_chans)):
        wanted = getattr(config.space, key)
        if wanted != found:
            raise UsageError(f"space.{key} is {wanted}, but the data set '{config.data.name}' has {found}")


def train_stage(
    run: RunFolder, config: RunConfig, splits: tuple[Split, Split], *, workers: Workers = ALONE
) -> dict[str, Evaluation]:
    """Trains the supernet, or goes on where it stopped; gives the accuracies of the probe subnets.

    One of several workers calls this as the others do; the first one shows progress.
    """
    train_split, val_split = splits
    with stage("train") if workers.first else nullcontext(_say_nothing) as progress:
        result = train(
            space=config.space,
            supernet=config.supernet,
            config=config.train,
            train_split=train_split,
            val_split=val_split,
            folder=run.train,
            seed=config.seed,
            device=set_up_torch(config),
            resume=True,
            progress=progress,
            workers=workers,
        )
    return result.probes


def _say_nothing(done: int, total: int, text: str) -> None:
    """The progress of a worker beside the first."""


def load_supernet(run: RunFolder, config: RunConfig) -> tuple[SupernetViT, Checkpoint]:
    """The trained supernet of a run, on its device; raises `UsageError` if training has not finished."""
    checkpoint = Checkpoint.load(run.checkpoint)
    if checkpoint.space != config.space:
        raise UsageError(f"{run.checkpoint}: was trained on another space than {run.path}'s configuration has")
    if checkpoint.epoch < config.train.epochs:
        raise UsageError(
            f"{run.checkpoint}: has {checkpoint.epoch} of {config.train.epochs} epochs; "
            f"finish with `quasar train {run.path} --resume`"
        )
    return checkpoint.build(source=str(run.checkpoint)).to(set_up_torch(config)), checkpoint


def check_same_images(train_split: Split, checkpoint: Checkpoint, run: RunFolder) -> None:
    """Raises `UsageError` if the data set has changed since training: its splits would be drawn anew and mix."""
    if train_split.digest != checkpoint.train_digest:
        raise UsageError(
            f"{run.path}: the training images are not those of {run.checkpoint}, so validation and test images may "
            "have been trained on; restore the data set, or train again"
        )


def search_stage(
    run: RunFolder, config: RunConfig, splits: tuple[Split, Split], *, overwrite: bool = False
) -> dict[str, Any]:
    """Searches, reads the test split once for the chosen subnets, and writes `front.json` and a picture of it.

    Args:
        overwrite: remove an earlier search and what came of it, once all that this one needs has been read.

    Raises:
        InfeasibleError: no target can be met; `front.json` says for each why.
    """
    cost_model = build_cost_model(config)
    supernet, checkpoint = load_supernet(run, config)
    train_split, val_split = splits
    check_same_images(train_split, checkpoint, run)
    batch_size = config.search.batch_size
    cache = EvaluationCache(run.evaluations, checkpoint=checkpoint.digest, data=val_split.digest, batch_size=batch_size)
    evaluator = SupernetEvaluator(supernet, val_split, batch_size=batch_size, cache=cache)
    if overwrite:
        check_targets(config)  # a search that cannot find anything must not cost the one before it
        run.remove("search", "export", "report")
    write_atomic(run.path / CONFIG_FILE, config.to_yaml())
    started = time.monotonic()
    with stage("search") as progress:
        result = run_search(
            space=config.space,
            model=cost_model,
            config=config.search,
            evaluator=evaluator,
            journal=run.journal,
            seed=config.seed,
            progress=progress,
            shared=config.hardware.accelerator == "shared",
            race=evaluator.racing(config.search.racing),
        )
    if not run.timing.exists():  # a finished search that is only reported anew keeps its time
        write_atomic(run.timing, json.dumps({"search_s": round(time.monotonic() - started, 3)}) + "\n")
    front = _front_document(result, config, supernet, splits)
    front["importance"] = choice_importance(config.space, result.trials, seed=config.seed)
    front["baselines"] = None
    if config.search.baselines and any_feasible(front):
        front["baselines"] = _baselines(run, config, result.model, evaluator)
    write_front_picture(run.front.with_suffix(".png"), front, result.trials)
    write_atomic(run.front, json.dumps(front, indent=2) + "\n")  # last: it says that the search is done
    if not any_feasible(front):
        raise InfeasibleError("no target is feasible: " + "; ".join(t["reason"] for t in front["targets"]))
    return front


def _baselines(
    run: RunFolder, config: RunConfig, cost_model: FpgaCostModel | AdaptiveCostModel, evaluator: SupernetEvaluator
) -> dict[str, Any]:
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
            race=evaluator.racing(config.search.racing),
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
                }
                for trial in ledger.measure(ladder, costs_of(ladder).latency_ms, start=len(uniform), generation=0)
            ]
    return {
        "random": {
            "evaluations": len(random.trials),
            "hypervolume": random.hypervolume,
            "hypervolume_curve": random.curve,
            "pareto": [(trial.latency_ms, trial.val_accuracy) for trial in random.front.trials],
        },
        "uniform": uniform,
    }


def any_feasible(front: dict[str, Any]) -> bool:
    """Whether the search found a subnet for at least one target."""
    return any(target["status"] == "ok" for target in front["targets"])


def _front_document(
    result: SearchResult,
    config: RunConfig,
    supernet: SupernetViT,
    splits: tuple[Split, Split],
) -> dict[str, Any]:
    model = result.model
    chosen = {choice.subnet for choice in result.choices if choice.subnet is not None}
    test: dict[Subnet, Evaluation] = {}
    integer: dict[Subnet, Evaluation | None] = {}
    if chosen:
        split, images = open_test_split(config), calibration_images(splits[0])
        for subnet in chosen:
            module = extract(supernet, subnet)
            test[subnet] = evaluate(module, split, batch_size=config.search.batch_size)
            integer[subnet] = _integer_evaluation(module.cpu(), splits[1], images)
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
            in_integers = integer[choice.subnet]
            accelerator, cost = _hardware(choice.subnet, model)
            entry |= {
                "accelerator": accelerator,
                "digest": choice.trial.digest,
                "subnet": choice.subnet.to_dict(),
                "val_accuracy": choice.trial.val_accuracy,
                "test_accuracy": test[choice.subnet].accuracy,
                "val_accuracy_integer": None if in_integers is None else in_integers.accuracy,
                "val_images_integer": None if in_integers is None else in_integers.images,
                "cost": cost,
                "alternatives": [
                    {
                        "digest": trial.digest,
                        "subnet": subnet.to_dict(),
                        "val_accuracy": trial.val_accuracy,
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


def calibration_images(train_split: Split) -> Tensor:
    """The images from which the scales of an integer network come, normalised (B, C, H, W)."""
    images, _ = next(train_split.batches(min(CALIBRATION_IMAGES, len(train_split))))
    return images


def _hardware(subnet: Subnet, model: FpgaCostModel | AdaptiveCostModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """The accelerator of a subnet, and its cost there."""
    workload = lower(subnet)
    accelerator = model.accelerator_for(workload)
    cost = FpgaCostModel(model.device, accelerator).estimate(workload).to_dict()
    return accelerator.to_dict(), {key: cost[key] for key in COST_KEYS}


def check_search(run: RunFolder, config: RunConfig, *, resume: bool, overwrite: bool) -> None:
    """Whether a run may be searched with the settings of `config`.

    Raises:
        UsageError: there is a result or a started search and no flag says what to do with it; a setting that the
            supernet depends on differs from that of the run.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    changed = changed_settings(config, run.config())
    fixed = [key for key in changed if not key.startswith(("search.", "hardware."))]
    if fixed:
        raise UsageError(
            f"{run.path}: {fixed[0]} was settled when the supernet was trained; only search.* and hardware.* can change"
        )
    started = run.front.exists() or run.journal.exists()
    if started and not (resume or overwrite):
        raise UsageError(f"{run.path}: has been searched; use --resume to continue or --overwrite to search anew")
    # These only add to a result: the search asks for the same subnets and finds them in its journal.
    changed = [key for key in changed if key not in ("search.top", "search.baselines")]
    if resume and started and changed:
        raise UsageError(f"{run.path}: cannot resume: {changed[0]} differs from the started search; use --overwrite")


def target_folder(target: dict[str, Any]) -> str:
    """The folder name of a target of `front.json`."""
    fps = target["fps"]
    return target_folder_name(latency_ms=target["latency_ms"] if fps is None else None, fps=fps)


def export_stage(run: RunFolder, config: RunConfig, splits: tuple[Split, Split], *, overwrite: bool) -> dict[str, Path]:
    """Writes a bundle for the chosen subnet of each feasible target; gives the folders by the targets' folder names.

    Raises:
        UsageError: a bundle exists and is not to be overwritten, or a package is missing.
        DamagedInputError: `front.json` is of another supernet, or damaged.
    """
    front = run.read_front()
    supernet, checkpoint = load_supernet(run, config)
    train_split, val_split = splits
    check_same_images(train_split, checkpoint, run)
    test_digest = open_test_split(config).digest
    images = calibration_images(train_split)
    device = load_device(front["device"])
    feasible = [target for target in front["targets"] if target["status"] == "ok"]
    bundles: dict[str, Path] = {}
    with stage("export") as progress:
        for target in feasible:
            name = target_folder(target)
            if target["accelerator"] is None:
                raise DamagedInputError(f"{run.front}: the target {name} has no accelerator; search again")
            progress(len(bundles), len(feasible), name)
            subnet = Subnet.from_dict(target["subnet"], source=str(run.front))
            accelerator = AcceleratorConfig.from_dict(target["accelerator"])
            bundles[name] = run.export / name
            write_bundle(
                extract(supernet, subnet),
                bundles[name],
                overwrite=overwrite,
                images=images,
                info=BundleInfo(
                    latency_ms=None if target["fps"] else target["latency_ms"],
                    fps=target["fps"],
                    device=_device_reference(front["device"]),
                    cost=FpgaCostModel(device, accelerator).estimate(lower(subnet)),
                    accelerator=accelerator,
                    data=config.data,
                    mean=train_split.normalization.mean,
                    std=train_split.normalization.std,
                    classes=train_split.classes,
                    training_image_size=config.space.image_size[-1],
                    checkpoint_digest=checkpoint.digest,
                    data_digests={"train": train_split.digest, "val": val_split.digest, "test": test_digest},
                    val_accuracy=target["val_accuracy"],
                    test_accuracy=target["test_accuracy"],
                ),
            )
        progress(len(bundles), len(feasible), "")
    return bundles


def _device_reference(device: str) -> str:
    """A device as a bundle names it: its name, or its file wherever the bundle will be read on this machine."""
    return str(Path(device).absolute()) if Path(device).suffix in (".yaml", ".yml") else device


def report_stage(run: RunFolder) -> Path:
    """Writes `report.html`."""
    return write_report(run.path)
