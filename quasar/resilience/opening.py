"""What a study is made of: a network from a run or a bundle, its images, its device, and the paths beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwmodel.cost import CostModel, FpgaCostModel
from hwmodel.device import Device, load_hardware
from hwmodel.errors import UsageError
from quasar import pipeline
from quasar.config import CONFIG_FILE, RunConfig
from quasar.export.bundle import load_bundle
from quasar.export.manifest import MANIFEST
from quasar.hw_inputs import read_accelerator
from quasar.processors import processor_model
from quasar.progress import stage
from quasar.resilience.journal import FILES, JOURNAL, Journal
from quasar.resilience.measure import Measurer
from quasar.run_folder import RunFolder
from quasar.run_subnets import known_names, named_subnet
from quasar.targets import build_cost_model
from search.config import HardwareConfig, Limits
from supernet.data.splits import Split, open_test, open_train
from supernet.fisher import fisher_scores
from supernet.prune import (
    BlockImportance,
    Measure,
    check_prunable,
    fisher_importance,
    low_precision,
    norm_importance,
    requantized,
)
from supernet.standalone import SubnetViT, extract
from supernet.stores import Precision, fastest_precision
from supernet.subnet import Subnet
from supernet.vit import SupernetViT


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a user decides about a study; see the options of `quasar resilience`."""

    subnet: str | None
    device: str | None
    split: str
    images: int
    choose_images: int
    importance: Measure | None
    precision: Precision | None
    paths: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A network that can be measured.

    Attributes:
        facts: what the results depend on, in plain values.
        supernet: what the paths are extracted from; None of a bundle, which has no paths.
        paths: subnets of the supernet.
        paths_are: what they are, in words.
    """

    measurer: Measurer
    facts: dict[str, Any]
    supernet: SupernetViT | None
    paths: tuple[Subnet, ...]
    paths_are: str


def open_study(path: Path, settings: Settings, *, folder: Path, overwrite: bool = False) -> Study:
    """Opens a run or a bundle for a study whose journal is in `folder`; `overwrite` removes an earlier one at the end.

    Raises:
        UsageError: there is no such network, split or device, they do not go together, or the journal is of others.
        DamagedInputError: a file cannot be read.
    """
    if (path / MANIFEST).is_file():
        return _of_bundle(path, settings, partial(_journal, folder, overwrite=overwrite))
    if not (path / CONFIG_FILE).is_file():
        if path.is_file() and path.suffix in (".yaml", ".yml"):
            raise UsageError(f"{path}: is a configuration; run `quasar train {path}` first, and give the run folder")
        raise UsageError(f"{path}: is neither a run folder (no {CONFIG_FILE}) nor a bundle (no {MANIFEST})")
    return _of_run(RunFolder(path), settings, partial(_journal, folder, overwrite=overwrite))


def _journal(folder: Path, facts: dict[str, Any], *, overwrite: bool) -> Journal:
    """The journal of a study of which all else is known to be right: only then an earlier one may go."""
    if overwrite:
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
    return Journal(folder / JOURNAL, facts)


def _of_run(run: RunFolder, settings: Settings, journal_of: Callable[[dict[str, Any]], Journal]) -> Study:
    config = run.config()
    if settings.subnet is None:
        raise UsageError(f"{run.path} is a run folder: say which subnet with --subnet ({', '.join(known_names(run))})")
    subnet = named_subnet(run, settings.subnet)
    check_prunable(subnet, source=str(run.path))
    model = _model_of_run(config, settings.device)
    supernet, checkpoint = pipeline.load_supernet(run, config)
    train_split, images = pipeline.open_splits(config)
    pipeline.check_same_images(train_split, checkpoint, run)
    if settings.split == "test":
        images = pipeline.open_test_split(config)
    module = extract(supernet, subnet)
    choice = _choice(train_split, settings.choose_images, device=module.cls_token.device)
    facts = _facts(settings, module, weights=checkpoint.digest, split=images, importance="fisher")
    paths, paths_are = _paths(run, config, settings.paths)
    journal = journal_of(facts)
    measurer = Measurer(
        module,
        low_precision(supernet, module),
        _importance(journal, module, supernet, choice, measure=facts["importance"]),
        model=model,
        choice=choice,
        split=images,
        images=settings.images,
        precision=facts["precision"],
        journal=journal,
    )
    return Study(
        measurer=measurer,
        facts={"network": str(run.path), "subnet": settings.subnet, "device": model.device.name} | facts,
        supernet=supernet,
        paths=paths,
        paths_are=paths_are,
    )


def _of_bundle(path: Path, settings: Settings, journal_of: Callable[[dict[str, Any]], Journal]) -> Study:
    if settings.subnet is not None:
        raise UsageError(f"--subnet is for run folders; {path} is a bundle with one subnet")
    if settings.importance == "fisher":
        raise UsageError(f"--importance fisher needs the supernet of a run; {path} is a bundle: give norm")
    bundle = load_bundle(path)
    data, size = bundle.config.data, bundle.config.training_image_size
    check_prunable(bundle.config.subnet, source=str(path))
    train_split, images = open_train(data, image_size=size, seed=0)
    if settings.split == "test":
        images = open_test(data, image_size=size)
    if images.digest != bundle.manifest.data_digests.get(settings.split):
        raise UsageError(
            f"{path}: the {settings.split} images of '{data.name}' are not those that the bundle was measured on; "
            "restore the data set, or export again"
        )
    module = bundle.module()
    choice = _choice(train_split, settings.choose_images, device=module.cls_token.device)
    weights = bundle.manifest.checkpoint_digest
    facts = _facts(settings, module, weights=weights, split=images, importance="norm")
    model = _model_of_bundle(path, settings.device)
    journal = journal_of(facts)
    measurer = Measurer(
        module,
        requantized(module),
        _importance(journal, module, None, choice, measure="norm"),
        model=model,
        choice=choice,
        split=images,
        images=settings.images,
        precision=facts["precision"],
        journal=journal,
    )
    return Study(
        measurer=measurer,
        facts={"network": str(path), "subnet": None, "device": model.device.name} | facts,
        supernet=None,
        paths=(),
        paths_are="",
    )


def _facts(settings: Settings, module: SubnetViT, *, weights: str, split: Split, importance: Measure) -> dict[str, Any]:
    """What measurements depend on, whatever the device; raises `UsageError` for a precision that this one lacks."""
    fastest = fastest_precision(module.cls_token.device)
    if settings.precision == "int8" and fastest != "int8":
        raise UsageError("--precision int8: this CPU or GPU has no fast and exact products of int8; give float32")
    return {
        "digest": module.subnet.digest,
        "weights": weights,
        "split": settings.split,
        "split_digest": split.digest[:16],
        "images": min(settings.images, len(split)),
        "choose_images": settings.choose_images,
        "importance": settings.importance or importance,
        "precision": settings.precision or fastest,
    }


def _choice(split: Split, count: int, *, device: torch.device) -> Tensor:
    """The first training images, normalised (B, C, H, W)."""
    if count > len(split):
        raise UsageError(f"--choose-images: there are {len(split)} training images; give no more")
    images, _ = next(split.batches(count, device=device, limit=count))
    return images


def _importance(
    journal: Journal, module: SubnetViT, supernet: SupernetViT | None, choice: Tensor, *, measure: Measure
) -> tuple[BlockImportance, ...]:
    """The importance of heads and units, from the journal if it is there."""
    known = journal.get("importance")
    if known is None:
        if measure == "norm":
            found = norm_importance(module)
        else:
            assert supernet is not None  # `_of_bundle` sees to that
            if supernet.space.operator != ("attention",):
                raise UsageError("--importance fisher needs a supernet with attention alone; give norm")
            batches = torch.split(choice, 1)
            with stage("importance") as progress:
                noted = (_noted(batch, number, len(batches), progress) for number, batch in enumerate(batches, start=1))
                scores = fisher_scores(supernet, noted, generator=torch.Generator().manual_seed(0))
            found = fisher_importance(supernet, scores, module.subnet)
        known = [{"heads": block.heads.tolist(), "units": block.units.tolist()} for block in found]
        journal.add("importance", known)
    return tuple(
        BlockImportance(heads=torch.tensor(block["heads"]), units=torch.tensor(block["units"])) for block in known
    )


def _noted(batch: Tensor, number: int, count: int, progress: Any) -> Tensor:
    progress(number, count, "images")
    return batch


def _model_of_run(config: RunConfig, device: str | None) -> CostModel:
    """The cost model of the run's device, or of another one without the limits and choices that are for the former.

    On a board all versions share an accelerator, as a bitstream is not changed from image to image.
    """
    if device is not None and device != config.hardware.device:
        search = replace(config.search, limits=Limits())
        config = replace(config, hardware=HardwareConfig(device=device), search=search)
    return build_cost_model(replace(config, hardware=replace(config.hardware, accelerator="fixed")))


def _model_of_bundle(path: Path, device: str | None) -> CostModel:
    own, accelerator = read_accelerator(path / "cost.json")
    target = load_hardware(device or own)
    if isinstance(target, Device):
        if device not in (None, own):
            raise UsageError(
                f"--device {device}: the accelerator of {path} is for {own}; give a CPU or GPU, or the run"
            )
        return FpgaCostModel(target, accelerator)
    return processor_model(target)


def _paths(run: RunFolder, config: RunConfig, count: int) -> tuple[tuple[Subnet, ...], str]:
    """Up to `count` subnets that the supernet was made for: those of the search's front, else random ones."""
    if not count:
        return (), ""
    space = config.space
    what = "the supernet was trained for" if config.train.epochs else "the supernet has, which was never trained"
    if run.front.exists():
        pareto = [space.decode(np.array(trial["genotype"])) for trial in run.read_front()["pareto"]]
        places = np.unique(np.linspace(0, len(pareto) - 1, min(count, len(pareto))).round().astype(int))
        return tuple(pareto[place] for place in places.tolist()), f"on the front of the search, which {what}"
    print(f"{run.path}: not searched yet, so random subnets stand for its paths", file=sys.stderr)
    random = [space.decode(genotype) for genotype in space.sample(np.random.default_rng(0), count)]
    return tuple(dict.fromkeys((*random, space.smallest(), space.largest()))), f"random subnets that {what}"
