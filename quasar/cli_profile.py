"""The command that says where the FLOPs, bytes, latency and energy of one network go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwmodel.errors import UsageError
from quasar.command import Debug, Json, command
from quasar.hw_inputs import Ratio

if TYPE_CHECKING:
    from quasar.profiling.rows import Profile

PICTURES = (".png", ".svg", ".pdf")


@command
def profile(
    network: Annotated[
        str, typer.Argument(help="Subnet file, exported bundle, run folder (with --subnet), or any model of timm.")
    ],
    *,
    subnet: Annotated[
        str | None,
        typer.Option(help="Of a run: max, min, a target's folder name such as latency-0.2ms, or a subnet file."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Name of a device, or a device file; by default that of the bundle or run, else zcu102."),
    ] = None,
    ratio: Ratio = 1.0,
    out: Annotated[Path | None, typer.Option(help="Draw the shares there: .png, .svg or .pdf.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the picture that is there.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Share out the FLOPs, bytes, latency and energy of one network by type of operator.

    What a whole space offers on a device is `quasar search CONFIG --profile`.
    """
    if out is not None and out.suffix not in PICTURES:
        raise UsageError(f"--out must end in {', '.join(PICTURES)}, not '{out.name}'")
    if out is not None and out.exists() and not overwrite:
        raise UsageError(f"{out}: exists; give another --out, or --overwrite")
    from quasar.profiling.networks import profile_network

    result = profile_network(network, subnet=subnet, device=device, ratio=ratio)
    if out is not None:
        _draw(result, out)
    if not as_json:
        _print(result)
        if out is not None:
            print(f"picture: {out}")
    return result.to_dict() | {"picture": None if out is None else str(out)}


def _draw(result: Profile, out: Path) -> None:
    import io

    from hwmodel.files import write_atomic
    from quasar.figures.profile import profile_figure

    picture = io.BytesIO()
    profile_figure(result).savefig(picture, format=out.suffix[1:], dpi=150, facecolor="white")
    write_atomic(out, picture.getvalue())


def _print(result: Profile) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shares = {name: result.shares(name) for name in ("flops", "bytes", "latency_ms", "energy_mj")}
    table = Table("operator", box=box.SIMPLE_HEAD)
    for column in ("times", "MMAC", "MFLOP", "share", "KiB", "share", "ms", "share", "mJ", "share"):
        table.add_column(column, justify="right")
    for index, row in enumerate(result.rows):
        figures = (
            f"{row.flops / 1e6:,.2f}",
            f"{row.bytes / 1024:,.1f}",
            _number(row.latency_ms),
            _number(row.energy_mj),
        )
        cells = [
            cell
            for text, values in zip(figures, shares.values(), strict=True)
            for cell in (text, f"{values[index]:.1%}" if values else "")
        ]
        table.add_row(row.kind, f"{row.operators:,}", f"{row.macs / 1e6:,.2f}", *cells)
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    console.print(table)
    macs, flops, moved = (result.total(name) or 0 for name in ("macs", "flops", "bytes"))
    line = f"{macs / 1e9:.4g} GMAC  {flops / 1e9:.4g} GFLOP  {moved / 1e6:.4g} MB"
    latency, energy = result.total("latency_ms"), result.total("energy_mj")
    line += "" if latency is None else f"  {latency:.4g} ms"
    line += "" if energy is None else f"  {energy:.4g} mJ"
    console.print(f"{line}\n{result.title}: {result.basis}", highlight=False)
    if result.left_out is not None:
        console.print(f"note: {result.left_out}", highlight=False)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}"
