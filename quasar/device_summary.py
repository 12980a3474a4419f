"""What commands print about several devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from quasar.summary import program, target_label


def _console() -> Console:
    console = Console()
    # A pipe or a log has no width of its own: give lines the room that they need.
    return console if console.is_terminal else Console(width=140)


def print_devices(document: Mapping[str, Any]) -> None:
    """A row for each device and target, and where the results are."""
    table = Table("device", "target", box=box.SIMPLE_HEAD)
    for name in ("latency ms", "FPS", "energy mJ", "validation", "test", "subnet"):
        table.add_column(name, justify="right")
    reasons = []
    for device, front in document["devices"].items():
        for target in front["targets"]:
            label = target_label(target)
            if target["status"] != "ok":
                reasons.append(f"{device}, {label}: {target['reason']}")
                table.add_row(device, label, "infeasible")
                continue
            cost = target["cost"]
            table.add_row(
                device,
                label,
                f"{cost['latency_ms']:.4g}",
                f"{cost['fps']:,.0f}",
                "–" if cost["energy_mj"] is None else f"{cost['energy_mj']:.3g}",
                f"{target['val_accuracy']:.2%}",
                f"{target['test_accuracy']:.2%}",
                target["digest"],
            )
    console = _console()
    console.print(table)
    for reason in reasons:
        console.print(reason, highlight=False)
    print(f"picture: {document['picture']}")
    for folder in document["folders"].values():
        print(f"front:   {folder}/search/front.json")
    first = next(iter(document["folders"].values()))
    print(f"next:    {program()} report {first}, and every other command that takes a run")


def print_transfer(document: Mapping[str, Any]) -> None:
    """The matrices of a comparison of devices, one table for each."""
    console = _console()
    of_accuracy = document["score"] == "accuracy"
    what = "accuracy" if of_accuracy else "bit operations"
    unit = "points" if of_accuracy else "per cent"
    for title, key, scale, form in (
        ("Kendall's tau of latencies", "kendall", 1.0, "{:.2f}"),
        (f"{what} lost, {unit}", "lost", 100.0, "{:.1f}"),
        ("slower than necessary, per cent", "slower", 100.0, "{:.0f}"),
    ):
        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
        table.add_column("")
        for device in document["devices"]:
            table.add_column(device, justify="right")
        for device, row in zip(document["devices"], document[key], strict=True):
            table.add_row(device, *("–" if value is None else form.format(scale * value) for value in row))
        console.print(table)
    basis = "their accuracies as the run's searches measured them" if of_accuracy else "bit operations, no accuracy"
    print("what is lost, and in what time: chosen for the device of the row, run on that of the column")
    print(
        f"ranks of {document['subnets']:,} random subnets; choices among {document['scored']:,}, by {basis}; "
        f"means over {len(document['positions'])} positions"
    )
    print(f"picture: {document['picture']}")
