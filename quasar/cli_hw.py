"""The commands about hardware alone: devices, cost estimates and accelerators. They need no torch for subnet files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwmodel.errors import UsageError
from quasar.command import Debug, Json, command

if TYPE_CHECKING:
    from hwmodel.workload import Workload

hw_app = typer.Typer(name="hw", help="Devices, costs and accelerators.", no_args_is_help=True, rich_markup_mode=None)

What = Annotated[str, typer.Argument(help="Subnet file, exported bundle, or the name of a timm ViT.")]
DeviceName = Annotated[str, typer.Option("--device", help="Name of a device, or a device file.")]
Array = Annotated[str | None, typer.Option(help="DSP array as ROWSxINPUTS, for example 32x32.")]
BackendName = Annotated[str | None, typer.Option("--backend", help="dual or atomic.")]
Clock = Annotated[float | None, typer.Option(help="Clock in MHz; by default the device's.")]
Ratio = Annotated[float, typer.Option(help="Of a timm ViT: share of weight rows at 8 bits; the rest have 4.")]
Activations = Annotated[str, typer.Option(help="Where activations live between layers: onchip or ddr.")]


@hw_app.command()
@command
def devices(*, as_json: Json = False, debug: Debug = False) -> dict[str, Any]:
    """List the known devices."""
    from hwmodel.device import device_names, load_device

    known = {name: load_device(name) for name in device_names()}
    if not as_json:
        print(f"{'name':12} {'DSP':>6} {'BRAM18':>7} {'LUT':>9} {'FF':>9} {'MHz':>5} {'DDR GB/s':>9}  board")
        for name, d in known.items():
            print(
                f"{name:12} {d.dsp:6,} {d.bram18:7,} {d.lut:9,} {d.ff:9,} {d.clock_mhz:5g} "
                f"{d.ddr_gb_per_s * d.ddr_efficiency:9.1f}  {d.title}"
            )
    return {
        name: {key: getattr(d, key) for key in ("title", "part", "dsp", "bram18", "lut", "ff", "uram", "clock_mhz")}
        for name, d in known.items()
    }


@hw_app.command()
@command
def estimate(
    what: What,
    *,
    device: DeviceName = "zcu102",
    array: Array = None,
    backend: BackendName = None,
    clock_mhz: Clock = None,
    activations: Activations = "onchip",
    ratio: Ratio = 1.0,
    as_json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Estimate latency and resources of a network, layer by layer; what is not given is chosen for it."""
    from hwmodel.cost import FpgaCostModel
    from hwmodel.device import load_device
    from hwmodel.explore import best_accelerator

    target = load_device(device)
    workload = _workload(what, ratio)
    accelerator = best_accelerator(
        [workload],
        target,
        clock_mhz=clock_mhz,
        backend=backend,
        array=_array(array),
        activations=activations,
    )
    cost = FpgaCostModel(target, accelerator).estimate(workload)
    if not as_json:
        from quasar import summary

        summary.print_cost(cost, accelerator, target)
    return {"device": target.name, "accelerator": accelerator.to_dict(), **cost.to_dict()}


@hw_app.command()
@command
def explore(
    what: What,
    *,
    device: DeviceName = "zcu102",
    array: Array = None,
    backend: BackendName = None,
    clock_mhz: Clock = None,
    activations: Activations = "onchip",
    ratio: Ratio = 1.0,
    top: Annotated[int, typer.Option(min=1, help="How many designs to list.")] = 10,
    as_json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """List the fastest accelerators for a network that fit the device."""
    from hwmodel.device import load_device
    from hwmodel.explore import explore as explore_designs

    points = explore_designs(
        [_workload(what, ratio)],
        load_device(device),
        clock_mhz=clock_mhz,
        backend=backend,
        array=_array(array),
        activations=activations,
        limit=top,
    )
    if not as_json:
        print(
            f"{'array':>9} {'backend':8} {'weight':>6} {'output':>6} {'lanes':>5} {'ms':>9} {'FPS':>9} "
            f"{'DSP':>6} {'BRAM18':>7} {'LUT':>8} {'FF':>8}"
        )
        for point in points:
            a, r = point.accelerator, point.resources
            print(
                f"{f'{a.array_rows}x{a.array_inputs}':>9} {a.backend:8} {a.weight_stream_bits:6} "
                f"{a.output_stream_bits:6} {a.vector_lanes:5} {point.latency_ms:9.4g} {1000 / point.latency_ms:9.1f} "
                f"{r.dsp:6,} {r.bram18:7,} {r.lut:8,} {r.ff:8,}"
            )
        print("weight and output: bits per cycle of those streams; lanes: of the vector unit; LUT and FF are estimates")
    from dataclasses import asdict

    return {
        "designs": [
            {"accelerator": p.accelerator.to_dict(), "latency_ms": p.latency_ms, **asdict(p.resources)} for p in points
        ]
    }


def _workload(what: str, ratio: float) -> Workload:
    from supernet.lowering import lower
    from supernet.subnet import Subnet

    path = Path(what)
    if path.is_dir():
        path = path / "subnet.yaml"
    if path.suffix in (".yaml", ".yml", ".json") or path.exists():
        return lower(Subnet.load(path))
    if not 0 <= ratio <= 1:
        raise UsageError(f"--ratio must lie in [0, 1], not {ratio}")
    from supernet.timm_vit import subnet_of_timm

    return lower(subnet_of_timm(what, high_precision_ratio=ratio))


def _array(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    rows, _, inputs = text.lower().partition("x")
    if not (rows.isdecimal() and inputs.isdecimal() and int(rows) and int(inputs)):
        raise UsageError(f"--array must look like 32x32, not '{text}'")
    return int(rows), int(inputs)
