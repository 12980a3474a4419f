"""The commands about hardware alone: devices, cost estimates and accelerators. They need no torch for subnet files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwmodel.errors import UsageError
from quasar.cli_measure import measure
from quasar.cli_rtl import calibrate, simulate, synth
from quasar.command import Debug, Json, command
from quasar.hw_inputs import (
    Activations,
    Array,
    BackendName,
    Clock,
    DeviceName,
    Ratio,
    What,
    array_of,
    read_accelerator,
    workload_of,
)

if TYPE_CHECKING:
    from hwmodel.accelerator import AcceleratorConfig
    from hwmodel.device import Device
    from hwmodel.measured import MeasuredHost
    from hwmodel.processor import Processor
    from hwmodel.roofline import Roofline
    from hwmodel.workload import Workload

DEVICE_KEYS = ("title", "part", "memory", "dsp", "bram18", "lut", "ff", "uram", "clock_mhz")
PLOT_SUFFIXES = (".png", ".svg")

hw_app = typer.Typer(name="hw", help="Devices, costs and accelerators.", no_args_is_help=True, rich_markup_mode=None)


@hw_app.command()
@command
def devices(*, as_json: Json = False, debug: Debug = False) -> dict[str, Any]:
    """List the known devices: FPGA boards, and CPUs and GPUs."""
    from dataclasses import asdict

    from hwmodel.device import Device, device_names, load_hardware
    from hwmodel.processor import Processor

    known = {name: load_hardware(name) for name in device_names()}
    boards = {name: d for name, d in known.items() if isinstance(d, Device)}
    processors = {name: d for name, d in known.items() if isinstance(d, Processor)}
    hosts = {name: d.title for name, d in known.items() if name not in boards and name not in processors}
    if not as_json:
        print(f"{'name':14} {'DSP':>6} {'BRAM18':>7} {'LUT':>9} {'FF':>9} {'MHz':>5} {'GB/s':>6} {'memory':12} board")
        for name, b in boards.items():
            print(
                f"{name:14} {b.dsp:6,} {b.bram18:7,} {b.lut:9,} {b.ff:9,} {b.clock_mhz:5g} "
                f"{b.ddr_gb_per_s * b.ddr_efficiency:6.1f} {b.memory:12} {b.title}"
            )
        print(f"\n{'name':14} {'GOPS':>9} {'at':5} {'launch us':>9} {'W':>6} {'GB/s':>14} {'memory':12} processor")
        for name, p in processors.items():
            gops = (p.peak_gops.at(p.precision) or 0) * p.compute_efficiency
            print(
                f"{name:14} {gops:9,.0f} {p.precision:5} {p.launch_us:9g} {p.power_w:6g} "
                f"{p.memory_gb_per_s * p.memory_efficiency:14,.1f} {p.memory:12} {p.title}"
            )
        for name, title in hosts.items():
            print(f"{name:14} measured: {title}")
    return {
        **{
            name: {"kind": "fpga"}
            | {key: getattr(b, key) for key in DEVICE_KEYS}
            | {"gb_per_s": b.ddr_gb_per_s * b.ddr_efficiency}
            for name, b in boards.items()
        },
        **{
            name: {"kind": "roofline"}
            | {key: value for key, value in asdict(p).items() if key not in ("name", "sources")}
            | {"gb_per_s": p.memory_gb_per_s * p.memory_efficiency}
            for name, p in processors.items()
        },
        **{name: {"kind": "measured", "title": title} for name, title in hosts.items()},
    }


@hw_app.command()
@command
def estimate(
    what: What,
    *,
    device: Annotated[
        str | None, typer.Option(help="Name of a device, or a device file; by default zcu102, or that of the bundle.")
    ] = None,
    array: Array = None,
    backend: BackendName = None,
    clock_mhz: Clock = None,
    activations: Annotated[
        str | None, typer.Option(help="Where activations live between layers: onchip (default) or ddr.")
    ] = None,
    ratio: Ratio = 1.0,
    plot: Annotated[Path | None, typer.Option(help="Write a roofline of the layers there: .png or .svg.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Estimate latency, energy and, on a board, resources of a network, layer by layer.

    A bundle is estimated on the accelerator that it was exported for, unless an option says otherwise; for all else,
    what is not given is chosen for the network.
    """
    from hwmodel.device import Device, load_hardware
    from hwmodel.explore import best_accelerator

    if plot is not None and plot.suffix not in PLOT_SUFFIXES:
        raise UsageError(f"--plot must end in {' or '.join(PLOT_SUFFIXES)}, not '{plot.name}'")
    workload = workload_of(what, ratio)
    exported = Path(what) / "cost.json"
    knobs = {"--array": array, "--backend": backend, "--clock-mhz": clock_mhz, "--activations": activations}
    accelerator = None
    if exported.is_file() and device is None and not any(knobs.values()):
        device, accelerator = read_accelerator(exported)
    target = load_hardware(device or "zcu102")
    if not isinstance(target, Device):
        given = [option for option, value in (knobs | {"--plot": plot}).items() if value is not None]
        if given:
            raise UsageError(f"{given[0]} is about the accelerator on an FPGA board, and {target.name} is none")
        return _processor_estimate(workload, target, as_json=as_json)
    if accelerator is None:
        accelerator = best_accelerator(
            [workload],
            target,
            clock_mhz=clock_mhz,
            backend=backend,
            array=array_of(array),
            activations=activations or "onchip",
        )
    return _board_estimate(workload, target, accelerator, name=Path(what).name, plot=plot, as_json=as_json)


def _board_estimate(
    workload: Workload, target: Device, accelerator: AcceleratorConfig, *, name: str, plot: Path | None, as_json: bool
) -> dict[str, Any]:
    from hwmodel.cost import FpgaCostModel
    from hwmodel.roofline import roofline

    cost = FpgaCostModel(target, accelerator).estimate(workload)
    if plot is not None:
        title = f"{name} on {target.name}: array {accelerator.array_rows}x{accelerator.array_inputs} "
        title += f"{accelerator.backend} at {accelerator.clock_mhz:g} MHz, {cost.latency_ms:.4g} ms"
        _plot_roofline(plot, roofline(workload, cost, accelerator, target), title)
    if not as_json:
        from quasar import summary

        summary.print_cost(cost, accelerator, target)
        if plot is not None:
            print(f"roofline: {plot}")
    return {
        "device": target.name,
        "accelerator": accelerator.to_dict(),
        **cost.to_dict(),
        "plot": None if plot is None else str(plot),
    }


def _processor_estimate(workload: Workload, target: Processor | MeasuredHost, *, as_json: bool) -> dict[str, Any]:
    from quasar.processors import processor_model

    cost = processor_model(target).estimate(workload)
    if not as_json:
        from quasar.processor_summary import print_processor_cost

        print_processor_cost(cost, target)
    return {"device": target.name, **cost.to_dict()}


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
        [workload_of(what, ratio)],
        load_device(device),
        clock_mhz=clock_mhz,
        backend=backend,
        array=array_of(array),
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


def _plot_roofline(path: Path, data: Roofline, title: str) -> None:
    import io

    from hwmodel.files import write_atomic
    from quasar.figures import roofline_figure

    picture = io.BytesIO()
    roofline_figure(data, title=title).savefig(picture, format=path.suffix[1:], dpi=150, facecolor="white")
    write_atomic(path, picture.getvalue())


hw_app.command()(measure)
hw_app.command()(simulate)
hw_app.command()(calibrate)
hw_app.command()(synth)
