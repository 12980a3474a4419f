"""The command that leaves out parts of a trained network without retraining."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from hwmodel.errors import UsageError
from quasar.command import Debug, Json, command

if TYPE_CHECKING:
    from supernet.prune import Measure
    from supernet.stores import Precision


@command
def resilience(
    network: Annotated[Path, typer.Argument(help="Run folder (with --subnet), or exported bundle.")],
    *,
    subnet: Annotated[
        str | None,
        typer.Option(help="Of a run: max, min, a target's folder name such as latency-0.2ms, or a subnet file."),
    ] = None,
    kinds: Annotated[str, typer.Option(help="What to leave out, by commas.")] = "blocks,heads,units,rows",
    device: Annotated[
        str | None, typer.Option(help="Name of a device, or a device file; by default that of the run or bundle.")
    ] = None,
    split: Annotated[str, typer.Option(help="Images that accuracies are measured on: val or test.")] = "val",
    images: Annotated[int, typer.Option(min=1, help="The first so many of them.")] = 1000,
    choose_images: Annotated[
        int, typer.Option(min=1, help="Training images by which it is chosen what is left out next.")
    ] = 64,
    importance: Annotated[
        str | None,
        typer.Option(help="How heads and units are ranked: fisher (of runs) or norm.", show_default=False),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of products: float32, int8 (sums are exact; where a CPU can), or auto, the fastest.")
    ] = "auto",
    until: Annotated[float, typer.Option(help="Share of the latency at which a sequence ends.")] = 0.5,
    points: Annotated[int, typer.Option(min=1, help="Accuracies to measure on each sequence.")] = 10,
    paths: Annotated[int, typer.Option(min=0, help="Subnets of the supernet to put beside them.")] = 12,
    drop: Annotated[float, typer.Option(help="Points of accuracy for which the savings are told.")] = 1.4,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; by default RUN/resilience.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a study was stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier study.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Leave out blocks, heads and hidden units of a trained network, and lower its rows to 4 bits, without retraining.

    Writes resilience.json and resilience.png: accuracy against latency and energy, beside subnets of the supernet.
    """
    _check(
        split=split,
        importance=importance,
        precision=precision,
        until=until,
        drop=drop,
        resume=resume,
        overwrite=overwrite,
    )
    from quasar.resilience.study import check_kinds

    chosen = check_kinds(kinds)
    folder = _folder(network, out, resume=resume, overwrite=overwrite)
    from contextlib import nullcontext

    from quasar.config import CONFIG_FILE
    from quasar.resilience.opening import Settings, open_study
    from quasar.resilience.study import run_study
    from quasar.run_folder import RunFolder

    settings = Settings(
        subnet=subnet,
        device=device,
        split=split,
        images=images,
        choose_images=choose_images,
        importance=cast("Measure | None", importance),
        precision=None if precision == "auto" else cast("Precision", precision),
        paths=paths,
    )
    run = RunFolder(network)
    with run.locked() if (run.path / CONFIG_FILE).is_file() else nullcontext():
        study = open_study(network, settings, folder=folder, overwrite=overwrite)
        document = run_study(study, kinds=chosen, until=until, points=points, drop=drop / 100, folder=folder)
        picture = _draw(document, folder)
    if not as_json:
        from quasar.resilience.printing import print_study

        print_study(document)
        print(f"{folder / 'resilience.json'}, {picture}")
    return document | {"picture": str(picture)}


def _check(
    *, split: str, importance: str | None, precision: str, until: float, drop: float, resume: bool, overwrite: bool
) -> None:
    if split not in ("val", "test"):
        raise UsageError(f"--split must be val or test, not '{split}'")
    if importance not in (None, "fisher", "norm"):
        raise UsageError(f"--importance must be fisher or norm, not '{importance}'")
    if precision not in ("auto", "float32", "int8"):
        raise UsageError(f"--precision must be auto, float32 or int8, not '{precision}'")
    if not 0 < until < 1:
        raise UsageError(f"--until must lie between 0 and 1, not be {until}")
    if not 0 <= drop <= 100:
        raise UsageError(f"--drop must lie in [0, 100], not be {drop}")
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")


def _folder(network: Path, out: Path | None, *, resume: bool, overwrite: bool) -> Path:
    """Where the results go.

    Raises:
        UsageError: it is not said what to do with what an earlier study left, or other files are there.
    """
    from quasar.resilience.journal import FILES

    folder = out or network / "resilience"
    if out is None and (network / "manifest.json").is_file():
        raise UsageError(f"{network}: is a bundle, whose files are checked; give the folder of the results with --out")
    if folder.is_file():
        raise UsageError(f"{folder}: is a file; give another --out")
    found = {item.name for item in folder.iterdir()} if folder.exists() else set()
    if others := found - set(FILES):
        raise UsageError(f"{folder}: holds other files ({min(others)}, …); give another --out")
    if found and not (resume or overwrite):
        raise UsageError(f"{folder}: holds a study already; go on with --resume, replace it with --overwrite, or --out")
    return folder


def _draw(document: Mapping[str, Any], folder: Path) -> Path:
    import io

    from hwmodel.files import write_atomic
    from quasar.figures.resilience import resilience_figure

    picture, path = io.BytesIO(), folder / "resilience.png"
    resilience_figure(document).savefig(picture, format="png", dpi=150, facecolor="white")
    write_atomic(path, picture.getvalue())
    return path
