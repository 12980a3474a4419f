"""What the commands print for people: tables and the next command to try."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.cost import CostEstimate
from hwmodel.device import Device
from quasar.export.bundle import ONNX, WEIGHTS
from quasar.pipeline import target_folder
from quasar.run_folder import RunFolder
from supernet.evaluate import Evaluation


def _console() -> Console:
    console = Console()
    # A pipe or a log has no width of its own: give tables the room that they need.
    return console if console.is_terminal else Console(width=140)


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def print_front(front: Mapping[str, Any], bundles: Mapping[str, Path]) -> None:
    """The chosen subnet of each target; `bundles` maps the folder names of targets to their bundles."""
    table = _table(
        "target", "latency ms", "FPS", "DSP", "BRAM18", "LUT", "validation", "test", *(("files",) if bundles else ())
    )
    reasons = []
    for target in front["targets"]:
        label = target_label(target)
        if target["status"] != "ok":
            reasons.append(f"{label}: {target['reason']}")
            table.add_row(label, "infeasible")
            continue
        cost = target["cost"]
        row = [
            label,
            f"{cost['latency_ms']:.4g}",
            f"{cost['fps']:,.0f}",
            f"{cost['dsp']:,}",
            f"{cost['bram18']:,}",
            f"{cost['lut']:,}",
            f"{target['val_accuracy']:.2%}",
            f"{target['test_accuracy']:.2%}",
        ]
        if bundles:
            row.append(_sizes(bundles[target_folder(target)]))
        table.add_row(*row)
    console = _console()
    console.print(table)
    for reason in reasons:
        console.print(reason, highlight=False)
    console.print(f"device {front['device']}; latency by the analytic model, LUT an estimate", style="dim")


def target_label(target: Mapping[str, Any]) -> str:
    """A target of `front.json` as the user gave it."""
    return f"{target['fps']:g} FPS" if target.get("fps") else f"{target['latency_ms']:g} ms"


def _sizes(bundle: Path) -> str:
    names = {"weights": WEIGHTS, "ONNX": ONNX}
    return ", ".join(f"{name} {(bundle / file).stat().st_size / 1024:.0f} KiB" for name, file in names.items())


def print_probes(probes: Mapping[str, Evaluation]) -> None:
    """Accuracy of the probe subnets after training."""
    table = _table("subnet", "validation", "loss")
    for name, probe in probes.items():
        table.add_row(name, f"{probe.accuracy:.2%}", f"{probe.loss:.4f}")
    _console().print(table)


def print_next(run: RunFolder, bundles: Mapping[str, Path]) -> None:
    """Where the results are, and what to try with them."""
    print(f"report:  {run.report}")
    for path in bundles.values():
        print(f"export:  {path}")
    print(f"next:    quasar verify {run.path}")


def print_verification(reports: Mapping[str, Mapping[str, Any]]) -> None:
    """One line for each bundle: both accuracies and how far apart they are."""
    table = _table("bundle", "images", "extracted", "ONNX Runtime", "points apart", "same top-1", "result")
    for name, report in reports.items():
        table.add_row(
            name,
            f"{report['images']:,}",
            f"{report['torch_accuracy']:.2%}",
            f"{report['onnx_accuracy']:.2%}",
            f"{report['difference_points']:.2f}",
            f"{report['agreement']:.2%}",
            "passed" if report["passed"] else "FAILED",
        )
    _console().print(table)


def print_cost(cost: CostEstimate, accelerator: AcceleratorConfig, device: Device) -> None:
    """Latency by layer type and resources beside the device's."""
    kinds: dict[str, list[int]] = {}
    for layer in cost.layers:
        cycles_macs_bytes = kinds.setdefault(layer.kind, [0, 0, 0])
        for index, value in enumerate((layer.cycles, layer.macs, layer.weight_bytes)):
            cycles_macs_bytes[index] += value
    table = _table("layer type", "cycles", "share", "MMAC", "weights KiB")
    for kind, (cycles, macs, weight_bytes) in sorted(kinds.items(), key=lambda item: -item[1][0]):
        table.add_row(
            kind, f"{cycles:,}", f"{cycles / cost.cycles:.1%}", f"{macs / 1e6:,.2f}", f"{weight_bytes / 1024:,.1f}"
        )
    console = _console()
    console.print(table)
    a, r = accelerator, cost.resources
    console.print(
        f"{cost.latency_ms:.4g} ms  {cost.fps:,.1f} FPS  {cost.cycles:,} cycles at {a.clock_mhz:g} MHz\n"
        f"array {a.array_rows}x{a.array_inputs} {a.backend}, activations {a.activations}\n"
        f"DSP {r.dsp:,} of {device.dsp:,}   BRAM18 {r.bram18:,} of {device.bram18:,}   "
        f"LUT {r.lut:,} of {device.lut:,} (estimate)   FF {r.ff:,} of {device.ff:,} (estimate)\n"
        f"energy {cost.energy_mj:.3g} mJ (estimate)",
        highlight=False,
    )
    for violation in cost.violations:
        console.print(f"over the limit: {violation}", highlight=False)
