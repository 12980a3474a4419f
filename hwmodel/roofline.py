"""The roofline of an accelerator: how fast each matrix product runs, below what its array and its streams allow.

For a product with 2 * MACs operations that takes t, and each stream s of the accelerator,

    achieved    2 * MACs / t                                          in GOPS (10^9 operations per second)
    intensity   2 * MACs / bytes that the product moves over s        in operations per byte
    roof of s   intensity * width of s * clock / 8                    which no product can exceed
    array       2 * rows for each DSP * DSPs * clock                  by the bits of the weights

so every stream has a roofline of its own. A single one over the sum of all bytes would hide what binds: a product whose
results wait for the drain stays far below the roof of all streams together. Bytes, for F tokens, K inputs and rows of
b bits in T row tiles, activations of a bits, all executions together:

    weights        K * rows * b / 8              the second operand of attention takes this path too
    activations    F * K * T * a / 8             with activations in memory only
    output         F * rows * a / 8

External memory has a roof as well, the lower of what it sustains and of what its ports carry. It holds for what comes
from there: with activations on chip, for stored weights.

Vector operations have no place here: they do no multiply-accumulates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from hwmodel.accelerator import AcceleratorColumns, AcceleratorConfig
from hwmodel.cost import FpgaCostEstimate
from hwmodel.cycles import row_tiles
from hwmodel.device import Device
from hwmodel.workload import Population, Workload


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """One stream of the accelerator; its name is that of the bound of `LayerCost` that it can be."""

    name: str
    gb_per_s: float
    from_memory: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RooflinePoint:
    """One product: what it achieves, its share of the network's cycles, and operations per byte of each stream."""

    name: str
    kind: str
    bound: str
    gops: float
    share: float
    intensity: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Roofline:
    """All products of a network below the ceilings of one accelerator on one device; `array_gops` is by bits."""

    streams: tuple[Stream, ...]
    array_gops: Mapping[int, float]
    memory_gb_per_s: float
    memory_limit: str
    points: tuple[RooflinePoint, ...]


def roofline(workload: Workload, cost: FpgaCostEstimate, accelerator: AcceleratorConfig, device: Device) -> Roofline:
    """The roofline of `workload`; `cost` is its estimate by the cost model of `accelerator` on `device`."""
    columns = AcceleratorColumns.one(accelerator)
    tiles_high, tiles_low = (tiles[0] for tiles in row_tiles(columns, Population.of(workload)))
    clock_ghz = accelerator.clock_mhz / 1e3
    streamed = accelerator.activations == "ddr"
    widths = [("weights", accelerator.weight_stream_bits, True)]
    if streamed:
        widths.append(("activations", accelerator.activation_stream_bits, True))
    widths.append(("output", accelerator.output_stream_bits, streamed))
    points = []
    for index, (gemm, layer) in enumerate(zip(workload.gemms, cost.layers, strict=False)):
        if layer.cycles == 0:
            continue
        weight_bits = gemm.inputs * (gemm.rows_high * workload.high_bits + gemm.rows_low * workload.low_bits)
        tiles = int(tiles_high[index] + tiles_low[index])
        bits = {
            "weights": weight_bits,
            "activations": gemm.tokens * gemm.inputs * tiles * workload.act_bits,
            "output": gemm.tokens * gemm.rows * workload.act_bits,
        }
        points.append(
            RooflinePoint(
                name=gemm.name,
                kind=gemm.kind,
                bound=layer.bound,
                gops=2 * layer.macs / layer.cycles * clock_ghz,
                share=layer.cycles / cost.cycles,
                intensity={name: 16 * gemm.macs / (bits[name] * gemm.count) for name, _, _ in widths},
            )
        )
    dsps = accelerator.array_rows * accelerator.array_inputs
    precisions = [workload.high_bits]
    if any(gemm.rows_low for gemm in workload.gemms):
        precisions.append(workload.low_bits)
    sustained = device.ddr_gb_per_s * device.ddr_efficiency
    ports = device.hp_ports * device.port_bits * clock_ghz / 8
    return Roofline(
        streams=tuple(
            Stream(name=name, gb_per_s=width * clock_ghz / 8, from_memory=memory) for name, width, memory in widths
        ),
        array_gops={bits: 2 * float(columns.rows_per_dsp(bits)) * dsps * clock_ghz for bits in precisions},
        memory_gb_per_s=min(sustained, ports),
        memory_limit=f"{device.memory}, sustained"
        if sustained <= ports
        else f"{device.hp_ports} ports of {device.port_bits} bits",
        points=tuple(points),
    )
