"""The figure of a study of scaling: accuracy against budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from quasar.figures.style import COLORS, PERCENT, STYLE, legend_on_top

_COLORS = {"strategy": "blue", "compound": "vermilion", "best": "green", "baseline": "soft"}
_MARKERS = {"strategy": "o", "compound": "s", "best": "^", "baseline": "D"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Networks of one kind: what it is, its title, and (cost, accuracy, standard error) of each."""

    what: str
    title: str
    points: Sequence[tuple[float, float, float]]


@matplotlib.rc_context(STYLE)
def scaling_figure(
    candidates: Sequence[tuple[float, float]], curves: Sequence[Curve], *, unit: str, device: str
) -> Figure:
    """Test accuracy of the compared networks with standard errors, and validation accuracy of the candidates as dots.

    Args:
        candidates: cost and accuracy of each.
        unit: of costs: macs or latency_ms.
        device: whose latency it is.
    """
    figure = Figure(figsize=(10, 4.5), label="Accuracy against budget: strategy found, compound scaling and baseline")
    axes = figure.add_subplot()
    if candidates:
        cost, accuracy = zip(*candidates, strict=True)
        axes.scatter(
            cost, accuracy, s=12, color=COLORS["dots"], label="candidates (validation)", linewidths=0, zorder=1
        )
    for curve in curves:
        cost, accuracy, error = zip(*curve.points, strict=True)
        color = COLORS[_COLORS[curve.what]]
        axes.errorbar(
            cost, accuracy, yerr=error, color=color, marker=_MARKERS[curve.what], markersize=5, capsize=2.5,
            elinewidth=0.8, label=curve.title, linestyle=":" if curve.what == "best" else "-", zorder=2,
        )  # fmt: skip
        if curve.what == "baseline":
            axes.axhline(accuracy[0], color=color, linewidth=0.8, linestyle="--", zorder=1)
    axes.set_xscale("log")
    scale = 1e6 if unit == "macs" else 1.0
    axes.set_xticks(sorted({point[0] for curve in curves if curve.what == "strategy" for point in curve.points}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / scale:.3g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("million MACs" if unit == "macs" else f"latency on {device}, ms")
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_ylabel("accuracy, % (curves: test)")
    axes.grid(visible=True)
    legend_on_top(figure, *axes.get_legend_handles_labels())
    return figure
