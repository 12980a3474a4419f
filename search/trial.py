"""Evaluated subnets, the front among them, and its hypervolume."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Any

from supernet.subnet import Subnet


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One subnet with its accuracy on the validation split and its latency; `index` counts evaluations from 0.

    `val_kl` is its mean divergence from floats in nats, where subnets are ranked by it (`search.signal`). If it is not
    `complete`, it was dropped from a race: accuracy, loss and divergence are estimates (`search.racing`).
    """

    index: int
    generation: int
    digest: str
    genotype: tuple[int, ...]
    val_accuracy: float
    val_loss: float
    latency_ms: float
    complete: bool = True
    val_kl: float | None = None

    @property
    def score(self) -> float:
        """What a search makes large, in [0, 1]: the accuracy or, where there is a divergence, exp(-divergence)."""
        return self.val_accuracy if self.val_kl is None else math.exp(-self.val_kl)

    @property
    def quality(self) -> tuple[float, float, float]:
        """For ranking under a latency limit: score, then lower loss (ties are common), then lower latency."""
        return (self.score, -self.val_loss, -self.latency_ms)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in `trials.jsonl`; `complete` only where it is false, `val_kl` only where it was measured."""
        data = {name: getattr(self, name) for name in self.__slots__}
        usual = {"complete": True, "val_kl": None}
        return {name: value for name, value in data.items() if name not in usual or value != usual[name]}


@dataclass(frozen=True, kw_only=True, slots=True)
class ParetoFront:
    """The complete trials that no other beats in both latency and score, from the fastest to the slowest."""

    trials: tuple[Trial, ...]

    @staticmethod
    def of(trials: Iterable[Trial]) -> ParetoFront:
        """The front among the complete ones of `trials`; of equals, the one with the lower loss."""
        front: list[Trial] = []
        complete = [trial for trial in trials if trial.complete]
        for trial in sorted(complete, key=lambda t: (t.latency_ms, -t.score, t.val_loss, t.index)):
            if not front or trial.score > front[-1].score:
                front.append(trial)
        return ParetoFront(trials=tuple(front))

    def hypervolume(self, *, slowest_ms: float) -> float:
        """The area between the front and the corner (slowest, score 0), with latency in units of `slowest_ms`.

        It lies in [0, 1]: 1 would be the full score in no time. Trials slower than `slowest_ms` do not count.
        """
        inside = [trial for trial in self.trials if trial.latency_ms <= slowest_ms]
        ends = [trial.latency_ms for trial in inside[1:]] + [slowest_ms]
        return sum(
            trial.score * (end - trial.latency_ms) / slowest_ms
            for trial, end in zip(inside, ends, strict=False)  # without a trial there is no area before the end
        )


def best_under(trials: Sequence[Trial], limit_ms: float, *, count: int = 1) -> list[Trial]:
    """The `count` best of the trials that meet the limit, best first; fewer if fewer meet it."""
    feasible = [trial for trial in trials if trial.latency_ms <= limit_ms]
    return nlargest(count, feasible, key=lambda t: (t.quality, -t.index))


def most_accurate_first(best: Sequence[Trial], *, count: int) -> list[Trial]:
    """The trials with the first `count` of them in the order of accuracy, even if something else ranked them."""
    return sorted(best[:count], key=lambda t: (t.val_accuracy, t.quality, -t.index), reverse=True) + list(best[count:])


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What the search found for one target: a trial and its subnet, or the reason why there is none.

    `alternatives` are the next best trials that meet the target, best first.
    """

    limit_ms: float
    trial: Trial | None = None
    subnet: Subnet | None = None
    alternatives: tuple[Trial, ...] = ()
    reason: str | None = None
    nearest_latency_ms: float | None = None
