"""What `quasar scale` prints for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from quasar.scaling.candidates import cost_text
from quasar.scaling.shapes import VitShape
from quasar.summary import program

_WHATS = {
    "best": "best candidate",
    "strategy": "strategy found",
    "compound": "compound by hand",
    "baseline": "baseline",
}


def print_scale(document: Mapping[str, Any]) -> None:
    """The comparison at each budget, the exponents with their errors, and what the differences are worth."""
    console, unit = _console(), document["unit"]
    table = _table(
        "budget", "network", "depth x width, heads, MLP, input / patch", "M MACs", "latency ms", "validation", "test"
    )
    for row in document["comparison"]:
        table.add_row(
            "" if row["budget"] is None else cost_text(row["budget"], unit),
            _WHATS[row["what"]],
            str(VitShape(**row["shape"])),
            f"{row['macs'] / 1e6:.4g}",
            "–" if row["latency_ms"] is None else f"{row['latency_ms']:.4g}",
            f"{row['val_accuracy']:.1%}",
            f"{row['test_accuracy']:.1%} ± {100 * row['test_error']:.1f}",
        )
    console.print(table)
    table = _table("dimension", "exponent", "standard error", "selection error", "95 % interval", "by hand", "")
    for name, found in document["exponents"].items():
        table.add_row(
            name,
            f"{found['value']:+.2f}",
            "–" if found["standard_error"] is None else f"{found['standard_error']:.2f}",
            f"{found['selection_error']:.2f}",
            "–" if found["low"] is None else f"{found['low']:+.2f} to {found['high']:+.2f}",
            f"{document['compound']['exponents'][name]:+.2f}",
            _STATUS[found["status"]],
        )
    console.print(table)
    for line in [*findings(document), *(f"left out: {reason}" for reason in document["left_out"])]:
        console.print(line, highlight=False, soft_wrap=True)
    print(f"written: {document['folder']}/scale.json, candidates.csv, scale.png")
    twice = 2 * document["budgets"][-1]["cost"]
    print(f"next:    {program()} scale --apply {document['folder']}/scale.json --budget {twice:g}")


_STATUS = {
    "determined": "",
    "undetermined": "the data do not determine it",
    "fixed": "the space has one choice",
}


def findings(document: Mapping[str, Any]) -> list[str]:
    """What the strategy found gains over the others on the test images, budget by budget, in a sentence each."""
    rows = {(row["what"], row["budget"]): row for row in document["comparison"]}
    baseline, lines = rows["baseline", None], []
    for budget in document["budgets"]:
        ours, by_hand = (rows.get((what, budget["cost"])) for what in ("strategy", "compound"))
        for title, other in (("compound scaling", by_hand), ("the baseline", baseline)):
            if ours is None or other is None:
                continue
            gain = 100 * (ours["test_accuracy"] - other["test_accuracy"])
            error = 100 * (ours["test_error"] ** 2 + other["test_error"] ** 2) ** 0.5
            verdict = "" if abs(gain) > 2 * error else ", within two standard errors"
            lines.append(
                f"{cost_text(budget['cost'], document['unit'])}: strategy found against {title}: "
                f"{gain:+.1f} ± {error:.1f} points{verdict}"
            )
    return lines


def print_applied(rows: Sequence[Mapping[str, Any]]) -> None:
    """A row for each budget."""
    table = _table("budget", "shape", "cost", "off the budget")
    for row in rows:
        shape = row["shape"]
        text = str(VitShape(**shape)) if row["family"] == "vit" else _pit_text(shape)
        table.add_row(
            cost_text(row["budget"], row["unit"]), text, cost_text(row["cost"], row["unit"]), f"{row['off']:+.1%}"
        )
    _console().print(table)


def _pit_text(shape: Mapping[str, Any]) -> str:
    stages = ", ".join(f"{depth} x {width}" for depth, width in zip(shape["depths"], shape["widths"], strict=True))
    return f"PiT {stages}, MLP {shape['mlp_ratio']:g}, {shape['image_size']} px / {shape['patch_size']}"


def _console() -> Console:
    console = Console()
    # A pipe or a log has no width of its own: give tables the room that they need.
    return console if console.is_terminal else Console(width=160)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < 3 and column not in ("exponent", "cost") else "right")
    return table
