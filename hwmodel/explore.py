"""The fastest accelerators that a device can hold for given networks: every point of a grid, in a few array calls.

A term of the cost model depends on few of the axes (the k tiles of a product on the shape of the array alone), so the
grid stays a product of axes that broadcast against each other, and a design becomes an object when it is returned.

The grid is the array's shape (with sizes between the powers of two, since 192 or 384 rows on three lanes divide better
by 24 or 48), both packing backends, widths of the memory streams that the device's ports can form, widths of the drain,
and lanes of the vector unit. Buffers are sized from the networks: the largest activations and the longest sequence.
Designs are ordered by the SUM of the networks' latencies, then by fewer DSPs, then by fewer block RAMs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.accelerator import ACTIVATION_PLACES, BACKENDS, AcceleratorColumns, AcceleratorConfig, FloatLike
from hwmodel.cycles import gemm_cycles, vector_cycles
from hwmodel.device import Device
from hwmodel.errors import InfeasibleError, UsageError
from hwmodel.integer_vector import LARGEST_WIDTH
from hwmodel.registry import unknown_name
from hwmodel.resources import Demand, Resources, demands, resources_of, total
from hwmodel.workload import Gemm, IntArray, Population, VectorOp, Workload

ARRAY_SIZES = (4, 6, 8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 56, 64, 72, 80, 96, 112, 128)
ONCHIP_DRAIN_BITS = (64, 128, 256, 512)
VECTOR_LANES = (16, 32, 64)

#: about so many figures of products (designs times products) are computed together
CHUNK = 2**16

_FIGURES = [field.name for field in dataclasses.fields(AcceleratorColumns)]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DesignPoint:
    """One accelerator with the cycles of each network, in the order given, and the sum of their latencies."""

    accelerator: AcceleratorConfig
    cycles: tuple[int, ...]
    latency_ms: float
    resources: Resources


def explore(
    workloads: Sequence[Workload],
    device: Device,
    *,
    clock_mhz: float | None = None,
    backend: str | None = None,
    array: tuple[int, int] | None = None,
    activations: str = "onchip",
    limit: int = 10,
) -> tuple[DesignPoint, ...]:
    """The `limit` fastest designs that fit `device` and hold every workload, fastest first.

    Args:
        workloads: the networks that one accelerator must run; their latencies are added up.
        device: the board; its limits decide what fits.
        clock_mhz: the clock; the device's default if None.
        backend: a packing backend; both if None.
        array: (array_rows, array_inputs); a grid of shapes if None.
        activations: "onchip" or "ddr".
        limit: the most designs to return.

    Raises:
        UsageError: an argument is impossible.
        InfeasibleError: nothing fits; the message names what is exceeded, and by how much. Or a network's rows are too
            wide for any accelerator.
    """
    if not workloads:
        raise UsageError("explore needs at least one workload")
    if limit < 1:
        raise UsageError(f"limit must be at least 1, not {limit}")
    for workload in workloads:
        for vector in workload.vectors:
            if vector.kind == "layernorm" and vector.width > LARGEST_WIDTH:
                raise InfeasibleError(
                    f"{workload.name}: width {vector.width} of {vector.name} exceeds {LARGEST_WIDTH}, the widest row "
                    "of the LayerNorm unit; use a smaller embed_dim"
                )
    clock = device.clock_mhz if clock_mhz is None else clock_mhz
    if clock > device.max_clock_mhz:
        raise UsageError(f"clock_mhz {clock:g} exceeds {device.max_clock_mhz:g}, the most that {device.name} supports")
    grid = design_grid(workloads, device, clock_mhz=clock, backend=backend, array=array, activations=activations)
    columns = grid.columns()
    full = grid.flat(fullness(columns, device))
    fitting = np.flatnonzero(full <= 1)
    if not fitting.size:
        nearest = grid.config(int(full.argmin()))
        sentences = [d.violation for d in demands(AcceleratorColumns.one(nearest), device) if d.violation]
        raise InfeasibleError(
            f"no accelerator fits {device.name}; the nearest has {nearest.array_rows} x {nearest.array_inputs} DSPs "
            f"({nearest.backend}) and {'; '.join(sentences)}" + ("; try a smaller array" if array else "")
        )
    cycles = np.stack([grid.flat(_cycles(grid, columns, workload))[fitting] for workload in workloads], axis=1)
    sums = total(columns)
    order = np.lexsort((grid.flat(sums.bram18)[fitting], grid.flat(sums.dsp)[fitting], cycles.sum(axis=1)))[:limit]
    points = []
    for index, of_networks in zip(fitting[order].tolist(), cycles[order].tolist(), strict=True):
        config = grid.config(index)
        points.append(
            DesignPoint(
                accelerator=config,
                cycles=tuple(of_networks),
                latency_ms=sum(of_networks) / (clock * 1e3),
                resources=resources_of(config, device.calibration),
            )
        )
    return tuple(points)


def best_accelerator(
    workloads: Sequence[Workload],
    device: Device,
    *,
    clock_mhz: float | None = None,
    backend: str | None = None,
    array: tuple[int, int] | None = None,
    activations: str = "onchip",
) -> AcceleratorConfig:
    """The first design of `explore`; same arguments and errors."""
    points = explore(
        workloads,
        device,
        clock_mhz=clock_mhz,
        backend=backend,
        array=array,
        activations=activations,
        limit=1,
    )
    return points[0].accelerator


def design_grid(
    workloads: Sequence[Workload],
    device: Device,
    *,
    clock_mhz: float,
    backend: str | None = None,
    array: tuple[int, int] | None = None,
    activations: str = "onchip",
) -> DesignGrid:
    """All designs that `explore` compares, whether they fit or not; same arguments and errors."""
    return sized_grid(
        device,
        tokens=max((gemm.tokens for workload in workloads for gemm in workload.gemms), default=1),
        activation_bytes=max(workload.activation_bytes for workload in workloads),
        clock_mhz=clock_mhz,
        backend=backend,
        array=array,
        activations=activations,
    )


def sized_grid(
    device: Device,
    *,
    tokens: int,
    activation_bytes: int,
    clock_mhz: float,
    backend: str | None = None,
    array: tuple[int, int] | None = None,
    activations: str = "onchip",
) -> DesignGrid:
    """`design_grid` for networks of at most so many tokens and bytes of activations.

    The size changes buffers alone: a position in the grid has the same array, backend, streams and lanes for any size.
    """
    if activations not in ACTIVATION_PLACES:
        raise unknown_name("activations", activations, ACTIVATION_PLACES)
    # Shapes beyond the part's DSPs cannot fit; the smallest stays, to say by how much nothing does.
    shapes = (
        [array]
        if array
        else [
            (rows, inputs)
            for rows, inputs in itertools.product(ARRAY_SIZES, repeat=2)
            if rows * inputs <= max(device.dsp, ARRAY_SIZES[0] ** 2)
        ]
    )
    widths = [2**n * device.port_bits for n in range(max(device.hp_ports, 1).bit_length())]
    # A slow memory cannot fill a port for each stream: those take a part of one.
    sustained = 8000 * device.ddr_gb_per_s * device.ddr_efficiency
    while widths[0] % 16 == 0 and (1 if activations == "onchip" else 4) * widths[0] * clock_mhz > sustained:
        widths.insert(0, widths[0] // 2)
    # On chip the array reads its own width from the activation buffer, whatever the activation stream's width.
    onchip = activations == "onchip"
    axes: list[list[dict[str, Any]]] = [
        [
            {
                "array_rows": rows,
                "array_inputs": inputs,
                "activation_buffer_bytes": activation_bytes if onchip else _tiles_bytes(tokens, inputs),
            }
            for rows, inputs in shapes
        ],
        [{"backend": name} for name in ([backend] if backend else BACKENDS)],
        [{"weight_stream_bits": bits} for bits in widths],
        [{"activation_stream_bits": bits} for bits in (widths[:1] if onchip else widths)],
        [{"output_stream_bits": bits} for bits in (ONCHIP_DRAIN_BITS if onchip else widths)],
        [{"vector_lanes": lanes} for lanes in VECTOR_LANES],
    ]
    first: dict[str, Any] = {"clock_mhz": clock_mhz, "activations": activations, "max_tokens": tokens}
    for choices in axes:
        first |= choices[0]
    return DesignGrid(first=AcceleratorConfig(**first), axes=axes)


def resized(accelerators: AcceleratorColumns, *, tokens: int, activation_bytes: int) -> AcceleratorColumns:
    """The same designs with the buffers that `sized_grid` gives them for this size of networks."""
    tiles = _tiles_bytes(tokens, accelerators.array_inputs)
    return dataclasses.replace(
        accelerators,
        max_tokens=tokens,
        activation_buffer_bytes=np.where(np.asarray(accelerators.ddr_activations) == 1, tiles, activation_bytes),
    )


def _tiles_bytes(tokens: int, inputs: Any) -> Any:
    """Two tiles of the activations of `tokens` tokens, streamed from memory."""
    return 2 * tokens * inputs


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DesignGrid:
    """All combinations of one choice on each axis, in the order of `itertools.product`.

    `first` has the first choice everywhere. A choice sets some keys, and no key is set by two axes.
    """

    first: AcceleratorConfig
    axes: list[list[dict[str, Any]]]

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of choices on each axis."""
        return tuple(len(choices) for choices in self.axes)

    @property
    def size(self) -> int:
        """The number of designs."""
        return math.prod(self.shape)

    def config(self, index: int) -> AcceleratorConfig:
        """The design at a position of the flattened grid."""
        changes: dict[str, Any] = {}
        for choices, chosen in zip(self.axes, np.unravel_index(index, self.shape), strict=True):
            changes |= choices[int(chosen)]
        return dataclasses.replace(self.first, **changes)

    def columns(self) -> AcceleratorColumns:
        """Every figure with its own axis in place, of size 1 on the others and on a last one for layers.

        Raises:
            UsageError: some choice is impossible.
        """
        figures = {name: getattr(AcceleratorColumns.one(self.first), name) for name in _FIGURES}
        for axis, choices in enumerate(self.axes):
            along = AcceleratorColumns.of([dataclasses.replace(self.first, **choice) for choice in choices])
            for name in _FIGURES:
                values = getattr(along, name)
                if (values != values[0]).any():
                    figures[name] = values.reshape(*(-1 if a == axis else 1 for a in range(len(self.axes))), 1)
        return AcceleratorColumns(**figures)

    def part_cycles(self, population: Population, *, together: int) -> Iterator[IntArray]:
        """Cycles of the parts (U,) of a population on every design, for about `together` figures at a time: (C, U)."""
        columns, g = self.columns(), population.gemms
        # Most products occur in many parts: each is computed once.
        figures = np.concatenate([g.tokens, g.inputs, g.rows_high, g.rows_low, g.count])
        _, index, inverse = np.unique(figures, axis=1, return_index=True, return_inverse=True)
        different = dataclasses.replace(population, gemms=g.some(index))
        vectors = population.vector_parts(vector_cycles(columns, population))
        parts, others = vectors.shape[-1], self.shape[1:]
        step = max(1, together // (math.prod(others) * parts))
        for start in range(0, self.shape[0], step):
            some = _some(columns, slice(start, start + step))
            cycles = population.gemm_parts(gemm_cycles(some, different).take(inverse, axis=-1)) + vectors
            yield np.broadcast_to(cycles, (len(cycles), *others, parts)).reshape(-1, parts)

    def flat(self, figures: Any) -> NDArray[Any]:
        """Figures that broadcast to the grid and a last axis of size 1, for every design in order."""
        return np.broadcast_to(figures, (*self.shape, 1)).reshape(-1)


def fullness(accelerators: AcceleratorColumns, device: Device) -> FloatLike:
    """How full the most exceeded limit of `device` is, for each accelerator: above 1, it does not fit."""
    return functools.reduce(np.maximum, map(_fullness, demands(accelerators, device)))


def _fullness(demand: Demand) -> FloatLike:
    if demand.limit:
        return demand.used / demand.limit
    return np.where(np.asarray(demand.used) > 0, np.inf, 0.0)


def _cycles(grid: DesignGrid, accelerators: AcceleratorColumns, workload: Workload) -> IntArray:
    """Cycles of one workload, to be broadcast to the grid and a last axis of size 1."""
    population = Population.of(_merged(workload))
    vectors = vector_cycles(accelerators, population).sum(axis=-1, keepdims=True)
    # A few shapes at a time, so that arrays with an entry for each product stay in the processor's cache.
    shapes, *others = grid.shape
    products = max(len(population.gemms.names), 1)
    step = max(1, CHUNK // (math.prod(others) // len(VECTOR_LANES) * products))
    gemms = [
        gemm_cycles(_some(accelerators, slice(start, start + step)), population).sum(axis=-1, keepdims=True)
        for start in range(0, shapes, step)
    ]
    return np.asarray(np.concatenate(gemms) + vectors)


def _some(accelerators: AcceleratorColumns, shapes: slice) -> AcceleratorColumns:
    """The columns for some shapes of the array; figures that do not depend on it stay as they are."""
    figures = {name: getattr(accelerators, name) for name in _FIGURES}
    return AcceleratorColumns(
        **{name: value[shapes] if np.ndim(value) and len(value) > 1 else value for name, value in figures.items()}
    )


def _merged(workload: Workload) -> Workload:
    """The workload with equal layers as one, their counts added, since blocks repeat."""
    gemms: Counter[Gemm] = Counter()
    for gemm in workload.gemms:
        gemms[dataclasses.replace(gemm, name="", kind="", stored=True, count=1)] += gemm.count
    vectors: Counter[VectorOp] = Counter()
    for vector in workload.vectors:
        vectors[dataclasses.replace(vector, name="", count=1)] += vector.count
    return dataclasses.replace(
        workload,
        gemms=tuple(dataclasses.replace(gemm, count=count) for gemm, count in gemms.items()),
        vectors=tuple(dataclasses.replace(vector, count=count) for vector, count in vectors.items()),
    )
