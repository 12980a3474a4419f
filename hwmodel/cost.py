"""What a network costs on a device: the contract of every cost model, and the model of the FPGA accelerator.

Latency is that of one image, from its first load to its last result; frames do not overlap, so fps = 1000/latency_ms.
"""

from __future__ import annotations

import dataclasses
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
    """The cost of one network. It can be built as modelled if and only if `violations` is empty."""

    workload: str
    latency_ms: float
    cycles: int
    layers: tuple[LayerCost, ...]
    resources: Resources
    energy_mj: float
    violations: tuple[str, ...]

    @property
    def fps(self) -> float:
        """Images per second, one at a time."""
        return 1000 / self.latency_ms

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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CostBatch:
    """The costs of N networks, each of shape (N,).

    `fits` is False where activations, tokens or the width of a network exceed what the accelerator holds.
    """

    cycles: IntArray
    latency_ms: FloatArray
    energy_mj: FloatArray
    fits: BoolArray


class CostModel(Protocol):
    """The cost of networks on one device.

    Life cycle: a model is built once for a device (and, where there is one, an accelerator) and holds no state after
    that: calls do not influence each other, and it can be pickled into worker processes. A search calls
    `estimate_many` for every generation and `estimate` for the networks that it reports. Both must give the same
    numbers for the same network, so a model derives one from the other. A network that does not fit still gets its
    numbers; `violations` and `fits` tell.
    """

    @property
    def device(self) -> Device:
        """The device that the costs are for."""

    def estimate(self, workload: Workload) -> CostEstimate:
        """The cost of one network, layer by layer."""

    def estimate_many(self, population: Population) -> CostBatch:
        """The costs of N networks."""


class FpgaCostModel:
    """The analytic model of one accelerator on one device; see `hwmodel.cycles` for what it claims."""

    def __init__(self, device: Device, accelerator: AcceleratorConfig) -> None:
        self.device = device
        self.accelerator = accelerator
        self.resources = resources_of(accelerator, device.calibration)
        self._columns = AcceleratorColumns.one(accelerator)
        exceeded = (demand.violation for demand in demands(self._columns, device))
        self._violations = tuple(sentence for sentence in exceeded if sentence is not None)

    def estimate_many(self, population: Population) -> CostBatch:
        """The costs of N networks; raises `UsageError` for bits or operations that the accelerator lacks."""
        terms = GemmTerms(self._columns, population)
        of_gemms, of_vectors = energy_counts(terms)
        cycles = population.gemm_totals(terms.cycles()[0])
        cycles += population.vector_totals(vector_cycles(self._columns, population)[0])
        latency_ms = cycles / (self.accelerator.clock_mhz * 1e3)
        g, config = population.gemms, self.accelerator
        fits = population.gemm_totals(((g.tokens > config.max_tokens) & (g.count > 0))[0]) == 0
        v = population.vectors
        normed = np.array([kind == "layernorm" for kind in v.kinds], dtype=np.bool_)
        too_wide = normed & (v.width[0] > LARGEST_WIDTH) & (v.count[0] > 0)
        fits &= population.vector_totals(too_wide) == 0
        if config.activations == "onchip":
            fits &= population.activation_bytes() <= config.activation_buffer_bytes
        sums = population.gemm_totals(of_gemms), population.vector_totals(of_vectors[0])
        return CostBatch(
            cycles=cycles,
            latency_ms=latency_ms,
            energy_mj=energy_mj(terms, *sums, self.device.energy, latency_ms),
            fits=fits,
        )

    def estimate(self, workload: Workload) -> CostEstimate:
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
        return CostEstimate(
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
