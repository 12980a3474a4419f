"""The profile of a Vision Transformer that the hardware model knows: layers of its workload and their modelled costs.

Bytes are those that an operator must read and write once, weights packed at their own bits, and activations

    on a board         as codes of `act_bits`; the residual stream, which LayerNorm reads too, with 16 bits
    on a processor     as `hwmodel.processor_cost` counts them
    on a measured host with 4 bytes where it ran floats, else with 1, and vector operations with 4

FLOPs are two for each multiply-accumulate, and for each element of a vector operation those of
`hwmodel.processor_cost.VECTOR_WORK`. GELU has none: in hardware it is a table behind fc1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hwmodel.accelerator import AcceleratorColumns, AcceleratorConfig
from hwmodel.cost import FpgaCostModel
from hwmodel.cycles import GemmTerms
from hwmodel.device import Device
from hwmodel.energy import energy_counts, energy_mj
from hwmodel.measured import MeasuredHost
from hwmodel.processor import PRECISION_BYTES, Processor
from hwmodel.processor_cost import VECTOR_WORK
from hwmodel.workload import Gemm, Population, Workload
from quasar.processors import processor_model
from quasar.profiling.rows import Profile, Row, rows_of

#: bytes of a number of the residual stream on a board
_RESIDUAL_BYTES = 2


def profile_on_board(workload: Workload, device: Device, accelerator: AcceleratorConfig, *, network: str) -> Profile:
    """The profile of a workload on an accelerator. Static energy goes to the layers by their latency."""
    cost = FpgaCostModel(device, accelerator).estimate(workload)
    terms = GemmTerms(AcceleratorColumns.one(accelerator), Population.of(workload))
    of_gemms, of_vectors = energy_counts(terms)
    clock = accelerator.clock_mhz * 1e3
    energies = []
    for index, layer in enumerate(cost.layers):
        products = index < len(workload.gemms)
        counts = of_gemms[:, index].tolist() if products else [0] * len(of_gemms)
        vector_bits = 0 if products else int(of_vectors[0, index - len(workload.gemms)])
        energies.append(float(energy_mj(terms, counts, vector_bits, device.energy, layer.cycles / clock)))
    code = -(-workload.act_bits // 8)
    moved = {
        "residual": 3 * _RESIDUAL_BYTES,
        "softmax": 2 * code,
        "layernorm": _RESIDUAL_BYTES + code,
    }
    latencies = [layer.cycles / clock for layer in cost.layers]
    return Profile(
        network=network,
        device=device.name,
        title=f"{device.title}, array {accelerator.array_rows}x{accelerator.array_inputs} {accelerator.backend} at "
        f"{accelerator.clock_mhz:g} MHz",
        basis="cycles of the accelerator's model; energy is an estimate",
        rows=rows_of(_rows(workload, latencies, energies, product_bytes=code, vector_bytes=moved)),
        left_out="; ".join(cost.violations) or None,
    )


def profile_on_processor(workload: Workload, device: Processor | MeasuredHost, *, network: str) -> Profile:
    """The profile of a workload on a CPU or GPU; energy is power times latency, where the power is known."""
    cost = processor_model(device).estimate(workload)
    latencies = [layer.latency_us / 1e3 for layer in cost.layers]
    power = None if cost.energy_mj is None else cost.energy_mj / cost.latency_ms
    energies = [None if power is None else power * latency for latency in latencies]
    if isinstance(device, Processor):
        number = PRECISION_BYTES[device.precision]
        vector = PRECISION_BYTES["fp32" if device.peak_gops.fp16 is None else "fp16"]
        basis = f"a roofline at {device.precision}, of data sheets and assumed efficiencies"
    else:
        number, vector = (4 if device.host.runtime == "torch" else 1), 4
        basis = f"times of operators measured there ({device.form})"
    moved = {kind: numbers * vector for kind, (numbers, _) in VECTOR_WORK.items()}
    return Profile(
        network=network,
        device=device.name,
        title=device.title,
        basis=basis,
        rows=rows_of(_rows(workload, latencies, energies, product_bytes=number, vector_bytes=moved)),
        left_out="; ".join(cost.violations) or None,
    )


def _rows(
    workload: Workload,
    latencies: list[float],
    energies: list[float] | list[float | None],
    *,
    product_bytes: int,
    vector_bytes: Mapping[str, int],
) -> Iterator[Row]:
    """A row for each layer, in the order of cost models: products, then vector operations."""
    costs = iter(zip(latencies, energies, strict=True))
    for gemm in workload.gemms:
        latency, energy = next(costs)
        yield Row(
            kind=gemm.kind,
            operators=gemm.count,
            macs=gemm.macs,
            flops=2 * gemm.macs,
            bytes=_product_bytes(gemm, workload, product_bytes),
            latency_ms=latency,
            energy_mj=energy,
        )
    for vector in workload.vectors:
        latency, energy = next(costs)
        elements = vector.tokens * vector.width * vector.count
        yield Row(
            kind=vector.kind,
            operators=vector.count,
            macs=0,
            flops=elements * VECTOR_WORK[vector.kind][1],
            bytes=elements * vector_bytes[vector.kind],
            latency_ms=latency,
            energy_mj=energy,
        )


def _product_bytes(gemm: Gemm, workload: Workload, number: int) -> int:
    activations = gemm.tokens * (gemm.inputs + gemm.rows) * number
    if not gemm.stored:
        return gemm.count * (activations + gemm.inputs * gemm.rows * number)
    weight_bits = gemm.inputs * (gemm.rows_high * workload.high_bits + gemm.rows_low * workload.low_bits)
    return gemm.count * (activations + -(-weight_bits // 8))
