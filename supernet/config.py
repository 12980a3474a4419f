"""Settings of the supernet and its training. Torch-free, so that a configuration is checked before torch loads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

#: told of progress in anything long: steps done, steps in all, and a few words on how it goes
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class SupernetConfig:
    """What the supernet has beside its space, and where it starts.

    Args:
        layer_scale: initial value of supernet layer scaling, null for none; with `init_from` it starts at 1.
        init_from: a timm model's name, the path of its weights, or a checkpoint of a supernet of the same space; see
            `supernet.pretrained`. Null starts from random weights.
        reorder: whether to order heads, hidden units and channels of `init_from` by importance, once.
        calibration_images: training images that set the first activation ranges, and the order.
        scales: of weight rows and activations: measured, by the largest weight and running ranges of activations, or
            learned with the weights (LSQ), starting from those ranges; see `supernet.quantize`.
    """

    __pydantic_config__ = {"extra": "forbid"}

    layer_scale: float | None = 0.1
    init_from: str | None = None
    reorder: bool = True
    calibration_images: int = 200
    scales: Literal["measured", "learned"] = "measured"

    def __post_init__(self) -> None:
        if self.calibration_images < 1:
            raise ValueError(f"calibration_images must be positive, not {self.calibration_images}")
        if self.layer_scale is not None and not 0 < self.layer_scale <= 1:
            raise ValueError(f"layer_scale must lie in (0, 1] or be null, not {self.layer_scale}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """Which subnets a training step trains; see `supernet.sampling`.

    Args:
        strategy: registered name: single, sandwich, max_random or a plug-in's.
        random: random subnets in a step, beside those that the strategy always takes.
        project_conflicts: where the gradient of the largest subnet points against that of the others, leave out its
            part along theirs (see `supernet.step`); for strategies that train the largest subnet first.
    """

    __pydantic_config__ = {"extra": "forbid"}

    strategy: str = "single"
    random: int = 1
    project_conflicts: bool = False

    def __post_init__(self) -> None:
        if self.random < 1:
            raise ValueError(f"random must be positive, not {self.random}")
        if self.project_conflicts and self.strategy == "single":
            raise ValueError(
                "project_conflicts needs the largest subnet in each step, and strategy single has none; choose "
                "sandwich or max_random"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """What teaches the subnets beside the labels; see `supernet.distill`.

    Without `teacher`, the largest subnet teaches the other ones of its step, and learns from the labels alone.

    Args:
        kind: none, kl (Kullback-Leibler divergence) or alpha (adaptive alpha-divergence).
        teacher: a timm model's name, or the path of a checkpoint of a supernet, whose largest subnet then teaches.
        pretrained: fetch timm's weights for `teacher`.
        teacher_weights: path of weights for a `teacher` of timm.
        weight: share of the divergence in the loss of a taught subnet; the labels have the rest.
        temperature: of both softmaxes, for `kl`.
        alpha_min, alpha_max: the two divergences of which `alpha` takes the larger, for each image.
        clip: upper limit of `alpha`'s importance ratios.
    """

    __pydantic_config__ = {"extra": "forbid"}

    kind: Literal["none", "kl", "alpha"] = "none"
    teacher: str | None = None
    pretrained: bool = False
    teacher_weights: str | None = None
    weight: float = 1.0
    temperature: float = 1.0
    alpha_min: float = -1.0
    alpha_max: float = 1.0
    clip: float = 5.0

    def __post_init__(self) -> None:
        if self.teacher is None:
            for name in ("pretrained", "teacher_weights"):
                if getattr(self, name):
                    raise ValueError(f"{name} has no effect without a teacher; name one, or remove the key")
        elif self.kind == "none":
            raise ValueError(f"teacher is {self.teacher}, but kind is none; choose kl or alpha, or remove the teacher")
        if self.pretrained and self.teacher_weights is not None:
            raise ValueError("pretrained and teacher_weights exclude each other; remove one of them")
        if not 0 < self.weight <= 1:
            raise ValueError(f"weight must lie in (0, 1], not {self.weight}")
        for name in ("temperature", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, not {getattr(self, name)}")
        for name in ("alpha_min", "alpha_max"):
            if getattr(self, name) == 0 or not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite and not 0, but is {getattr(self, name)}")
        if not self.alpha_min < self.alpha_max:
            raise ValueError(f"alpha_min ({self.alpha_min}) must be below alpha_max ({self.alpha_max})")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Training of the supernet, with linear warm-up of the learning rate and a cosine to `min_lr`.

    Args:
        epochs: 0 only calibrates the activation scales of the initial weights.
        batch_size: images of one optimizer step.
        optimizer: adamw, or muon (Jordan et al. 2024, as in timm): matrices (weights and position embeddings) take
            orthogonalized steps of the size that AdamW's have, so that similar `lr` fit; all else is AdamW's.
        float_epochs: first epochs, without quantization; the ranges of activations are followed all the same.
        auxiliary_share: share of the epochs over which the weight of what operators add in training alone falls from 1
            to 0, step by step (softmax attention beside linear-angular attention); 0 trains without it.
        accumulate: equal parts in which a batch goes through the network, one after the other: less memory, and the
            same gradient up to rounding.
        clip_grad_norm: upper limit of the gradient's norm, null for none.
        activation_momentum: of the running ranges of activations.
        eval_every: epochs between evaluations of the probe subnets.
        precision: of products in training; weights, scales and codes are float32 in any case, and so is evaluation.
        ema_decay: of a moving average of the weights, which is then what is evaluated, searched and exported.
        drop_path: chance of the last block's branches to be left out for an image; that of others rises to it.
        mixup, cutmix: parameters alpha of timm's Mixup, 0 for none; with both, each batch takes one of them.
        sampling: which subnets a step trains.
        distill: what teaches them beside the labels.
        check_every: steps between two looks at the loss for spikes and NaN.
        spike_factor: a spike is a mean loss, over those steps, so many times as large as it was (see `LossWatch`);
            null looks for NaN and infinity only.
        max_rollbacks: times to go back to the last checkpoint after a spike or NaN, in the whole training.
    """

    __pydantic_config__ = {"extra": "forbid"}

    epochs: int
    batch_size: int
    lr: float
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = 0.05
    warmup_epochs: float = 5.0
    min_lr: float = 1e-5
    label_smoothing: float = 0.1
    clip_grad_norm: float | None = 1.0
    activation_momentum: float = 0.95
    eval_every: int = 1
    float_epochs: int = 0
    auxiliary_share: float = 0.5
    accumulate: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    ema_decay: float | None = None
    drop_path: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    sampling: SamplingConfig = SamplingConfig()
    distill: DistillConfig = DistillConfig()
    check_every: int = 50
    spike_factor: float | None = 2.0
    max_rollbacks: int = 3

    def __post_init__(self) -> None:
        for name in ("batch_size", "lr", "eval_every", "accumulate", "check_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in (
            "epochs",
            "weight_decay",
            "warmup_epochs",
            "min_lr",
            "float_epochs",
            "mixup",
            "cutmix",
            "max_rollbacks",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")
        for name in ("label_smoothing", "activation_momentum", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}")
        if not 0 <= self.auxiliary_share <= 1:
            raise ValueError(f"auxiliary_share must lie in [0, 1], not {self.auxiliary_share}")
        if self.clip_grad_norm is not None and not self.clip_grad_norm > 0:
            raise ValueError(f"clip_grad_norm must be positive or null, not {self.clip_grad_norm}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie between 0 and 1 or be null, not {self.ema_decay}")
        if self.spike_factor is not None and not self.spike_factor > 1:
            raise ValueError(f"spike_factor must be above 1 or null, not {self.spike_factor}")
        for name in ("lr", "weight_decay", "warmup_epochs", "min_lr", "clip_grad_norm", "mixup", "cutmix"):
            if not math.isfinite(getattr(self, name) or 0):
                raise ValueError(f"{name} must be finite, not {getattr(self, name)}")
        self._check_together()

    def _check_together(self) -> None:
        if self.epochs and self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must be fewer than epochs ({self.epochs})")
        if self.float_epochs > self.epochs:
            raise ValueError(f"float_epochs ({self.float_epochs}) must not be more than epochs ({self.epochs})")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate: {self.accumulate} parts do not divide batch_size {self.batch_size}")
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(f"batch_size must be even for mixup and cutmix, not {self.batch_size}")
        if self.distill.kind != "none" and self.distill.teacher is None and self.sampling.strategy == "single":
            raise ValueError(
                f"distill.kind is {self.distill.kind}, but nothing teaches: choose sampling.strategy sandwich or "
                "max_random, or name a distill.teacher"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """Further training of a chosen subnet by itself, from the weights that it inherits.

    Args:
        epochs: over the training split.
        lr: the first learning rate, which falls by a cosine to `train.min_lr`; null is a tenth of `train.lr`.
    """

    __pydantic_config__ = {"extra": "forbid"}

    epochs: int = 2
    lr: float | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, not {self.epochs}")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite or null, not {self.lr}")
