"""Settings of the supernet and its training. Torch-free, so that a configuration is checked before torch loads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

#: told of progress in anything long: steps done, steps in all, and a few words on how it goes
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class SupernetConfig:
    """What the supernet has beside its space: the initial value of supernet layer scaling, null for none."""

    __pydantic_config__ = {"extra": "forbid"}

    layer_scale: float | None = 0.1

    def __post_init__(self) -> None:
        if self.layer_scale is not None and not 0 < self.layer_scale <= 1:
            raise ValueError(f"layer_scale must lie in (0, 1] or be null, not {self.layer_scale}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Training of the supernet: AdamW with linear warm-up and a cosine to `min_lr`, one random subnet a step."""

    __pydantic_config__ = {"extra": "forbid"}

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float = 0.05
    warmup_epochs: float = 5.0
    min_lr: float = 1e-5
    label_smoothing: float = 0.1
    clip_grad_norm: float | None = 1.0
    activation_momentum: float = 0.95
    eval_every: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr", "eval_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("weight_decay", "warmup_epochs", "min_lr"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")
        for name in ("label_smoothing", "activation_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}")
        if self.clip_grad_norm is not None and not self.clip_grad_norm > 0:
            raise ValueError(f"clip_grad_norm must be positive or null, not {self.clip_grad_norm}")
        for name in ("lr", "weight_decay", "warmup_epochs", "min_lr", "clip_grad_norm"):
            if not math.isfinite(getattr(self, name) or 0):
                raise ValueError(f"{name} must be finite, not {getattr(self, name)}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must be fewer than epochs ({self.epochs})")
