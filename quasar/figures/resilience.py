"""The figure of a study of resilience: what versions reach, and what each part alone is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quasar.figures.style import COLORS, PERCENT, SERIES, STYLE, legend_on_top

_MARKERS = ("o", "s", "^", "D", "v", "P")
#: accuracy below the whole network's under which nothing is drawn
_LOWEST = 0.25
_SINGLES = {"blocks": "block", "heads": "heads", "units": "units, by ¼", "rows": "rows at 4 bits"}


@matplotlib.rc_context(STYLE)
def resilience_figure(document: Mapping[str, Any]) -> Figure:
    """Accuracy against latency and against energy of all sequences with the paths; below, single parts by block.

    Args:
        document: the content of `resilience.json`.
    """
    with_energy = document["whole"]["energy_mj"] is not None
    figure = Figure(figsize=(10, 7.6), label="Accuracy of versions with parts left out, and divergence by single part")
    grid = figure.add_gridspec(2, 2, height_ratios=(1.5, 1))
    axes = figure.add_subplot(grid[0, 0] if with_energy else grid[0, :])
    _fronts(axes, document, "latency_ms", f"modelled latency on {document['device']}, ms")
    if with_energy:
        _fronts(figure.add_subplot(grid[0, 1], sharey=axes), document, "energy_mj", "modelled energy, mJ")
    _singles(figure.add_subplot(grid[1, :]), document["singles"])
    legend_on_top(figure, *axes.get_legend_handles_labels())
    return figure


def _fronts(axes: Axes, document: Mapping[str, Any], cost: str, title: str) -> None:
    for index, (name, points) in enumerate(document["sequences"].items()):
        axes.errorbar(
            [point[cost] for point in points],
            [point["accuracy"] for point in points],
            yerr=[point["error"] for point in points],
            color=COLORS[SERIES[index % len(SERIES)]],
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=4,
            linewidth=1.2,
            elinewidth=0.5,
            label=f"without {name}" if name in ("blocks", "heads", "units") else _title(name),
        )
    if document["paths"]:
        axes.scatter(
            [point[cost] for point in document["paths"]],
            [point["accuracy"] for point in document["paths"]],
            marker="*",
            s=55,
            color=COLORS["ink"],
            linewidths=0,
            zorder=4,
            label="paths of the supernet",
        )
    whole = document["whole"]
    axes.axhline(whole["accuracy"] - document["drop"], color=COLORS["soft"], linewidth=0.8, linestyle=(0, (1, 2)))
    axes.set_ylim(bottom=max(axes.get_ylim()[0], whole["accuracy"] - _LOWEST))
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_xlabel(title)
    axes.grid(axis="y")


def _title(name: str) -> str:
    return {
        "rows": "rows to 4 bits",
        "together, latency": "all, by latency",
        "together, energy": "all, by energy",
    }.get(name, name)


def _singles(axes: Axes, singles: Sequence[Mapping[str, Any]]) -> None:
    """The divergence of each single part over the index of its block."""
    kinds = [kind for kind in _SINGLES if any(single["kind"] == kind for single in singles)]
    for index, kind in enumerate(kinds):
        found = [single for single in singles if single["kind"] == kind]
        axes.scatter(
            [single["block"] + 0.16 * (index - (len(kinds) - 1) / 2) for single in found],
            [max(single["kl"], 1e-6) for single in found],
            s=14,
            marker=_MARKERS[index],
            color=COLORS[SERIES[index]],
            linewidths=0,
            label=_SINGLES[kind],
        )
    axes.set_yscale("log")
    axes.set_xticks(sorted({single["block"] for single in singles}))
    axes.set_xlabel("block")
    axes.set_ylabel("divergence when left out alone, nats")
    axes.grid(axis="y")
