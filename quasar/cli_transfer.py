"""The command that compares devices over a space."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from quasar.command import Debug, Json, command


@command
def transfer(
    path: Annotated[Path, typer.Argument(help="Configuration file (YAML), or a run folder.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides: key.sub=value …, of one device DEVICE:key.sub=value …")
    ] = None,
    *,
    devices: Annotated[
        str | None,
        typer.Option(help="Names and device files by commas.", show_default="all that are known"),
    ] = None,
    subnets: Annotated[int, typer.Option(min=3, help="Random subnets to compare.")] = 1000,
    out: Annotated[Path, typer.Option(help="The picture (PNG); a JSON file of the same name goes with it.")] = Path(
        "transfer.png"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Ask whether what is good on one device is good on another; nothing is trained.

    A run lends the accuracies that its searches have measured; else bit operations stand for them.
    """
    from quasar import transfer as comparison

    document = comparison.transfer(path, devices, overrides or (), subnets=subnets, out=out, overwrite=overwrite)
    if not as_json:
        from quasar.device_summary import print_transfer

        print_transfer(document)
    return document
