"""How networks grow with their budget: the law, its fit, and the shape that it gives at a budget.

    dimension(budget) = anchor * (budget / cost of the anchor) ^ exponent

for depth, width and resolution (patches along a side of the image). The exponents are the slopes of least squares over
the logarithms of the best candidates of each budget. Two errors of a slope are reported:

* the standard error of the regression: the scatter of the best candidates around the line;
* the selection error: accuracies are known from a number of images, so which candidates are best is partly luck. It is
  the standard deviation of the slope when the best are chosen again and again from accuracies with that noise added
  (binomial, independent: candidates are measured on the same images, so this overstates it somewhat).

An exponent counts as determined if its 95 % interval, from the larger error, reaches at most `MOST_UNCERTAINTY` to
either side.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Generic, Literal

import numpy as np
from scipy.stats import linregress
from scipy.stats import t as student_t

from hwmodel.cost import CostModel
from hwmodel.errors import InfeasibleError
from hwmodel.workload import Workload
from quasar.scaling.families import Family, Multipliers, S
from quasar.scaling.plan import Compound, Unit
from quasar.scaling.shapes import FloatArray

#: a 95 % interval of an exponent that is wider, to either side, says little about how to grow: width 0.25 to 0.75
MOST_UNCERTAINTY = 0.25
#: choices of the best candidates with other noise, for the selection error
REDRAWS = 400
#: shapes of a law are looked for between this share of the budget and its inverse, for rounding moves costs
_REACH = 1 / 8
_STEPS = 600

#: the base itself
_BASE = Multipliers()

Growth = Literal["depth", "width", "resolution"]
GROWTHS: tuple[Growth, ...] = ("depth", "width", "resolution")

#: what a network costs, infinite if the device cannot hold it
CostOf = Callable[[Workload], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exponents:
    """By what power of the cost each dimension grows."""

    __pydantic_config__ = {"extra": "forbid"}

    depth: float
    width: float
    resolution: float

    @staticmethod
    def of_compound(compound: Compound) -> Exponents:
        """Those of compound scaling by hand, whose factors are for a doubling of the cost."""
        return Exponents(**{field.name: math.log2(getattr(compound, field.name)) for field in fields(compound)})


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedExponent:
    """One exponent with its errors and 95 % interval, which are None where there are too few points.

    `status` is "fixed" where all candidates are alike in this dimension, so that there was nothing to find.
    """

    value: float
    standard_error: float | None
    selection_error: float
    low: float | None
    high: float | None
    status: Literal["determined", "undetermined", "fixed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed(Generic[S]):
    """A shape that a strategy gives at a budget, and what it costs."""

    shape: S
    cost: float
    budget: float

    @property
    def off(self) -> float:
        """By what share of the budget the cost is above it; negative below."""
        return self.cost / self.budget - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Strategy:
    """Exponents, and where they start: multipliers of a family's base at a cost in `unit`."""

    __pydantic_config__ = {"extra": "forbid"}

    unit: Unit
    exponents: Exponents
    cost: float
    anchor: Multipliers = _BASE

    def at(self, budget: float, family: Family[S], cost_of: CostOf) -> Placed[S]:
        """The shape along the law whose cost is nearest to a budget, as a factor.

        Args:
            family: whose base the multipliers are of.
            cost_of: in `unit`.

        Raises:
            InfeasibleError: the law does not grow, or none of its shapes near the budget fits the device.
        """
        middle = math.log(budget / self.cost)
        shapes: list[S] = []
        for t in np.linspace(middle + math.log(_REACH), middle - math.log(_REACH), _STEPS).tolist():
            shape = family.scaled(self._multipliers(t))
            if not shapes or shape != shapes[-1]:
                shapes.append(shape)
        known: dict[int, float] = {}

        def cost(index: int) -> float:
            if index not in known:
                known[index] = cost_of(family.lower(shapes[index]))
            return known[index]

        if math.inf > cost(0) >= cost(len(shapes) - 1):
            raise InfeasibleError(f"the strategy makes networks no costlier as the budget grows: {self.exponents}")
        # Costs grow along the law but for rounding: the nearest is among the neighbours of where they pass the budget.
        place = bisect.bisect_left(range(len(shapes)), budget, key=cost)
        near = [index for index in range(max(0, place - 4), min(len(shapes), place + 4)) if cost(index) < math.inf]
        if not near:
            raise InfeasibleError(f"no shape of the strategy near {budget:g} ({self.unit}) fits the device")
        best = min(near, key=lambda index: (abs(math.log(cost(index) / budget)), index))
        return Placed(shape=shapes[best], cost=cost(best), budget=budget)

    def moved(self, family: Family[S], cost_of: CostOf, *, anchor: Multipliers = _BASE) -> Strategy:
        """The same growth elsewhere: from `anchor` of another family's base, or at its cost on another device."""
        cost = cost_of(family.lower(family.scaled(anchor)))
        if cost == math.inf:
            raise InfeasibleError("the device cannot hold the network from which the strategy is to grow")
        return Strategy(unit=self.unit, exponents=self.exponents, cost=cost, anchor=anchor)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def _multipliers(self, t: float) -> Multipliers:
        return Multipliers(
            **{name: getattr(self.anchor, name) * math.exp(getattr(self.exponents, name) * t) for name in GROWTHS}
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """The candidates of one budget, as arrays over them (N,).

    Attributes:
        growths: their depth, width and resolution, (N, 3).
        cost: in the unit of the budget.
        accuracy: the mean over seeds, as a share.
        error: its standard error.
    """

    growths: FloatArray
    cost: FloatArray
    accuracy: FloatArray
    error: FloatArray

    def best(self, count: int, noise: FloatArray | float = 0.0) -> list[int]:
        """The numbers of the most accurate ones, the best first; of equally accurate ones the cheapest."""
        order = np.lexsort((self.cost, -(self.accuracy + noise)))
        return [int(number) for number in order[:count]]


def fit(candidates: Sequence[Measured], *, best: int, seed: int) -> tuple[dict[Growth, FittedExponent], Multipliers]:
    """Exponents from the best candidates of each budget, and the law's dimensions at the cost of the cheapest budget.

    Args:
        candidates: of at least two budgets, the cheapest first.
        best: candidates of each budget that count.
        seed: of the noise in the selection error.

    Returns:
        The exponents; and depth, width and resolution (no multiples of anything) at `reference_cost`.
    """
    chosen = [budget.best(best) for budget in candidates]
    log_cost, logs = _points(candidates, chosen)
    rng = np.random.default_rng(seed)
    redrawn = np.empty((REDRAWS, 3))
    for row in redrawn:
        noisy = [budget.best(best, rng.normal(0.0, 1.0, len(budget.cost)) * budget.error) for budget in candidates]
        x, y = _points(candidates, noisy)
        row[:] = np.polyfit(x, y, 1)[0]
    exponents: dict[Growth, FittedExponent] = {}
    anchor: dict[str, float] = {}
    for index, name in enumerate(GROWTHS):
        line = linregress(log_cost, logs[:, index])
        freedom = len(log_cost) - 2
        standard_error = float(line.stderr) if freedom > 0 else None
        selection_error = float(redrawn[:, index].std())
        half = None
        if standard_error is not None:
            half = float(student_t.ppf(0.975, freedom)) * max(standard_error, selection_error)
        fixed = len({size for budget in candidates for size in budget.growths[:, index].tolist()}) == 1
        determined = half is not None and half <= MOST_UNCERTAINTY
        exponents[name] = FittedExponent(
            value=float(line.slope),
            standard_error=standard_error,
            selection_error=selection_error,
            low=None if half is None else float(line.slope) - half,
            high=None if half is None else float(line.slope) + half,
            status="fixed" if fixed else "determined" if determined else "undetermined",
        )
        anchor[name] = math.exp(line.intercept + line.slope * math.log(reference_cost(candidates)))
    return exponents, Multipliers(**anchor)


def reference_cost(candidates: Sequence[Measured]) -> float:
    """The mean cost, by its logarithm, of the candidates of the cheapest budget."""
    return float(np.exp(np.log(candidates[0].cost).mean()))


def _points(candidates: Sequence[Measured], chosen: Sequence[Sequence[int]]) -> tuple[FloatArray, FloatArray]:
    """Logarithms of cost (P,) and of the growths (P, 3) of the chosen candidates."""
    cost = np.concatenate([budget.cost[numbers] for budget, numbers in zip(candidates, chosen, strict=True)])
    growths = np.concatenate([budget.growths[numbers] for budget, numbers in zip(candidates, chosen, strict=True)])
    return np.log(cost), np.log(growths)


def cost_function(unit: Unit, model: CostModel | None) -> CostOf:
    """What a network costs in `unit`; `model` is that of the device, for latencies."""

    def cost_of(workload: Workload) -> float:
        if unit == "macs":
            return float(workload.macs)
        assert model is not None
        try:
            estimate = model.estimate(workload)
        except InfeasibleError:  # no accelerator holds it
            return math.inf
        return math.inf if estimate.violations else estimate.latency_ms

    return cost_of


def exponents_of(fitted: Mapping[Growth, FittedExponent]) -> Exponents:
    """The values alone."""
    return Exponents(**{name: fitted[name].value for name in GROWTHS})
