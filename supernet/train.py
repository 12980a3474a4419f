"""Quantization-aware training of a supernet: one random subnet a step.

Everything random in step s of epoch e is drawn from generators seeded by (seed, s) and (seed, e), and checkpoints are
written at the end of epochs, so a resumed run continues as if it had not stopped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from hwmodel.errors import DamagedInputError, QuasarError, UsageError
from hwmodel.files import append_line, write_atomic
from supernet.checkpoint import Checkpoint
from supernet.config import Progress, SupernetConfig, TrainConfig
from supernet.data.splits import Split
from supernet.evaluate import Evaluation, probe
from supernet.functional import Observer
from supernet.space import SearchSpace
from supernet.subnet import Subnet
from supernet.vit import SupernetViT


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """Where the weights are, and the last accuracies of the probe subnets on the validation split."""

    checkpoint: Path
    probes: dict[str, Evaluation]


def new_supernet(space: SearchSpace, config: SupernetConfig, *, seed: int) -> SupernetViT:
    """A supernet with initial weights that `seed` determines; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SupernetViT(space, layer_scale=config.layer_scale)


def steps_per_epoch(config: TrainConfig, train_split: Split) -> int:
    """Full batches in the training split; raises `UsageError` if there is none."""
    if config.batch_size > len(train_split):
        raise UsageError(
            f"train.batch_size is {config.batch_size}, but the training split has {len(train_split)} images; lower it"
        )
    return len(train_split) // config.batch_size


def train(
    *,
    space: SearchSpace,
    supernet: SupernetConfig,
    config: TrainConfig,
    train_split: Split,
    val_split: Split,
    folder: Path,
    seed: int,
    device: torch.device,
    resume: bool = False,
    progress: Progress,
) -> TrainResult:
    """Trains a supernet and leaves `metrics.jsonl`, `tensorboard/` and `checkpoints/` in `folder`.

    `checkpoints/last.safetensors` is the state after the last whole epoch, `best.safetensors` that with the highest
    mean accuracy of the probe subnets.

    Args:
        resume: go on from `last.safetensors`, if there is one.

    Raises:
        UsageError: a batch is larger than the training split; `resume`, but the checkpoint is of another space, data
            set or settings.
        DamagedInputError: `resume`, but the checkpoint cannot be read.
        QuasarError: the loss is no longer finite, or the disk refuses a checkpoint.
    """
    last = folder / "checkpoints" / "last.safetensors"
    settings = asdict(config) | {"seed": seed}
    start = None
    if resume and last.exists():
        start = Checkpoint.load(last)
        _check_same_run(start, last, space=space, supernet=supernet, train_split=train_split, settings=settings)
    model = (new_supernet(space, supernet, seed=seed) if start is None else start.build(source=str(last))).to(device)
    steps = steps_per_epoch(config, train_split)
    total = steps * config.epochs
    if start is not None and start.epoch >= config.epochs:
        progress(total, total, "was finished before")
        return TrainResult(checkpoint=last, probes=probe(model, val_split, batch_size=4 * config.batch_size))
    optimizer, scheduler = _optimizer_and_schedule(model, config, steps)
    if start is not None:
        _restore_optimizer(optimizer, start.optimizer, source=str(last))
    first_epoch, step, best = (0, 0, -1.0) if start is None else (start.epoch, start.step, start.best_accuracy)
    probes: dict[str, Evaluation] = {}
    with _metrics(folder, epochs_done=first_epoch) as log:
        if start is None:
            _calibrate(model, next(train_split.batches(config.batch_size, device=device))[0])
        for epoch in range(first_epoch, config.epochs):
            started = time.monotonic()
            loss_sum = torch.zeros((), device=device)
            for x_BCHW, y_B in train_split.batches(config.batch_size, epoch=epoch, device=device):
                scheduler.step_update(step)
                loss_sum += _step(model, optimizer, x_BCHW, y_B, subnet=_subnet(space, seed, step), config=config)
                step += 1
                progress(step, total, _summary(epoch, config.epochs, probes))
            loss = _finite_loss(loss_sum.item() / steps, epoch, config)
            model.refresh_clips()
            last_epoch = epoch + 1 == config.epochs
            evaluated = last_epoch or (epoch + 1) % config.eval_every == 0
            if evaluated:
                probes = probe(model, val_split, batch_size=4 * config.batch_size)
            mean = float(np.mean([p.accuracy for p in probes.values()])) if evaluated else -1.0
            # Logged before the checkpoint: a kill between the two repeats the epoch, and its row is then dropped.
            log(
                {
                    "epoch": epoch + 1,
                    "step": step,
                    "lr": optimizer.param_groups[0]["lr"],
                    "train_loss": loss,
                    "seconds": time.monotonic() - started,
                    "val": {name: asdict(p) for name, p in probes.items()} if evaluated else None,
                }
            )
            state = Checkpoint(
                space=space,
                supernet=supernet,
                model=model.state_dict(),
                optimizer=_optimizer_state(optimizer),
                epoch=epoch + 1,
                step=step,
                best_accuracy=max(best, mean),
                train_digest=train_split.digest,
                settings=settings,
            )
            if mean > best:
                best = mean
                state.save(last.with_name("best.safetensors"))
            state.save(last)
    return TrainResult(checkpoint=last, probes=probes)


