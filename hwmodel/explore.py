"""The fastest accelerators that a device can hold for given networks: every point of a grid, in a few array calls.

The grid is the array's shape (with sizes between the powers of two, since 192 or 384 rows on three lanes divide better
by 24 or 48), both packing backends, widths of the memory streams that the device's ports can form, widths of the drain,
and lanes of the vector unit. Buffers are sized from the networks: the largest activations and the longest sequence.
Designs are ordered by the SUM of the networks' latencies, then by fewer DSPs, then by fewer block RAMs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from hwmodel.accelerator import ACTIVATION_PLACES, BACKENDS, AcceleratorColumns, AcceleratorConfig
from hwmodel.cycles import gemm_cycles, vector_cycles
from hwmodel.device import Device
from hwmodel.errors import InfeasibleError, UsageError
from hwmodel.registry import unknown_name
from hwmodel.resources import Resources, demands, resources_of, total
from hwmodel.workload import GemmColumns, Population, Workload

ARRAY_SIZES = (4, 6, 8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 56, 64, 72, 80, 96, 112, 128)
ONCHIP_DRAIN_BITS = (64, 128, 256, 512)
VECTOR_LANES = (16, 32, 64)


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
        InfeasibleError: nothing fits; the message names what is exceeded, and by how much.
    """
    if not workloads:
        raise UsageError("explore needs at least one workload")
    if limit < 1:
        raise UsageError(f"limit must be at least 1, not {limit}")
    clock = device.clock_mhz if clock_mhz is None else clock_mhz
    if clock > device.max_clock_mhz:
        raise UsageError(f"clock_mhz {clock:g} exceeds {device.max_clock_mhz:g}, the most that {device.name} supports")
    configs = _grid(workloads, device, clock_mhz=clock, backend=backend, array=array, activations=activations)
    columns = AcceleratorColumns.of(configs)
    # How full the most exceeded limit is, for every design: above 1, the design does not fit.
    fullness = np.max([np.broadcast_to(d.used, (len(configs), 1)) / d.limit for d in demands(columns, device)], axis=0)[
        :, 0
    ]
    fitting = [config for config, full in zip(configs, fullness, strict=True) if full <= 1]
    if not fitting:
        nearest = configs[int(fullness.argmin())]
        sentences = [d.violation for d in demands(AcceleratorColumns.one(nearest), device) if d.violation]
        raise InfeasibleError(
            f"no accelerator fits {device.name}; the nearest has {nearest.array_rows} x {nearest.array_inputs} DSPs "
            f"({nearest.backend}) and {'; '.join(sentences)}"
        )
    columns = AcceleratorColumns.of(fitting)
    cycles = np.stack([_cycles(columns, workload) for workload in workloads], axis=1)
    sums = total(columns)
    order = np.lexsort((np.ravel(sums.bram18), np.ravel(sums.dsp), cycles.sum(axis=1)))
    return tuple(
        DesignPoint(
            accelerator=fitting[i],
            cycles=tuple(int(c) for c in cycles[i]),
            latency_ms=float(cycles[i].sum() / (clock * 1e3)),
            resources=resources_of(fitting[i], device.calibration),
        )
        for i in order[:limit]
    )


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


def _grid(
    workloads: Sequence[Workload],
    device: Device,
    *,
    clock_mhz: float,
    backend: str | None,
    array: tuple[int, int] | None,
    activations: str,
) -> list[AcceleratorConfig]:
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
    widths = [2**n * device.port_bits for n in range(device.hp_ports.bit_length())]
    # A slow memory cannot fill a port for each stream: those take a part of one.
    sustained = 8000 * device.ddr_gb_per_s * device.ddr_efficiency
    while widths[0] % 16 == 0 and (1 if activations == "onchip" else 3) * widths[0] * clock_mhz > sustained:
        widths.insert(0, widths[0] // 2)
    # On chip the array reads its own width from the activation buffer, whatever this stream's width.
    streams = (
        list(itertools.product(widths, widths[:1], ONCHIP_DRAIN_BITS))
        if activations == "onchip"
        else list(itertools.product(widths, repeat=3))
    )
    tokens = max((gemm.tokens for workload in workloads for gemm in workload.gemms), default=1)
    onchip_bytes = max(workload.activation_bytes for workload in workloads)
    return [
        AcceleratorConfig(
            array_rows=rows,
            array_inputs=inputs,
            backend=name,
            clock_mhz=clock_mhz,
            weight_stream_bits=weight_bits,
            activation_stream_bits=activation_bits,
            output_stream_bits=output_bits,
            activations=activations,
            activation_buffer_bytes=onchip_bytes if activations == "onchip" else 2 * tokens * inputs,
            max_tokens=tokens,
            vector_lanes=lanes,
        )
        for (rows, inputs), name, (weight_bits, activation_bits, output_bits), lanes in itertools.product(
            shapes, [backend] if backend else BACKENDS, streams, VECTOR_LANES
        )
    ]


def _cycles(accelerators: AcceleratorColumns, workload: Workload) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Cycles of one workload on each of C accelerators, shape (C,)."""
    population = _merged(Population.of(workload))
    gemms = gemm_cycles(accelerators, population).sum(axis=1)
    return np.asarray(gemms + vector_cycles(accelerators, population).sum(axis=1))


def _merged(population: Population) -> Population:
    """A population of one in which equal products are one with their counts added, since blocks repeat."""
    g = population.gemms
    shapes, first, group = np.unique(
        np.concatenate([g.tokens, g.inputs, g.rows_high, g.rows_low]),
        axis=1,
        return_index=True,
        return_inverse=True,
    )
    counts = np.zeros((1, len(first)), dtype=np.int64)
    np.add.at(counts[0], group, g.count[0])
    tokens, inputs, rows_high, rows_low = shapes[:, None]
    gemms = GemmColumns(
        names=tuple(g.names[i] for i in first),
        kinds=tuple(g.kinds[i] for i in first),
        stored=tuple(g.stored[i] for i in first),
        tokens=tokens,
        inputs=inputs,
        rows_high=rows_high,
        rows_low=rows_low,
        count=counts,
    )
    return dataclasses.replace(population, gemms=gemms)
