"""The command that studies how networks should grow with their budget."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwmodel.errors import UsageError
from quasar.command import Debug, Json, command

if TYPE_CHECKING:
    from collections.abc import Mapping


@command
def scale(
    config: Annotated[
        Path | None, typer.Argument(help="Configuration file (YAML) with a section 'scale'.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides of configuration keys: key.sub=value …")
    ] = None,
    *,
    apply: Annotated[
        Path | None,
        typer.Option("--apply", help="Train nothing: what the strategy in this scale.json gives at --budget."),
    ] = None,
    budget: Annotated[
        list[float] | None, typer.Option("--budget", help="With --apply: MACs or ms, as the study has; repeatable.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="With --apply: another device than that of the study.")
    ] = None,
    pit: Annotated[
        Path | None, typer.Option("--pit", help="With --apply: scale this pooling ViT (a shape file) instead of a ViT.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue what an earlier command started.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Find how depth, width and resolution should grow with a budget of MACs or of latency on a device."""
    if apply is not None:
        if config is not None or resume or overwrite:
            raise UsageError("--apply reads a result and writes nothing: leave out CONFIG, --resume and --overwrite")
        return _apply(apply, budget or [], device=device, pit=pit, quiet=as_json)
    for name, value in (("--budget", budget), ("--device", device), ("--pit", pit)):
        if value:
            raise UsageError(f"{name} belongs to --apply scale.json; a study has its budgets and device in CONFIG")
    if config is None:
        raise UsageError("give a configuration file with a section 'scale', or --apply scale.json")
    from quasar.scaling.plan import load_study

    study = load_study(config, overrides or ())  # a mistake shows before torch loads
    from quasar.scaling.study import scale as run_study

    document = run_study(study, resume=resume, overwrite=overwrite)
    if not as_json:
        from quasar.scaling.summary import print_scale

        print_scale(document)
    return document


def _apply(path: Path, budgets: list[float], *, device: str | None, pit: Path | None, quiet: bool) -> dict[str, Any]:
    from quasar.scaling.apply import apply, load_strategy
    from supernet.pit_shape import PitShape

    if not budgets:
        raise UsageError("--apply needs --budget: MACs or ms, as the study has")
    for value in budgets:
        if not (value > 0 and math.isfinite(value)):
            raise UsageError(f"--budget must be positive and finite, not {value}")
    found = load_strategy(path)
    shape = None if pit is None else PitShape.load(pit)
    rows: list[Mapping[str, Any]] = [apply(found, value, device=device, pit=shape) for value in budgets]
    if not quiet:
        from quasar.scaling.summary import print_applied

        print_applied(rows)
    return {"strategy": found.strategy.to_dict(), "shapes": rows}
