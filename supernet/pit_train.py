"""Training of one pooling ViT by itself, quantized from the first step on or after some epochs in floats.

The settings are those of a supernet's training, as far as one network can follow them: there are no subnets to sample
and to teach each other, and no augmentation that mixes images.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor

from hwmodel.errors import QuasarError, UsageError
from supernet.config import Progress, TrainConfig
from supernet.data.splits import Split
from supernet.functional import Observer
from supernet.pit import PitViT, build_pit
from supernet.pit_shape import PitShape
from supernet.train import State, steps_per_epoch
from supernet.vit import quantized, unquantized

#: images that set the first activation ranges
_CALIBRATION_IMAGES = 200


def train_pit(
    shape: PitShape,
    *,
    high_precision_ratio: float,
    config: TrainConfig,
    train_split: Split,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> PitViT:
    """A pooling ViT trained from random weights, in evaluation mode.

    Args:
        high_precision_ratio: share of 8-bit rows of the four linears of each block; the rest have 4.
        config: what one network cannot follow must be off; see `_check`.
        seed: of the initial weights; the order of images is that of `train_split`.

    Raises:
        UsageError: a setting that one network cannot follow, or a batch larger than the split.
        QuasarError: training diverges.
    """
    _check(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_pit(shape, high_precision_ratio=high_precision_ratio).to(device)
    observer = Observer(quantize=False)
    with torch.no_grad():
        images = next(train_split.batches(_CALIBRATION_IMAGES, device=device))[0]
        model(images, observer, weights=unquantized)
    observer.update(momentum=0.0)
    steps = steps_per_epoch(config, train_split)
    state = State.fresh(cast(Any, model), config=config, steps=steps)  # of which it needs no more than a module
    while state.epoch < config.epochs:
        losses, quantize = [], state.epoch >= config.float_epochs
        for x_BCHW, y_B in train_split.batches(config.batch_size, epoch=state.epoch, device=device):
            state.scheduler.step_update(state.step)
            losses.append(_step(model, state.optimizer, config, x_BCHW, y_B, quantize=quantize))
            state.step += 1
            if state.average is not None:
                state.average.update(model, step=state.step)
            progress(state.step, steps * config.epochs, f"epoch {state.epoch + 1}/{config.epochs}")
        if not torch.stack(losses).isfinite().all():
            raise QuasarError(
                f"training a PiT, seed {seed}: the loss became infinite or no number in epoch {state.epoch + 1}; "
                "use a lower learning rate or train.clip_grad_norm"
            )
        state.epoch += 1
        for module in {model, cast(PitViT, state.weights)}:
            module.refresh_clips()
    return cast(PitViT, state.weights).eval()


def _step(
    model: PitViT,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    x_BCHW: Tensor,
    y_B: Tensor,
    *,
    quantize: bool,
) -> Tensor:
    """One update; the loss before it."""
    observer = Observer(quantize=quantize)
    with torch.autocast(x_BCHW.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        logits = model(x_BCHW, observer, weights=quantized if quantize else unquantized)
    loss = F.cross_entropy(logits.float(), y_B, label_smoothing=config.label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if config.clip_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
    optimizer.step()
    observer.update(momentum=config.activation_momentum)
    return loss.detach()


def _check(config: TrainConfig) -> None:
    """Raises `UsageError` for a setting that would have no effect.

    But for `train.auxiliary_share`, whose default is not 0: operators of a PiT add nothing in training.
    """
    for name, off in (("mixup", 0), ("cutmix", 0), ("drop_path", 0), ("accumulate", 1)):
        if getattr(config, name) != off:
            raise UsageError(f"train.{name}: the training of a PiT has none; set it to {off}")
    if config.distill.kind != "none":
        raise UsageError("train.distill.kind: nothing teaches a PiT; set it to none")
