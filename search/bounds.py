"""The figures of subnets, and their extremes over a whole space, without enumerating it.

On one accelerator all figures add up over the parts of a subnet, so their extremes are put together from the extreme
halves of blocks (`search.parts`); figures in bytes to within the rounding of a byte.

Where every subnet has its own accelerator, the fastest subnet is the fastest on some design, so it is among the fastest
ones on each design: of all, and of those that are no larger than some subnet of the space, because a design may hold
small ones alone. The slowest is sought among the slowest on each design, which is where it is when designs agree about
what is slow; for a fact it is a subnet of the space with that latency. The least energy on any design bounds that of
all subnets from below, whichever designs they have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.cost import CostBatch, CostModel, FloatArray
from hwmodel.workload import Population
from search.parts import SpaceParts
from supernet.space import Genotypes, SearchSpace

#: figures of a subnet, in the order of tables, with their units
FIGURES: Mapping[str, str] = {
    "latency_ms": "ms",
    "fps": "FPS",
    "energy_mj": "mJ",
    "weight_bytes": "bytes",
    "macs": "MAC",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyBounds:
    """The extremes of a space on the hardware of a cost model, and genotypes (G,) that reach them."""

    fastest_ms: float
    slowest_ms: float
    fastest: Genotypes
    slowest: Genotypes


@dataclass(frozen=True, kw_only=True, slots=True)
class Extremes:
    """The least and the most of a figure over a space, and genotypes (G,) that have them.

    Every subnet has at least `bound`, which is `least` itself where all subnets share an accelerator.
    """

    least: float
    most: float
    bound: float
    smallest: Genotypes
    largest: Genotypes


def figures_of(space: SearchSpace, model: CostModel, genotypes: Genotypes) -> dict[str, FloatArray]:
    """All `FIGURES` of canonical genotypes (N, G), each of shape (N,)."""
    return _figures(*_costs(space, model, genotypes))


def latency_bounds(space: SearchSpace, model: CostModel) -> LatencyBounds:
    """The smallest and the largest latency of any subnet in `space`."""
    found = extremes(space, model, "latency_ms")
    return LatencyBounds(fastest_ms=found.least, slowest_ms=found.most, fastest=found.smallest, slowest=found.largest)


def extremes(space: SearchSpace, model: CostModel, name: str) -> Extremes:
    """The extremes of one of the `FIGURES` other than `fps`; see the module's docstring."""
    parts = SpaceParts.of(space)
    figures = _of_parts(parts, model, name)
    smallest, largest = parts.extremes(figures)
    alone = len(model.designs) == 1
    candidates = [smallest, largest]
    if not alone:
        candidates.append(space.encode(space.smallest())[None])  # which some design holds
        if name == "latency_ms":
            sizes = np.unique(parts.population.part_activation_bytes).tolist()
            candidates += [parts.extremes(figures, most_bytes=most)[0] for most in sizes]
    genotypes = np.unique(np.concatenate(candidates), axis=0)
    batch, population = _costs(space, model, genotypes)
    values = _figures(batch, population)[name]
    held = np.ones_like(batch.fits) if alone else batch.fits
    low, high = np.where(held, values, np.inf).argmin(), np.where(held, values, -np.inf).argmax()
    least = bound = float(values[low])
    if (
        name == "energy_mj" and not alone
    ):  # a subnet's own design has its least latency, and nothing to do with the rest
        rows = np.arange(len(figures))[:, None]
        bound = min(least, float(figures[rows, parts.numbers(smallest)].sum(axis=1).min()))
    return Extremes(
        least=least,
        most=float(values[high]),
        bound=bound,
        smallest=genotypes[low],
        largest=genotypes[high],
    )


def _of_parts(parts: SpaceParts, model: CostModel, name: str) -> NDArray[Any]:
    """What parts have of a figure on each of the designs, in any unit, (K, U); K is 1 if designs do not matter."""
    population = parts.population
    if name == "weight_bytes":
        bits = population.gemms.weight_bits(high_bits=population.high_bits, low_bits=population.low_bits)
        return population.gemm_parts(bits)
    if name == "macs":
        return population.gemm_parts(population.gemms.macs())
    batches = [design.table(population).costs(parts.each) for design in model.designs]
    return np.stack([batch.energy_mj if name == "energy_mj" else batch.latency_ms for batch in batches])


def _costs(space: SearchSpace, model: CostModel, genotypes: Genotypes) -> tuple[CostBatch, Population]:
    population = SpaceParts.of(space).of_genotypes(genotypes)
    return model.estimate_many(population), population


def _figures(batch: CostBatch, population: Population) -> dict[str, FloatArray]:
    return {
        "latency_ms": batch.latency_ms,
        "fps": 1000 / batch.latency_ms,
        "energy_mj": batch.energy_mj,
        "weight_bytes": population.weight_bytes().astype(np.float64),
        "macs": population.macs().astype(np.float64),
    }