def _optimizer_and_schedule(
    model: SupernetViT, config: TrainConfig, steps: int
) -> tuple[torch.optim.Optimizer, CosineLRScheduler]:
    """AdamW, and the learning rate by step, with `steps` of them in an epoch."""
    optimizer = create_optimizer_v2(model, opt="adamw", lr=config.lr, weight_decay=config.weight_decay)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=steps * config.epochs,
        lr_min=config.min_lr,
        warmup_t=round(config.warmup_epochs * steps),
        warmup_lr_init=config.min_lr,
        warmup_prefix=False,
        t_in_epochs=False,
    )
    return optimizer, scheduler


def _finite_loss(loss: float, epoch: int, config: TrainConfig) -> float:
    """The mean loss of an epoch; raises `QuasarError` if training has diverged."""
    if not math.isfinite(loss):
        raise QuasarError(
            f"training: the loss became {loss} in epoch {epoch + 1}; lower train.lr (now {config.lr}) or set "
            "train.clip_grad_norm, and start over with --overwrite"
        )
    return loss


def _subnet(space: SearchSpace, seed: int, step: int) -> Subnet:
    return space.decode(space.sample(np.random.default_rng([seed, step]), 1)[0])


def _step(
    model: SupernetViT,
    optimizer: torch.optim.Optimizer,
    x_BCHW: Tensor,
    y_B: Tensor,
    *,
    subnet: Subnet,
    config: TrainConfig,
) -> Tensor:
    """One update by one subnet; the loss before it, detached."""
    observer = Observer()
    loss = F.cross_entropy(model(x_BCHW, subnet, observer), y_B, label_smoothing=config.label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if config.clip_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
    optimizer.step()
    observer.update(momentum=config.activation_momentum)
    return loss.detach()


@torch.no_grad()
def _calibrate(model: SupernetViT, x_BCHW: Tensor) -> None:
    """First activation scales, from a float pass of the largest subnet."""
    observer = Observer(quantize=False)
    for mixer in range(len(model.space.operator)):
        subnet = model.space.largest(operator=mixer)
        model(x_BCHW, subnet, observer)
    observer.update(momentum=0.0)


def _summary(epoch: int, epochs: int, probes: dict[str, Evaluation]) -> str:
    shown = "  ".join(f"{name} {p.accuracy:.1%}" for name, p in probes.items())
    return f"epoch {epoch + 1}/{epochs}" + (f"  validation: {shown}" if shown else "")


@contextmanager
def _metrics(folder: Path, *, epochs_done: int) -> Iterator[Any]:
    """A function that logs one epoch to JSONL and TensorBoard; rows of epochs that are done again are dropped."""
    path = folder / "metrics.jsonl"
    kept = []
    if epochs_done and path.exists():
        # One row for each epoch, in order, so those to keep are the first ones; what a kill left half written is not.
        kept = path.read_text(encoding="utf-8").splitlines()[:epochs_done]
    write_atomic(path, "".join(line + "\n" for line in kept))
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs_done + 1)

    def log(row: dict[str, Any]) -> None:
        append_line(path, json.dumps(row))
        for name in ("train_loss", "lr"):
            writer.add_scalar(name, row[name], row["epoch"])
        for name, values in (row["val"] or {}).items():
            for metric in ("accuracy", "loss"):
                writer.add_scalar(f"val_{metric}/{name}", values[metric], row["epoch"])

    try:
        yield log
    finally:
        writer.close()


def _check_same_run(
    start: Checkpoint,
    path: Path,
    *,
    space: SearchSpace,
    supernet: SupernetConfig,
    train_split: Split,
    settings: dict[str, Any],
) -> None:
    for name, theirs, ours in (
        *((f"space.{key}", asdict(start.space)[key], value) for key, value in asdict(space).items()),
        *((f"supernet.{key}", asdict(start.supernet)[key], value) for key, value in asdict(supernet).items()),
        *((key if key == "seed" else f"train.{key}", start.settings.get(key), v) for key, v in settings.items()),
        ("the training data's digest", start.train_digest, train_split.digest),
    ):
        if theirs != ours:
            raise UsageError(
                f"{path}: cannot resume: {name} is {ours}, the checkpoint was trained with {theirs}; "
                "restore the setting, or start over with --overwrite"
            )


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], *, source: str) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    try:
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except (ValueError, KeyError) as error:
        raise DamagedInputError(f"{source}: the optimizer's state does not fit: {error}") from None
