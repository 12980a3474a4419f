"""Opening what a run is made of, after all checks, and its first stage: training the supernet."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from hwmodel.device import load_hardware
from hwmodel.errors import UsageError
from quasar.config import RunConfig
from quasar.progress import stage
from quasar.ray_cluster import check_ray
from quasar.run_folder import RunFolder
from quasar.targets import check_targets
from search.algorithm import ALGORITHMS
from search.run import algorithm_names
from search.sensitivity import check_rows_only
from supernet.checkpoint import Checkpoint
from supernet.data.splits import Split, open_test, open_train
from supernet.distill import check_teacher
from supernet.evaluate import Evaluation
from supernet.parallel import ALONE, Workers
from supernet.pretrained import check_source
from supernet.train import steps_per_epoch, train
from supernet.vit import SupernetViT

#: training images from which the scales of an exported integer network come
CALIBRATION_IMAGES = 256


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
    """Raises `UsageError` for unknown names of devices, data sets, algorithms and operators, before any work.

    Also where the search needs Ray, which is missing.
    """
    from supernet.data.registry import DATASETS
    from supernet.operators.registry import operator
    from supernet.sampling import STRATEGIES

    algorithm_names()
    if config.search.executor == "ray":
        check_ray("search.executor=ray", "ray")
    for key, look_up, names in (
        ("hardware.device", load_hardware, [config.hardware.device]),
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
    if config.search.algorithm == "sensitivity":
        check_rows_only(config.space)


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


def calibration_images(train_split: Split) -> Tensor:
    """The images from which the scales of an integer network come, normalised (B, C, H, W)."""
    images, _ = next(train_split.batches(min(CALIBRATION_IMAGES, len(train_split))))
    return images
