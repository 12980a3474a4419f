"""What a network costs on a CPU or GPU, which runs it operator by operator: a roofline for each, and a launch.

    time of an operator = max(operations / (peak * e_c), bytes / (bandwidth * e_m)) + launch

with the peak at the precision of the arithmetic and the shares e_c and e_m that can be reached (Williams, Waterman and
Patterson, "Roofline", CACM 2009, with a constant for each launch). For a product of F tokens, K inputs and M rows,
executed n times (once for each head), in arithmetic of a bytes a number:

    operations  2 * F * K * M * n
    bytes       n * (F * K * a  +  F * M * a  +  K * sum over the rows of bits / 8)      of stored weights
                n * (F * K * a  +  F * M * a  +  K * M * a)                              of two activations

Weights are read once, packed at their own bits: a row of 4 bits takes half a byte for an input. It is widened to the
arithmetic's precision in registers, so it saves bytes and no operations. Vector operations move numbers of 2 bytes (of
4 where the chip has no fp16 arithmetic), and compute in fp32:

    residual    3 numbers moved and 1 operation for each element
    softmax     2 and 5 (maximum, difference, exponential, sum, quotient)
    layernorm   2 and 8 (two for each of mean, variance, normalisation, gain and bias)

Assumed, all in favour of the processor: bias, GELU, LayerScale and requantization ride on the product before them, as
they do in compiled engines; all heads are one launch; nothing is computed twice. Assumed against it: every operator
takes its inputs from memory and leaves its results there, though caches may hold them. Left out: idle units where an
operator is too small to fill the chip, copies to and from a GPU, layout changes, clocks that sink when it gets hot.

Energy is the power of the device times the latency. Times are whole nanoseconds for each operator, so that they add up
to the same numbers in whatever order. `hwmodel.roofline` is something else: the picture of an FPGA accelerator.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwmodel.cost import CHUNK, CostBatch, CostEstimate, Named, shares
from hwmodel.errors import UsageError
from hwmodel.processor import PRECISION_BYTES, Processor
from hwmodel.workload import IntArray, Population, Workload

#: numbers moved and operations for each element, by kind of vector operation
VECTOR_WORK = {"residual": (3, 1), "softmax": (2, 5), "layernorm": (2, 8)}

FloatArray = NDArray[np.float64]


class OperatorCost(NamedTuple):
    """One layer with all its executions; `bound` is what its time goes to: "arithmetic", "memory", "launch", …"""

    name: str
    kind: str
    latency_us: float
    macs: int
    weight_bytes: int
    bound: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ProcessorCostEstimate(CostEstimate):
    """The cost of one network on a processor."""

    layers: tuple[OperatorCost, ...]

    def time_by_bound(self) -> dict[str, float]:
        """See `CostEstimate`."""
        return shares((layer.bound, round(1000 * layer.latency_us)) for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `energy_mj` is left out where it is not known."""
        energy = {} if self.energy_mj is None else {"energy_mj": self.energy_mj}
        return {
            "workload": self.workload,
            "latency_ms": self.latency_ms,
            "fps": self.fps,
            **energy,
            "violations": list(self.violations),
            "layers": [layer._asdict() for layer in self.layers],
        }


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LayerTimes:
    """Times and bounds of G products and V vector operations of a population, in whole nanoseconds.

    `gemms_outside` (G,) and `vectors_outside` (V,) say of which layers the model knows too little.
    """

    gemms_ns: IntArray  # (G,)
    vectors_ns: IntArray  # (V,)
    gemm_bounds: Sequence[str]
    vector_bounds: Sequence[str]
    gemms_outside: NDArray[np.bool_]  # (G,)
    vectors_outside: NDArray[np.bool_]  # (V,)


