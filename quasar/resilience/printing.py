"""What `quasar resilience` prints for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def print_study(document: Mapping[str, Any]) -> None:
    """Single parts by kind, the sequences, the paths, and what can be saved for the accuracy of `--drop`."""
    console = Console()
    console = console if console.is_terminal else Console(width=150)
    whole = document["whole"]
    energy = "" if whole["energy_mj"] is None else f", {whole['energy_mj']:.4g} mJ"
    console.print(
        f"whole network: {whole['accuracy']:.2%} ± {100 * whole['error']:.2f} on {document['images']} "
        f"{document['split']} images; {whole['latency_ms']:.4g} ms{energy} on {document['device']}",
        highlight=False,
    )
    console.print(_single_table(document["singles"]))
    for name, points in document["sequences"].items():
        console.print(_point_table(points, title=f"greedy sequence: {name}"))
    if document["paths"]:
        console.print(_point_table(document["paths"], title=f"beside it: {document['paths_are']}"))
    for name in ("versions", "paths"):
        saved = document["saved"][name]
        texts = [
            f"{found['saved']:.1%} of the {figure} (accuracy {100 * (0 - found['point']['lost']):+.2f} ± "
            f"{100 * found['point']['lost_error']:.2f} points)"
            for figure, found in saved.items()
            if found is not None
        ]
        if texts:
            console.print(
                f"for at most {100 * document['drop']:g} points, {name} save {' and '.join(texts)}", highlight=False
            )


def _single_table(singles: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("left out alone", box=box.SIMPLE_HEAD)
    for column in ("divergence", "of the latency", "of the energy", "accuracy, points"):
        table.add_column(column, justify="right")
    for single in _told(singles):
        energy, lost = single["energy_saved"], single["lost"]
        table.add_row(
            single["what"],
            f"{single['kl']:.4f}",
            f"{-single['latency_saved']:+.1%}",
            "" if energy is None else f"{-energy:+.1%}",
            "" if lost is None else f"{100 * (0 - lost):+.2f} ± {100 * single['lost_error']:.2f}",
        )
    return table


def _told(singles: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """All blocks; of the other kinds, which have many parts, the three that matter least and the three that do most."""
    told = []
    for kind in dict.fromkeys(single["kind"] for single in singles):
        found = [single for single in singles if single["kind"] == kind]
        ranked = sorted(found, key=lambda single: float(single["kl"]))
        told += found if kind == "blocks" or len(found) <= 6 else [*ranked[:3], *ranked[-3:]]
    return told


def _point_table(points: Sequence[Mapping[str, Any]], *, title: str) -> Table:
    table = Table("latency ms", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("share", "energy mJ", "share", "accuracy", "points", "divergence"):
        table.add_column(column, justify="right")
    table.add_column("left out since the row above")
    for point in points:
        known = point["energy_mj"] is not None
        table.add_row(
            f"{point['latency_ms']:.4g}",
            f"{point['latency_share']:.1%}",
            f"{point['energy_mj']:.4g}" if known else "",
            f"{point['energy_share']:.1%}" if known else "",
            f"{point['accuracy']:.2%}",
            f"{100 * (0 - point['lost']):+.2f} ± {100 * point['lost_error']:.2f}",
            "" if point["kl"] is None else f"{point['kl']:.3f}",
            _shortened(point["left_out"]),
        )
    return table


def _shortened(parts: Sequence[str]) -> str:
    return ", ".join(parts) if len(parts) <= 3 else f"{parts[0]}, {parts[1]}, and {len(parts) - 2} more"
