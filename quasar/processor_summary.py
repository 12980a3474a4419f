"""What commands print about CPUs and GPUs."""

from __future__ import annotations

from collections import Counter

from rich import box
from rich.console import Console
from rich.table import Table

from hwmodel.measured import MeasuredHost
from hwmodel.processor import Processor
from hwmodel.processor_cost import ProcessorCostEstimate


def _console() -> Console:
    console = Console()
    # A pipe or a log has no width of its own: give lines the room that they need.
    return console if console.is_terminal else Console(width=140)


def print_processor_cost(cost: ProcessorCostEstimate, device: Processor | MeasuredHost) -> None:
    """Latency by layer type, and what it rests on."""
    kinds: dict[str, list[float]] = {}
    bounds: dict[str, Counter[str]] = {}
    for layer in cost.layers:
        bounds.setdefault(layer.kind, Counter())[layer.bound] += 1
        figures = kinds.setdefault(layer.kind, [0.0, 0, 0])
        for index, value in enumerate((layer.latency_us, layer.macs, layer.weight_bytes)):
            figures[index] += value
    table = Table("layer type", box=box.SIMPLE_HEAD)
    for name in ("us", "share", "MMAC", "weights KiB", "bound by"):
        table.add_column(name, justify="right")
    for kind, (time_us, macs, weight_bytes) in sorted(kinds.items(), key=lambda item: -item[1][0]):
        table.add_row(
            kind,
            f"{time_us:,.2f}",
            f"{time_us / (1e3 * cost.latency_ms):.1%}",
            f"{macs / 1e6:,.2f}",
            f"{weight_bytes / 1024:,.1f}",
            ", ".join(bound for bound, _ in bounds[kind].most_common()),
        )
    console = _console()
    console.print(table)
    energy = "" if cost.energy_mj is None else f"  energy {cost.energy_mj:.3g} mJ (estimate)"
    console.print(f"{cost.latency_ms:.4g} ms  {cost.fps:,.1f} FPS{energy}", highlight=False)
    console.print(f"{device.title}: {_basis(device)}", highlight=False)
    for violation in cost.violations:
        console.print(f"not to be trusted: {violation}", highlight=False)


def _basis(device: Processor | MeasuredHost) -> str:
    """What an estimate rests on."""
    if isinstance(device, Processor):
        return (
            f"a roofline at {device.precision}, from data sheets and assumed efficiencies; nothing here was measured "
            "on the device"
        )
    error = device.median_error
    checked = "" if error is None else f", within {error:.1%} in the median of {len(device.check)} networks"
    return f"times of operators measured there ({device.form}; {device.clock}){checked}"


def print_measured(host: MeasuredHost) -> None:
    """What was measured, and how good the table is."""
    times = sorted(network.measured_ms for network in host.check)
    errors = sorted(network.error for network in host.check)
    points = sum(grid.time_us.size for grid in host.operators.values())
    extra = host.in_network
    _console().print(
        f"{host.title}\n"
        f"{host.form}; {host.clock}\n"
        f"{points} points of {len(host.operators)} operators; repetitions take {host.noise:.1%} more than the fastest\n"
        f"in a network a layer takes {extra.layer_us:.2f} us longer, and a weight {extra.weight_ns:.3g} ns\n"
        f"check: {len(times)} other networks of {times[0]:.3g} to {times[-1]:.4g} ms, error {host.median_error:.1%} in "
        f"the median, {errors[-1]:.1%} at worst",
        highlight=False,
    )