class ProcessorCostTable:
    """What the parts of a population cost, in whole nanoseconds that add up exactly."""

    def __init__(self, times: LayerTimes, population: Population, power_w: float) -> None:
        time_ns = population.gemm_parts(times.gemms_ns) + population.vector_parts(times.vectors_ns)
        outside = population.gemm_parts(times.gemms_outside.astype(np.int64))
        outside += population.vector_parts(times.vectors_outside.astype(np.int64))
        self._figures = np.stack([time_ns, outside], axis=1)  # (U, 2)
        self._power_w = power_w

    def costs(self, parts: IntArray, *, energy: bool = True) -> CostBatch:
        """See `CostTable`."""
        step = max(1, CHUNK // (parts.shape[1] * self._figures.shape[1]))
        sums = [
            self._figures.take(parts[start : start + step], axis=0).sum(axis=1) for start in range(0, len(parts), step)
        ]
        time_ns, outside = np.concatenate(sums).T if sums else np.zeros((2, 0), dtype=np.int64)
        latency_ms = time_ns / 1e6
        return CostBatch(latency_ms=latency_ms, energy_mj=self._power_w * latency_ms, fits=outside == 0)


class ProcessorCostModel(abc.ABC):
    """What the models of processors have in common; see `hwmodel.cost.CostModel`.

    Args:
        device: the processor.
        power_w: its power while a network runs; NaN if that is not known.
    """

    def __init__(self, device: Named, *, power_w: float) -> None:
        self.device = device
        self.power_w = power_w

    @property
    def designs(self) -> tuple[ProcessorCostModel]:
        """This model: there is nothing to choose."""
        return (self,)

    def accelerator_for(self, workload: Workload) -> None:
        """None: a processor has no accelerator."""
        return

    @abc.abstractmethod
    def layer_times(self, population: Population) -> LayerTimes:
        """The times of all layers; raises `UsageError` for a kind of layer that the model does not know."""

    @abc.abstractmethod
    def violations(self, workload: Workload, times: LayerTimes) -> tuple[str, ...]:
        """Why the times of a network are not to be trusted, given those of its layers; empty if they are."""

    def table(self, population: Population) -> ProcessorCostTable:
        """The costs of parts; same errors."""
        return ProcessorCostTable(self.layer_times(population), population, self.power_w)

    def estimate_many(self, population: Population) -> CostBatch:
        """The costs of N networks; same errors."""
        return self.table(population).costs(population.parts)

    def estimate(self, workload: Workload) -> ProcessorCostEstimate:
        """The cost of one network: the same numbers as its entry of `estimate_many`; same errors."""
        population = Population.of(workload)
        times = self.layer_times(population)
        g, v = population.gemms, population.vectors
        weight_bits = g.weight_bits(high_bits=population.high_bits, low_bits=population.low_bits)
        figures = zip(times.gemms_ns.tolist(), g.macs()[0].tolist(), (-(-weight_bits[0] // 8)).tolist(), strict=True)
        layers = [
            OperatorCost(name, kind, ns / 1000, macs, weight_bytes, bound)
            for name, kind, (ns, macs, weight_bytes), bound in zip(
                g.names, g.kinds, figures, times.gemm_bounds, strict=True
            )
        ]
        layers += [
            OperatorCost(name, kind, ns / 1000, 0, 0, bound)
            for name, kind, ns, bound in zip(
                v.names, v.kinds, times.vectors_ns.tolist(), times.vector_bounds, strict=True
            )
        ]
        latency_ms = int(times.gemms_ns.sum() + times.vectors_ns.sum()) / 1e6
        return ProcessorCostEstimate(
            workload=workload.name,
            latency_ms=latency_ms,
            energy_mj=None if math.isnan(self.power_w) else self.power_w * latency_ms,
            violations=self.violations(workload, times),
            layers=tuple(layers),
        )


class RooflineCostModel(ProcessorCostModel):
    """The roofline of a processor that is known by its data sheet; see the module's docstring."""

    def __init__(self, processor: Processor) -> None:
        super().__init__(processor, power_w=processor.power_w)
        self.processor = processor

    def layer_times(self, population: Population) -> LayerTimes:
        """See `ProcessorCostModel`; raises `UsageError` for a vector operation that is not in `VECTOR_WORK`."""
        p, g, v = self.processor, population.gemms, population.vectors
        number = PRECISION_BYTES[p.precision]
        rows = g.rows_high + g.rows_low
        moved = g.count * g.tokens * (g.inputs + rows) * number
        second = g.count * g.inputs * rows * number * ~g.stored
        weights = g.weight_bits(high_bits=population.high_bits, low_bits=population.low_bits) / 8
        peak = p.peak_gops.at(p.precision)
        assert peak is not None  # `load_hardware` sees to that
        gemms = self._times(2 * g.macs()[0], (moved + second + weights)[0], peak, g.count[0])

        unknown = set(v.kinds).difference(VECTOR_WORK)
        if unknown:
            raise UsageError(f"vector operation '{min(unknown)}' is unknown; known: {', '.join(VECTOR_WORK)}")
        work = np.array([VECTOR_WORK[kind] for kind in v.kinds], dtype=np.int64).reshape(-1, 2)
        elements = (v.tokens * v.width * v.count)[0]
        number = PRECISION_BYTES["fp32" if p.peak_gops.fp16 is None else "fp16"]
        vectors = self._times(elements * work[:, 1], elements * work[:, 0] * number, p.peak_gops.fp32, v.count[0])
        return LayerTimes(
            gemms_ns=gemms[0],
            vectors_ns=vectors[0],
            gemm_bounds=gemms[1],
            vector_bounds=vectors[1],
            gemms_outside=np.zeros(len(g.names), dtype=np.bool_),
            vectors_outside=np.zeros(len(v.names), dtype=np.bool_),
        )

    def violations(self, workload: Workload, times: LayerTimes) -> tuple[str, ...]:
        """None: a roofline holds for any size."""
        return ()

    def _times(
        self, operations: IntArray, moved_bytes: NDArray[Any], peak_gops: float, count: IntArray
    ) -> tuple[IntArray, list[str]]:
        """Whole nanoseconds (L,) and bounds of L layers; those with a `count` of 0 take none."""
        p = self.processor
        arithmetic = operations / (peak_gops * p.compute_efficiency)
        memory = moved_bytes / (p.memory_gb_per_s * p.memory_efficiency)
        launch = 1000 * p.launch_us
        roof = np.maximum(arithmetic, memory)
        time_ns = np.rint((roof + launch) * (count > 0)).astype(np.int64)
        bound = np.where(launch > roof, 2, memory > arithmetic)
        names = ("arithmetic", "memory", "launch")
        return time_ns, [names[index] for index in bound.tolist()]
