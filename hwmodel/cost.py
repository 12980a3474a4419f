"""What a network costs on a device: the contract of every cost model, and the model of the FPGA accelerator.

`CostEstimate`, `CostBatch` and `CostModel` are what all devices have in common; costs of an accelerator add its cycles
and resources. The models of processors are in `hwmodel.processor_cost` and `hwmodel.measured`.

Latency is that of one image, from its first load to its last result; frames do not overlap, so fps = 1000/latency_ms.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain, repeat
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hwmodel.accelerator import AcceleratorColumns, AcceleratorConfig
from hwmodel.cycles import BOUNDS, GemmTerms, vector_cycles
from hwmodel.device import Device
from hwmodel.energy import energy_counts, energy_mj
from hwmodel.integer_vector import LARGEST_WIDTH
from hwmodel.resources import Resources, demands, resources_of
from hwmodel.workload import IntArray, Population, Workload

#: about so many figures of parts are gathered together, so that they stay in the processor's cache
CHUNK = 2**18

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


class LayerCost(NamedTuple):
    """One layer with all its executions; `bound` is "compute", "weights", "activations", "output" or "vector".

    A tuple, since a network has over a hundred and a frozen dataclass takes four times as long to make.
    """

    name: str
    kind: str
    cycles: int
    macs: int
    weight_bytes: int
    bound: str


#: what `LayerCost._make` does, without a call of Python for each layer
_layer_cost = partial(tuple.__new__, LayerCost)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CostEstimate:
    """The cost of one network. It can run as modelled if and only if `violations` is empty.

    `energy_mj` is None where nothing is known about the power of the device.
    """

    workload: str
    latency_ms: float
    energy_mj: float | None
    violations: tuple[str, ...]

    @property
    def fps(self) -> float:
        """Images per second, one at a time."""
        return 1000 / self.latency_ms

    def time_by_bound(self) -> dict[str, float]:
        """The share of the latency that is spent in layers with each bound, the largest first."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FpgaCostEstimate(CostEstimate):
    """The cost of one network on an accelerator: cycles of its clock, and the resources that it takes."""

    energy_mj: float
    cycles: int
    layers: tuple[LayerCost, ...]
    resources: Resources

    def time_by_bound(self) -> dict[str, float]:
        """See `CostEstimate`."""
        return shares((layer.bound, layer.cycles) for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, resources beside latency."""
        return {
            "workload": self.workload,
            "latency_ms": self.latency_ms,
            "fps": self.fps,
            "cycles": self.cycles,
            **dataclasses.asdict(self.resources),
            "energy_mj": self.energy_mj,
            "violations": list(self.violations),
            "layers": [layer._asdict() for layer in self.layers],
        }


def shares(times: Iterable[tuple[str, int]]) -> dict[str, float]:
    """The share of each name in the sum of whole numbers, the largest first; empty if all are 0."""
    found: Counter[str] = Counter()
    for name, time in times:
        found[name] += time
    whole = found.total()
    return {name: time / whole for name, time in found.most_common() if time}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CostBatch:
    """The costs of N networks, each of shape (N,).

    `fits` is False where a network exceeds what the model holds for: the buffers of an accelerator, or what was
    measured of a processor. `energy_mj` is NaN where nothing is known about the power of the device.
    """

    latency_ms: FloatArray
    energy_mj: FloatArray
    fits: BoolArray


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FpgaCostBatch(CostBatch):
    """The costs of N networks on accelerators."""

    cycles: IntArray


class CostTable(Protocol):
    """The costs of the parts of one population, worked out once for all networks that consist of them."""

    def costs(self, parts: IntArray, *, energy: bool = True) -> CostBatch:
        """The costs of N networks, given by the numbers of their parts (N, S); NaN for the energy if it may be left."""


class Named(Protocol):
    """What is known of any device: its name for files and messages, and what it is."""

    @property
    def name(self) -> str:
        """The name in files and commands."""

    @property
    def title(self) -> str:
        """What it is, in words."""


class CostModel(Protocol):
    """The cost of networks on one device.

    Life cycle: a model is built once for a device (and an accelerator on it, or a choice of them) and holds no state
    after that: calls do not influence each other, and it can be pickled into worker processes. A search asks for a
    `table` of all parts of its space once, then the table for every generation, and `estimate` for the networks that it
    reports. All must give the same numbers for the same network. Costs add up over the parts of a network. A network
    that does not fit still gets its numbers; `violations` and `fits` tell.
    """

    @property
    def device(self) -> Named:
        """The device that the costs are for."""

    @property
    def designs(self) -> Sequence[CostModel]:
        """The hardware that a network may get, each as a model of its own; the one that it gets is among them.

        Accelerators in it have buffers for the largest networks, where the device can; `accelerator_for` has those of
        one network. A processor is its own only design.
        """

    def accelerator_for(self, workload: Workload) -> AcceleratorConfig | None:
        """The accelerator that a network gets; None on a processor, where there is nothing to choose."""

    def table(self, population: Population) -> CostTable:
        """The costs of the parts of a population."""

    def estimate(self, workload: Workload) -> CostEstimate:
        """The cost of one network, layer by layer."""

    def estimate_many(self, population: Population) -> CostBatch:
        """The costs of N networks."""


class FpgaCostTable:
    """What the parts of a population cost on one accelerator, in whole numbers that add up exactly.

    `part_cycles` (U,) are the cycles of the parts; those of `part_too_wide` (U,) have rows that the LayerNorm unit of
    no accelerator holds.
    """

    def __init__(self, terms: GemmTerms, accelerator: AcceleratorConfig, device: Device) -> None:
        population = terms.population
        of_gemms, of_vectors = energy_counts(terms)
        cycles = population.gemm_parts(terms.cycles()[0])
        cycles += population.vector_parts(vector_cycles(AcceleratorColumns.one(accelerator), population)[0])
        energy = (*population.gemm_parts(of_gemms), population.vector_parts(of_vectors[0]))
        v = population.vectors
        normed = np.array([kind == "layernorm" for kind in v.kinds], dtype=np.bool_)
        self.part_cycles = cycles
        self.part_too_wide = population.vector_parts(normed & (v.width[0] > LARGEST_WIDTH) & (v.count[0] > 0)) > 0
        misfit = (population.part_tokens() > accelerator.max_tokens) | self.part_too_wide
        if accelerator.activations == "onchip":
            misfit |= population.part_activation_bytes > accelerator.activation_buffer_bytes
        self._terms, self._accelerator, self._device = terms, accelerator, device
        self._misfit, self._energy = misfit.astype(np.int64), energy

    def costs(self, parts: IntArray, *, energy: bool = True) -> FpgaCostBatch:
        """See `CostTable`."""
        cycles = _summed(self.part_cycles, parts)
        latency_ms = cycles / (self._accelerator.clock_mhz * 1e3)
        energy_of = np.full(len(parts), np.nan)
        if energy:
            *of_gemms, of_vectors = (_summed(count, parts) for count in self._energy)
            energy_of = energy_mj(self._terms, of_gemms, of_vectors, self._device.energy, latency_ms)
        return FpgaCostBatch(
            cycles=cycles, latency_ms=latency_ms, energy_mj=energy_of, fits=_summed(self._misfit, parts) == 0
        )


def _summed(figure: IntArray, parts: IntArray) -> IntArray:
    """The sums (N,) of a figure of parts (U,) over the parts of networks (N, S)."""
    step = max(1, CHUNK // parts.shape[1])
    sums = [figure.take(parts[start : start + step]).sum(axis=1) for start in range(0, len(parts), step)]
    return np.concatenate(sums) if sums else np.zeros(0, dtype=np.int64)


class FpgaCostModel:
    """The analytic model of one accelerator on one device; see `hwmodel.cycles` for what it claims."""

    def __init__(self, device: Device, accelerator: AcceleratorConfig) -> None:
        self.device = device
        self.accelerator = accelerator
        self.resources = resources_of(accelerator, device.calibration)
        self._columns = AcceleratorColumns.one(accelerator)
        exceeded = (demand.violation for demand in demands(self._columns, device))
        self._violations = tuple(sentence for sentence in exceeded if sentence is not None)

    @property
    def designs(self) -> tuple[FpgaCostModel]:
        """This model: all networks share its accelerator."""
        return (self,)

    def accelerator_for(self, workload: Workload) -> AcceleratorConfig:
        """The one accelerator, whatever the network."""
        return self.accelerator

    def table(self, population: Population) -> FpgaCostTable:
        """The costs of parts; raises `UsageError` for bits or operations that the accelerator lacks."""
        return FpgaCostTable(GemmTerms(self._columns, population), self.accelerator, self.device)

    def estimate_many(self, population: Population) -> FpgaCostBatch:
        """The costs of N networks; same errors."""
        return self.table(population).costs(population.parts)

    def estimate(self, workload: Workload) -> FpgaCostEstimate:
        """The cost of one network: the same numbers as its entry of `estimate_many`; same errors."""
        population = Population.of(workload)
        terms = GemmTerms(self._columns, population)
        gemms, vectors = terms.cycles(), vector_cycles(self._columns, population)
        of_gemms, of_vectors = energy_counts(terms)
        # Plain numbers from here on: for one network they are faster than arrays, and give the same results.
        cycles = int(gemms.sum() + vectors.sum())
        latency_ms = cycles / (self.accelerator.clock_mhz * 1e3)
        sums = of_gemms.sum(axis=1).tolist(), int(of_vectors.sum())
        g, v = population.gemms, population.vectors
        macs_high, macs_low, _, _, _, weight_bits = of_gemms
        figures = (gemms[0], macs_high + macs_low, -(-weight_bits // 8))
        bounds = [BOUNDS[index] for index in terms.bounds().tolist()]
        none = [0] * len(v.names)
        layers = chain(
            zip(g.names, g.kinds, *(figure.tolist() for figure in figures), bounds, strict=True),
            zip(v.names, v.kinds, vectors[0].tolist(), none, none, repeat("vector"), strict=False),
        )
        return FpgaCostEstimate(
            workload=workload.name,
            latency_ms=latency_ms,
            cycles=cycles,
            layers=tuple(map(_layer_cost, layers)),
            resources=self.resources,
            energy_mj=energy_mj(terms, *sums, self.device.energy, latency_ms),
            violations=(*self._violations, *self._overflows(workload)),
        )

    def _overflows(self, workload: Workload) -> list[str]:
        """A sentence for each buffer that the network does not fit."""
        config, sentences = self.accelerator, []
        if config.activations == "onchip" and workload.activation_bytes > config.activation_buffer_bytes:
            sentences.append(
                f"activation bytes {workload.activation_bytes} exceed {config.activation_buffer_bytes} "
                "(activation_buffer_bytes)"
            )
        if any(gemm.tokens > config.max_tokens for gemm in workload.gemms):
            largest = max(workload.gemms, key=attrgetter("tokens"))
            sentences.append(f"tokens {largest.tokens} of {largest.name} exceed {config.max_tokens} (max_tokens)")
        for vector in workload.vectors:
            if vector.width > LARGEST_WIDTH and vector.kind == "layernorm":
                sentences.append(f"width {vector.width} of {vector.name} exceeds {LARGEST_WIDTH} (LayerNorm unit)")
                break
        return sentences
