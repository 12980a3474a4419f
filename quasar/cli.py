"""The command line. Torch and everything heavy is imported inside commands, so that help answers at once."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwmodel.errors import UsageError
from quasar.cli_hw import hw_app
from quasar.cli_profile import profile as profile_command
from quasar.cli_resilience import resilience as resilience_command
from quasar.cli_runtime import runtime_app
from quasar.cli_scale import scale as scale_command
from quasar.cli_transfer import transfer
from quasar.command import CheckFailedError, Debug, Json, command

if TYPE_CHECKING:
    from quasar.config import RunConfig

app = typer.Typer(
    name="quasar",
    help="Search Vision Transformers with 4-bit and 8-bit weight rows for an FPGA at a given frame rate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Resume = Annotated[bool, typer.Option("--resume", help="Continue what an earlier command started.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")]
Config = Annotated[Path, typer.Argument(help="Configuration file (YAML), or a run folder.")]
Run = Annotated[Path, typer.Argument(help="Run folder.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides of configuration keys: key.sub=value …")]


@app.callback(invoke_without_command=True)
def version_option(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Search Vision Transformers with 4-bit and 8-bit weight rows for an FPGA at a given frame rate."""
    if version:
        from importlib.metadata import version as installed

        print(f"quasar {installed('quasar-nas')}")
        raise typer.Exit()


