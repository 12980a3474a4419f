"""What a subnet costs and how accurate it is, and which one a budget allows. Needs no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hwmodel.errors import UsageError

#: what a budget can limit, for each image
Limited = Literal["latency_ms", "energy_mj"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """The most that one image may take; at least one of the two is given.

    Raises:
        UsageError: neither is given, or one is not a positive number.
    """

    latency_ms: float | None = None
    energy_mj: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in self.limits().items() if value is not None}
        if not given:
            raise UsageError("a budget needs latency_ms or energy_mj")
        for name, value in given.items():
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"the budget {name} must be a positive number, not {value}")

    def limits(self) -> dict[Limited, float | None]:
        """Both, by name."""
        return {"latency_ms": self.latency_ms, "energy_mj": self.energy_mj}

    def __str__(self) -> str:
        units = {"latency_ms": "ms", "energy_mj": "mJ"}
        return " and ".join(f"{value:g} {units[name]}" for name, value in self.limits().items() if value is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """A subnet that can be chosen: its recorded top-1 as a share in [0, 1], and its cost for one image."""

    subnet: str
    accuracy: float
    latency_ms: float
    energy_mj: float

    def meets(self, budget: Budget) -> bool:
        """Whether it costs no more than the budget."""
        return all(limit is None or getattr(self, name) <= limit for name, limit in budget.limits().items())


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The subnet that a budget led to.

    Args:
        costs: where the latency comes from: "modelled" for the device of the bundle, or "measured" on this host. The
            energy is always modelled.
        met: False where no subnet meets the budget.
    """

    offer: Offer
    budget: Budget
    costs: Literal["modelled", "measured"]
    met: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        budget = {name: limit for name, limit in self.budget.limits().items() if limit is not None}
        return asdict(self.offer) | {"costs": self.costs, "met": self.met, "budget": budget, "message": str(self)}

    def __str__(self) -> str:
        offer = self.offer
        text = f"{offer.subnet}: {offer.accuracy:.2%}, {offer.latency_ms:.4g} ms ({self.costs}), "
        text += f"{offer.energy_mj:.4g} mJ (modelled)"
        return text if self.met else f"no subnet meets {self.budget}; the fastest is taken, {text}"


def choose(offers: Sequence[Offer], budget: Budget) -> tuple[Offer, bool]:
    """The most accurate subnet within a budget; or if there is none the fastest one, and False.

    Of equally accurate ones it is the faster, then the one with less energy.
    """
    within = [offer for offer in offers if offer.meets(budget)]
    if within:
        return max(within, key=lambda offer: (offer.accuracy, -offer.latency_ms, -offer.energy_mj)), True
    return min(offers, key=lambda offer: (offer.latency_ms, offer.energy_mj)), False
