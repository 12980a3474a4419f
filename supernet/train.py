"""Quantization-aware training of a supernet; what happens in one step is in `supernet.step`.

Everything random in step s of epoch e is drawn from generators seeded by (seed, s) and (seed, e), and checkpoints are
written at the end of epochs, so a resumed run continues as if it had not stopped.

A training that diverges (see `supernet.watch`) goes back to the last checkpoint, and from there takes other batches and
other subnets. This is replayed identically, too: the checkpoint counts the rollbacks.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor

from hwmodel.errors import DamagedInputError, QuasarError, UsageError
from supernet.checkpoint import Checkpoint
from supernet.config import Progress, SupernetConfig, TrainConfig
from supernet.data.splits import Split
from supernet.distill import Teacher, load_teacher
from supernet.evaluate import Evaluation, probe
from supernet.metrics import open_metrics
from supernet.parallel import ALONE, Workers
from supernet.pretrained import prepare
from supernet.space import SearchSpace
from supernet.step import Step
from supernet.subnet import Subnet
from supernet.vit import SupernetViT
from supernet.watch import LossWatch

#: told of an evaluated epoch: epochs done, and the results of the probe subnets on the validation split
OnEvaluation = Callable[[int, dict[str, Evaluation]], None]


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
    workers: Workers = ALONE,
    on_evaluation: OnEvaluation | None = None,
) -> TrainResult:
    """Trains a supernet and leaves `metrics.jsonl`, `tensorboard/` and `checkpoints/` in `folder`.

    `checkpoints/last.safetensors` is the state after the last whole epoch, `best.safetensors` that with the highest
    mean accuracy of the probe subnets.

    Args:
        resume: go on from `last.safetensors`, if there is one.
        workers: that do this together, each on its share of every batch. Results depend on their number only as far
            as rounding does, and it may change when a training is resumed. `folder` is the same for all.
        on_evaluation: called after each epoch that is evaluated, its checkpoint written. What it raises ends the
            training, which can be resumed.

    Raises:
        UsageError: a batch is larger than the training split, or does not divide among the workers; a teacher that
            cannot teach; `resume`, but the checkpoint is of another space, data set or settings.
        DamagedInputError: a checkpoint that cannot be read.
        QuasarError: training diverges more often than `config.max_rollbacks`, or the disk refuses a checkpoint.
    """
    last = folder / "checkpoints" / "last.safetensors"
    steps = steps_per_epoch(config, train_split)
    workers.check(config.batch_size, config.accumulate)
    about = _About(space=space, supernet=supernet, train_digest=train_split.digest, settings=_flat(config, seed))
    teacher = load_teacher(config.distill, space=space, split=train_split, device=device)
    if workers.first and not (resume and last.exists()):
        model = new_supernet(space, supernet, seed=seed).to(device)
        prepare(model, supernet, train_split, seed=seed)
        State.fresh(model, config=config, steps=steps).checkpoint(about).save(last)
    workers.wait()
    # Also what has just begun: it is where a first epoch that diverges goes back to, and where other workers begin.
    start = Checkpoint.load(last)
    _check_same_run(start, last, about)
    state = State.restored(start, source=str(last), config=config, steps=steps, device=device)
    probes: dict[str, Evaluation] = {}
    with open_metrics(folder if workers.first else None, epochs_done=state.epoch) as metrics:
        while state.epoch < config.epochs:
            started = time.monotonic()
            try:
                loss = train_epoch(
                    state,
                    train_split,
                    config=config,
                    seed=seed,
                    teacher=teacher,
                    progress=progress,
                    text=_summary(state.epoch, config.epochs, probes),
                    workers=workers,
                )
            except DivergedError as diverged:
                metrics.rollback(epoch=state.epoch + 1, step=state.step, cause=str(diverged))
                _warn_or_stop(state, config, str(diverged), warn=workers.first)
                state = _rolled_back(state, last, config=config, device=device)
                continue
            state.epoch += 1
            evaluated = state.epoch == config.epochs or state.epoch % config.eval_every == 0
            if evaluated:
                probes = probe(state.weights, val_split, batch_size=_evaluation_batch(config), workers=workers)
            best = evaluated and state.improves(probes)
            # Logged before the checkpoint: a kill between the two repeats the epoch, and its row is then dropped.
            metrics.epoch(_row(state, loss, seconds=time.monotonic() - started, probes=probes if evaluated else None))
            if workers.first:
                _save(state.checkpoint(about), last, best=best)
            if evaluated and on_evaluation is not None:
                on_evaluation(state.epoch, probes)
    if not probes:
        progress(state.step, state.step, "nothing is left to train")
        probes = probe(state.weights, val_split, batch_size=_evaluation_batch(config), workers=workers)
    workers.wait()  # until the checkpoint is there
    return TrainResult(checkpoint=last, probes=probes)


def _evaluation_batch(config: TrainConfig) -> int:
    """Images at once in float32 on one worker; `batch_size` is that of all workers together, and may be large."""
    return min(256, 4 * config.batch_size)


def _row(state: State, loss: float, *, seconds: float, probes: dict[str, Evaluation] | None) -> dict[str, Any]:
    """What the log keeps of the epoch that `state` has just done."""
    return {
        "epoch": state.epoch,
        "step": state.step,
        "lr": state.optimizer.param_groups[0]["lr"],
        "train_loss": loss,
        "seconds": seconds,
        "val": None if probes is None else {name: asdict(p) for name, p in probes.items()},
    }


def _save(checkpoint: Checkpoint, last: Path, *, best: bool) -> None:
    """Writes a checkpoint, and before that, if it is the best so far, its copy."""
    if best:
        checkpoint.save(last.with_name("best.safetensors"))
    checkpoint.save(last)


class DivergedError(Exception):
    """Training has diverged; the text is the cause."""


def _rolled_back(state: State, last: Path, *, config: TrainConfig, device: torch.device) -> State:
    """The state in the checkpoint `last`, after one rollback more than `state` has."""
    steps = state.steps_per_epoch
    restored = State.restored(Checkpoint.load(last), source=str(last), config=config, steps=steps, device=device)
    restored.rollbacks = state.rollbacks + 1
    return restored


def _warn_or_stop(state: State, config: TrainConfig, cause: str, *, warn: bool) -> None:
    """Says on the console, if `warn`, why training goes back; raises `QuasarError` if it may not any more."""
    where = f"training: {cause}, in epoch {state.epoch + 1}"
    if state.rollbacks >= config.max_rollbacks:
        raise QuasarError(
            f"{where}, after {state.rollbacks} rollbacks; lower train.lr (now {config.lr}) or set "
            "train.clip_grad_norm, and start over with --overwrite"
        )
    number = f"rollback {state.rollbacks + 1} of {config.max_rollbacks}"
    if warn:
        print(f"warning: {where}; back to the checkpoint before ({number})", file=sys.stderr)


@dataclass(frozen=True, kw_only=True, slots=True)
class _About:
    """What all checkpoints of a run say about it."""

    space: SearchSpace
    supernet: SupernetConfig
    train_digest: str
    settings: dict[str, Any]


@dataclass(kw_only=True, slots=True)
class State:
    """All that changes in training."""

    model: SupernetViT
    average: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    scheduler: CosineLRScheduler
    steps_per_epoch: int
    epoch: int = 0  # whole ones
    step: int = 0
    best_accuracy: float = -1.0
    rollbacks: int = 0
    loss_level: float | None = None

    @property
    def weights(self) -> SupernetViT:
        """The supernet to evaluate and to keep: the moving average of the weights where there is one."""
        return self.model if self.average is None else cast(SupernetViT, self.average.module)

    def improves(self, probes: dict[str, Evaluation]) -> bool:
        """Whether the mean accuracy of the probe subnets is the highest so far, which is then kept."""
        mean = float(np.mean([p.accuracy for p in probes.values()]))
        best = mean > self.best_accuracy
        self.best_accuracy = max(mean, self.best_accuracy)
        return best

    @staticmethod
    def fresh(model: SupernetViT, *, config: TrainConfig, steps: int) -> State:
        """The start, with the weights of `model` and `steps` optimizer steps in an epoch."""
        optimizer, scheduler = _optimizer_and_schedule(model, config, steps)
        # With warm-up the average forgets the first weights in short trainings, too.
        average = None if config.ema_decay is None else ModelEmaV3(model, decay=config.ema_decay, use_warmup=True)
        return State(model=model, average=average, optimizer=optimizer, scheduler=scheduler, steps_per_epoch=steps)

    @staticmethod
    def restored(
        checkpoint: Checkpoint, *, source: str, config: TrainConfig, steps: int, device: torch.device
    ) -> State:
        """The state that a checkpoint holds; raises `DamagedInputError` if it does not fit together."""
        state = State.fresh(checkpoint.build(source=source, to_train=True).to(device), config=config, steps=steps)
        if state.average is not None:
            state.average.set(checkpoint.build(source=source).to(device))  # type: ignore[no-untyped-call]
        if checkpoint.step:
            _restore_optimizer(state.optimizer, checkpoint.optimizer, source=source)
        for name in ("epoch", "step", "best_accuracy", "rollbacks", "loss_level"):
            setattr(state, name, getattr(checkpoint, name))
        return state

    def checkpoint(self, about: _About) -> Checkpoint:
        """All of it, to be written."""
        return Checkpoint(
            space=about.space,
            supernet=about.supernet,
            model=self.weights.state_dict(),
            trained={} if self.average is None else self.model.state_dict(),
            optimizer=_optimizer_state(self.optimizer),
            epoch=self.epoch,
            step=self.step,
            best_accuracy=self.best_accuracy,
            train_digest=about.train_digest,
            settings=about.settings,
            rollbacks=self.rollbacks,
            loss_level=self.loss_level,
        )


def train_epoch(
    state: State,
    split: Split,
    *,
    config: TrainConfig,
    seed: int,
    teacher: Teacher | None,
    progress: Progress,
    text: str = "",
    workers: Workers = ALONE,
    subnets: Sequence[Subnet] | None = None,
) -> float:
    """Trains for one epoch and gives the mean loss; raises `DivergedError` as soon as that is seen.

    Args:
        subnets: that each step trains, instead of those that `config.sampling` draws.
    """
    train_step = Step(
        state.model,
        state.optimizer,
        config,
        seed=seed,
        rollbacks=state.rollbacks,
        quantize=state.epoch >= config.float_epochs,
        auxiliary_steps=config.auxiliary_share * config.epochs * state.steps_per_epoch,
        teacher=teacher,
        workers=workers,
        subnets=subnets,
    )
    # The loss may rise where quantization begins: levels from before say nothing about it.
    level = None if state.epoch == config.float_epochs else state.loss_level
    watch = LossWatch(
        every=config.check_every,
        spike_factor=config.spike_factor,
        chance=math.log(state.model.space.num_classes),
        level=level,
    )
    device = state.model.cls_token.device
    loss_sum = torch.zeros((), device=device)
    # After a rollback the images come in the order of an epoch that is not part of the training.
    order = state.epoch + state.rollbacks * config.epochs
    steps = state.steps_per_epoch
    batches = split.batches(config.batch_size, epoch=order, device=device, places=workers.places(config.batch_size))
    for number, (x_BCHW, y_B) in enumerate(batches, start=1):
        state.scheduler.step_update(state.step)
        loss = train_step(x_BCHW, y_B, state.step)
        state.step += 1
        if state.average is not None:
            state.average.update(state.model, step=state.step)
        loss_sum += loss
        if cause := watch.add(loss, look=number == steps):
            raise DivergedError(cause)
        progress(state.step, steps * config.epochs, text)
    # The losses were those before each update: the last one may have broken the weights, which are to be kept next.
    if not torch.stack([parameter.isfinite().all() for parameter in state.model.parameters()]).all():
        raise DivergedError("the weights became infinite or no numbers in the last step")
    state.loss_level = watch.level
    state.model.refresh_clips()
    if state.average is not None:
        state.weights.refresh_clips()
    return loss_sum.item() / steps


def _optimizer_and_schedule(
    model: SupernetViT, config: TrainConfig, steps: int
) -> tuple[torch.optim.Optimizer, CosineLRScheduler]:
    """The optimizer, and the learning rate by step, with `steps` of them in an epoch."""
    optimizer = create_optimizer_v2(model, opt=config.optimizer, lr=config.lr, weight_decay=config.weight_decay)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=max(1, steps * config.epochs),
        lr_min=config.min_lr,
        warmup_t=round(config.warmup_epochs * steps),
        warmup_lr_init=config.min_lr,
        warmup_prefix=False,
        t_in_epochs=False,
    )
    return optimizer, scheduler


def _summary(epoch: int, epochs: int, probes: dict[str, Evaluation]) -> str:
    shown = "  ".join(f"{name} {p.accuracy:.1%}" for name, p in probes.items())
    return f"epoch {epoch + 1}/{epochs}" + (f"  validation: {shown}" if shown else "")


def _flat(config: TrainConfig, seed: int) -> dict[str, Any]:
    """All settings of a training by name, as the configuration has them: `train.distill.kind`, ..."""
    settings = {"seed": seed}
    for key, value in asdict(config).items():
        if isinstance(value, dict):
            settings |= {f"train.{key}.{name}": item for name, item in value.items()}
        else:
            settings[f"train.{key}"] = value
    return settings


def _check_same_run(start: Checkpoint, path: Path, about: _About) -> None:
    # Format 1 wrote the keys of `train` without a prefix; settings that a file does not know were as the defaults are.
    known = {key if key == "seed" or "." in key else f"train.{key}": value for key, value in start.settings.items()}
    known = _flat(TrainConfig(epochs=0, batch_size=1, lr=1.0), 0) | known
    for name, theirs, ours in (
        *((f"space.{key}", asdict(start.space)[key], value) for key, value in asdict(about.space).items()),
        *((f"supernet.{key}", asdict(start.supernet)[key], value) for key, value in asdict(about.supernet).items()),
        *((key, known.get(key), value) for key, value in about.settings.items()),
        ("the training data's digest", start.train_digest, about.train_digest),
    ):
        if theirs != ours:
            raise UsageError(
                f"{path}: cannot resume: {name} is {ours}, the checkpoint was trained with {theirs}; "
                "restore the setting, or start over with --overwrite"
            )


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    # Muon notes in a plain bool which parameters are matrices.
    return {
        f"{index}.{name}": torch.as_tensor(value) for index, values in state.items() for name, value in values.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], *, source: str) -> None:
    state: dict[int, dict[str, Tensor | bool]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = bool(value) if value.dtype == torch.bool else value
    try:
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except (ValueError, KeyError) as error:
        raise DamagedInputError(f"{source}: the optimizer's state does not fit: {error}") from None