@app.command("run")
@command
def run_command(
    config: Config,
    overrides: Overrides = None,
    *,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Do all stages of a run: train, search, fine-tune if the configuration says so, export, report."""
    from quasar.config import load_config
    from quasar.run_folder import open_run

    settings = load_config(config, overrides or ())
    from quasar import export_stage, finetune_stage, pipeline, search_stage, summary
    from quasar.report import write_report
    from quasar.run_subnets import feasible_targets

    splits = pipeline.prepare(settings, resume=resume)
    with open_run(settings, resume=resume, overwrite=overwrite) as run:
        pipeline.train_stage(run, settings, splits)
        if not (run.front.exists() and search_stage.any_feasible(run.read_front())):
            search_stage.search_stage(run, settings, splits)
        front = run.read_front()
        if settings.finetune is not None:
            finetune_stage.finetune_stage(run, settings, splits)
        reasons, bundles = export_stage.not_exported(run), {}
        if len(reasons) < len(feasible_targets(run)):
            bundles = export_stage.export_stage(run, settings, splits, overwrite=True)
        else:
            print(f"warning: nothing is exported: {next(iter(reasons.values()))}", file=sys.stderr)
        write_report(run.path)
    if not as_json:
        summary.print_front(front, bundles)
        summary.print_next(run, bundles)
    return {"run": str(run.path), "report": str(run.report), "bundles": [str(b) for b in bundles.values()], **front}


@app.command()
@command
def train(
    config: Config,
    overrides: Overrides = None,
    *,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Processes that Ray starts, here or at RAY_ADDRESS.", min=1)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only a few steps on random images: settings, memory and speed.")
    ] = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Train the supernet; with `torchrun --nproc-per-node N -m quasar train …` by N processes together.

    The processes share each batch of train.batch_size images: results do not depend on their number.
    """
    from quasar.config import load_config
    from quasar.run_folder import open_run

    settings = load_config(config, overrides or ())
    from contextlib import nullcontext
    from dataclasses import asdict

    from quasar import pipeline, summary
    from quasar.run_folder import RunFolder
    from supernet.parallel import joined

    if dry_run:
        return _dry_run(settings, as_json=as_json)
    opened = open_run(settings, resume=resume, overwrite=overwrite)
    if workers is not None:
        from quasar.ray_cluster import check_ray

        check_ray("--workers", "ray.train.torch")
        from quasar.ray_train import train_on_ray

        pipeline.check_names(settings)
        if not resume:
            pipeline.check_weights(settings)
        with opened as run:
            probes = train_on_ray(run, settings, workers=workers)
    else:
        with joined(pipeline.set_up_torch(settings)) as group:
            splits = pipeline.prepare(settings, workers=group, resume=resume)
            with opened if group.first else nullcontext(RunFolder(settings.folder)) as run:
                probes = pipeline.train_stage(run, settings, splits, workers=group)
        if not group.first:
            raise typer.Exit()
    if not as_json:
        summary.print_probes(probes)
        print(f"next: {summary.program()} search {run.path}")
    return {"run": str(run.path), "probes": {name: asdict(probe) for name, probe in probes.items()}}


def _dry_run(settings: RunConfig, *, as_json: bool) -> dict[str, Any]:
    from quasar import pipeline, summary
    from quasar.dry_run import dry_run
    from supernet.parallel import joined

    with joined(pipeline.set_up_torch(settings)) as workers:
        document = dry_run(settings, workers=workers)
    if not workers.first:
        raise typer.Exit()
    if not as_json:
        summary.print_dry_run(document)
    return document


@app.command()
@command
def tune(
    config: Config,
    sweep: Annotated[Path, typer.Argument(help="Sweep file (YAML): what to vary, and how many trials.")],
    overrides: Overrides = None,
    *,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Search training settings with Ray Tune: Optuna chooses them, ASHA stops poor trials; here or at RAY_ADDRESS."""
    from quasar.config import load_config
    from quasar.sweep import check_sweep, load_sweep

    settings = load_config(config, overrides or ())
    plan = load_sweep(sweep)
    check_sweep(plan, settings, source=str(sweep))  # a mistake shows before Ray and torch load
    from quasar.ray_cluster import check_ray

    check_ray("quasar tune", "ray.tune")
    from quasar import summary
    from quasar.tune import tune as run_trials

    document = run_trials(settings, plan, source=str(sweep), resume=resume, overwrite=overwrite)
    if not as_json:
        summary.print_tune(document)
    return document


@app.command()
@command
def rank(
    run: Run,
    *,
    subnets: Annotated[int, typer.Option(help="Subnets over the range of latencies, and again at equal latency.")] = 10,
    seeds: Annotated[int, typer.Option(help="Trainings of each subnet.")] = 2,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of each; by default those of the supernet.", show_default=False)
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Train subnets by themselves, and say how well the supernet orders them. Goes on where it was stopped."""
    from quasar.run_folder import RunFolder

    folder = RunFolder(run)
    settings = folder.config()
    from quasar import ranking, summary

    with folder.locked():
        document = ranking.rank(folder, settings, subnets=subnets, seeds=seeds, epochs=epochs)
    if not as_json:
        summary.print_rank(document)
        print(f"written: {run / 'rank.json'}")
    return document


@app.command()
@command
def search(
    run: Annotated[Path, typer.Argument(help="Run folder; with --profile, a configuration file will do.")],
    overrides: Overrides = None,
    *,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show what the space offers on the device, and search nothing.")
    ] = False,
    top: Annotated[
        int | None, typer.Option("--top", help="Subnets to keep for each target: search.top=K.", show_default=False)
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option("--devices", help="Search for each of these devices; DEVICE:key=value overrides keys of one."),
    ] = None,
    quantiles: Annotated[
        str | None,
        typer.Option("--quantiles", help="With --devices: targets that these shares of random subnets meet on each."),
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Search the trained supernet of a run; search.* and hardware.* may be overridden."""
    given = [*(overrides or ()), *([f"search.top={top}"] if top is not None else [])]
    if devices is not None or quantiles is not None:
        from quasar.cli_devices import search_for_devices

        return search_for_devices(
            run, devices, given, quantiles=quantiles, profile=profile, resume=resume, overwrite=overwrite, quiet=as_json
        )
    if profile:
        from quasar import summary
        from quasar.config import load_config
        from quasar.targets import profile_targets

        document = profile_targets(load_config(run, given))
        if not as_json:
            summary.print_profile(document)
        return document
    from quasar.run_folder import RunFolder

    folder = RunFolder(run)
    settings = folder.config(given)
    from quasar import pipeline, search_stage, summary

    pipeline.check_names(settings)
    with folder.locked():
        search_stage.check_search(folder, settings, resume=resume, overwrite=overwrite)
        front = search_stage.search_stage(folder, settings, pipeline.open_splits(settings), overwrite=overwrite)
    if not as_json:
        summary.print_front(front, {})
        print(f"next: {summary.program()} export {run}")
    return front


@app.command()
@command
def finetune(run: Run, overrides: Overrides = None, *, as_json: Json = False, debug: Debug = False) -> dict[str, Any]:
    """Train the chosen subnets further, each by itself, for finetune.epochs; export then takes those that gained."""
    from quasar.run_folder import RunFolder

    folder = RunFolder(run)
    settings = folder.config(overrides or ())
    from quasar import finetune_stage, pipeline, summary

    finetune_stage.check_finetuning(folder, settings)
    with folder.locked():
        subnets = finetune_stage.finetune_stage(folder, settings, pipeline.open_splits(settings))
    if not as_json:
        summary.print_finetuned(subnets)
        print(f"next: {summary.program()} export {run}")
    return {"subnets": [asdict(subnet) for subnet in subnets]}


@app.command()
@command
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders with a finished search.")],
    *,
    out: Annotated[Path, typer.Option(help="The picture of all fronts (PNG).")] = Path("compare.png"),
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Put the searches of several runs into one picture and one table."""
    from quasar import comparison, summary

    document = comparison.compare(runs, out=out, overwrite=overwrite)
    if not as_json:
        summary.print_comparison(document)
    return document


@app.command()
@command
def export(
    run: Run,
    *,
    subnet: Annotated[
        str | None,
        typer.Option(
            help="Export this subnet instead: max, min, a target's folder name such as latency-0.2ms, or a subnet file."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Folder name of the bundle of --subnet.", show_default="that of the subnet")
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="Forms of the network to write (docs/bundle.md lists them), by commas or repeated; by default those "
            "whose packages are installed.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Export the subnet that the search chose for each target, or with --subnet any other subnet of the space."""
    from quasar.run_folder import RunFolder

    if name is not None and subnet is None:
        raise UsageError("--name is for the bundle of --subnet; those of the targets have their names")
    folder = RunFolder(run)
    settings = folder.config()
    from quasar import export_stage, pipeline, summary

    chosen = export_stage.named_formats(formats)
    with folder.locked():
        if subnet is not None:
            bundle = export_stage.export_subnet(
                folder,
                settings,
                pipeline.open_splits(settings),
                subnet=subnet,
                name=name,
                formats=chosen,
                overwrite=overwrite,
            )
            if not as_json:
                summary.print_bundle(bundle)
            return {"bundles": [str(bundle)]}
        front = folder.read_front()
        bundles = export_stage.export_stage(
            folder, settings, pipeline.open_splits(settings), formats=chosen, overwrite=overwrite
        )
    if not as_json:
        summary.print_front(front, bundles)
        if formats is None:
            summary.print_left_out()
        print(f"next: {summary.program()} verify {run}")
    return {"bundles": [str(path) for path in bundles.values()]}


@app.command()
@command
def report(run: Run, *, as_json: Json = False, debug: Debug = False) -> dict[str, Any]:
    """Write the HTML report of a run (again)."""
    from quasar.run_folder import RunFolder

    folder = RunFolder(run)
    folder.config()
    from quasar.report import write_report

    with folder.locked():
        path = write_report(folder.path)
        devices = {name: str(write_report(each.path)) for name, each in folder.of_devices().items()}
    if not as_json:
        print(path, *devices.values(), sep="\n")
    return {"report": str(path)} | ({"devices": devices} if devices else {})


@app.command()
@command
def evaluate(
    path: Annotated[Path, typer.Argument(help="Run folder or exported bundle.")],
    *,
    subnet: Annotated[
        str | None,
        typer.Option(help="Of a run: max, min, a target's folder name such as latency-0.2ms, or a subnet file."),
    ] = None,
    split: Annotated[str, typer.Option(help="val or test.")] = "val",
    as_json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Measure the accuracy of a run's subnet or of a bundle."""
    if split not in ("val", "test"):
        raise UsageError(f"--split must be val or test, not '{split}'")
    from quasar import evaluation

    result = evaluation.evaluate_path(path, subnet=subnet, split=split)
    if not as_json:
        print(
            f"{result['subnet']}: {result['accuracy']:.2%} top-1, loss {result['loss']:.4f}, "
            f"on {result['images']} {split} images"
        )
    return result


@app.command()
@command
def verify(
    path: Annotated[Path, typer.Argument(help="Exported bundle, or a run folder for all of its bundles.")],
    *,
    rtl: Annotated[bool, typer.Option("--rtl", help="Also simulate the RTL on all that it does for an image.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Check every file of exported bundles, and their models in other runtimes against the extracted subnets."""
    from quasar import evaluation, summary

    reports = evaluation.verify_path(path, rtl=rtl)
    if not as_json:
        summary.print_verification(reports)
    failed = [
        f"{name}: {check['name']}"
        for name, report in reports.items()
        for check in report["checks"]
        if check["status"] == "FAILED"
    ]
    document = {"passed": not failed, "bundles": reports}
    if failed:
        raise CheckFailedError(f"{path}: checks failed: {', '.join(failed)}", document)
    return document


app.add_typer(hw_app, name="hw")
app.add_typer(runtime_app)
app.command("transfer")(transfer)
app.command("profile")(profile_command)
app.command("resilience")(resilience_command)
app.command("scale")(scale_command)


def main() -> None:
    """Entry point of the `quasar` program."""
    app()
