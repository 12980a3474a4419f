"""Detects that a training diverges: NaN, infinity, and spikes of the loss."""

from __future__ import annotations

import math

from torch import Tensor


class LossWatch:
    """Sums losses where they are, on the device, and looks at their mean every `every` steps only.

    A spike is a mean over those steps that is more than `spike_factor` times the smoothed mean of the looks before
    (or `chance`, the loss of a guess, if that is less), and more than half of `chance`: small losses double without
    harm. NaN and infinity survive in a sum, so none is missed.

    Args:
        every: steps between looks.
        spike_factor: None to look for NaN and infinity only.
        chance: ln(classes).
        level: the smoothed mean of earlier looks.
    """

    smoothing = 0.7

    def __init__(self, *, every: int, spike_factor: float | None, chance: float, level: float | None = None) -> None:
        self.every = every
        self.spike_factor = spike_factor
        self.chance = chance
        self._sum: Tensor | None = None
        self._steps = 0
        self.level = level

    def add(self, loss: Tensor, *, look: bool = False) -> str | None:
        """Takes the loss of one step; gives the cause once training has diverged.

        Args:
            look: now, whatever the step: the end of an epoch, before its weights are saved.
        """
        self._sum = loss.detach().clone() if self._sum is None else self._sum.add_(loss.detach())
        self._steps += 1
        if not look and self._steps < self.every:
            return None
        mean = float(self._sum.item()) / self._steps
        steps, self._sum, self._steps = self._steps, None, 0
        if not math.isfinite(mean):
            return f"the loss became {mean} within the last {steps} steps"
        if self.spike_factor is not None:
            # Nothing is known before the first look, and no level above a guess is one to go on from.
            before = self.chance if self.level is None else min(self.level, self.chance)
            limit = max(self.spike_factor * before, self.chance / 2)
            if mean > limit:
                return f"the loss of the last {steps} steps rose to {mean:.4g}; no more than {limit:.4g} was expected"
        self.level = mean if self.level is None else self.smoothing * self.level + (1 - self.smoothing) * mean
        return None
