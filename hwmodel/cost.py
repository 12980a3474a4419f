"""What a network costs on a device: the contract of every cost model, and the model of the FPGA accelerator.

Latency is that of one image, from its first load to its last result; frames do not overlap, so fps = 1000/latency_ms.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hwmodel.accelerator import AcceleratorColumns, AcceleratorConfig
from hwmodel.cycles import gemm_bounds, gemm_cycles, vector_cycles
from hwmodel.device import Device
from hwmodel.energy import energy_mj
from hwmodel.resources import Resources, demands, resources_of
from hwmodel.workload import IntArray, Population, Workload

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LayerCost:
    """One layer with all its executions; `bound` is "compute", "weights", "activations", "output" or "vector"."""

    name: str
    kind: str
    cycles: int
    macs: int
    weight_bytes: int
    bound: str


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
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
        }


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CostBatch:
    """The costs of N networks: (N,), and cycles of each layer (N, G) and (N, V), all its executions together.

    `fits` is False where activations or tokens of a network exceed the buffers of the accelerator.
    """

    cycles: IntArray
    latency_ms: FloatArray
    energy_mj: FloatArray
    gemm_cycles: IntArray
    vector_cycles: IntArray
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

    def estimate_many(self, population: Population) -> CostBatch:
        """The costs of N networks; raises `UsageError` for bits or operations that the accelerator lacks."""
        gemms = gemm_cycles(self._columns, population)
        vectors = vector_cycles(self._columns, population)
        cycles = gemms.sum(axis=1) + vectors.sum(axis=1)
        latency_ms = cycles / (self.accelerator.clock_mhz * 1e3)
        fits = _tokens(population).max(axis=1, initial=0) <= self.accelerator.max_tokens
        if self.accelerator.activations == "onchip":
            fits &= population.activation_bytes <= self.accelerator.activation_buffer_bytes
        return CostBatch(
            cycles=cycles,
            latency_ms=latency_ms,
            energy_mj=energy_mj(self._columns, population, self.device.energy, latency_ms),
            gemm_cycles=gemms,
            vector_cycles=vectors,
            fits=fits,
        )

    def estimate(self, workload: Workload) -> CostEstimate:
        """The cost of one network: the same integers as its row of `estimate_many`."""
        population = Population.of(workload)
        batch = self.estimate_many(population)
        bounds = gemm_bounds(self._columns, population)[0]
        gemms = [
            LayerCost(
                name=gemm.name,
                kind=gemm.kind,
                cycles=int(cycles),
                macs=gemm.macs,
                weight_bytes=_weight_bytes(workload, index),
                bound=str(bound),
            )
            for index, (gemm, cycles, bound) in enumerate(
                zip(workload.gemms, batch.gemm_cycles[0], bounds, strict=True)
            )
        ]
        vectors = [
            LayerCost(
                name=vector.name,
                kind=vector.kind,
                cycles=int(cycles),
                macs=0,
                weight_bytes=0,
                bound="vector",
            )
            for vector, cycles in zip(workload.vectors, batch.vector_cycles[0], strict=True)
        ]
        return CostEstimate(
            workload=workload.name,
            latency_ms=float(batch.latency_ms[0]),
            cycles=int(batch.cycles[0]),
            layers=(*gemms, *vectors),
            resources=self.resources,
            energy_mj=float(batch.energy_mj[0]),
            violations=self._violations(workload),
        )

    def _violations(self, workload: Workload) -> tuple[str, ...]:
        sentences = [demand.violation for demand in demands(self._columns, self.device) if demand.violation is not None]
        config = self.accelerator
        if config.activations == "onchip" and workload.activation_bytes > config.activation_buffer_bytes:
            sentences.append(
                f"activation bytes {workload.activation_bytes} exceed {config.activation_buffer_bytes} "
                "(activation_buffer_bytes)"
            )
        largest = max(workload.gemms, key=lambda gemm: gemm.tokens, default=None)
        if largest is not None and largest.tokens > config.max_tokens:
            sentences.append(f"tokens {largest.tokens} of {largest.name} exceed {config.max_tokens} (max_tokens)")
        return tuple(sentences)


def _tokens(population: Population) -> IntArray:
    """Tokens of the products that each network has, 0 for the others, (N, G)."""
    return population.gemms.tokens * (population.gemms.count > 0)


def _weight_bytes(workload: Workload, index: int) -> int:
    gemm = workload.gemms[index]
    if not gemm.stored:
        return 0
    bits = gemm.rows_high * workload.high_bits + gemm.rows_low * workload.low_bits
    return -(-gemm.inputs * bits * gemm.count // 8)
