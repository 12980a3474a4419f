"""The roofline of an accelerator with the layers of a network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from hwmodel.roofline import Roofline, RooflinePoint
from quasar.figures.style import COLORS, STYLE

#: what binds a layer: the words of a legend, colour, marker
_BOUNDS: Mapping[str, tuple[str, str, str]] = {
    "compute": ("the array", "blue", "o"),
    "weights": ("weights coming in", "vermilion", "s"),
    "activations": ("activations coming in", "purple", "^"),
    "output": ("results going out", "orange", "D"),
}

_STREAM_TITLES = {"weights": "weights", "activations": "activations", "output": "results"}


@matplotlib.rc_context(STYLE)
def roofline_figure(roofline: Roofline, *, title: str) -> Figure:
    """One panel for each stream: layers below the roofs of the stream and of the array, coloured by what binds them.

    A layer has the same height in all panels; its name stands to the right of the last one. Layers that coincide are
    one mark, and the area of a mark is its share of the network's time.
    """
    figure = Figure(figsize=(10, 5), label="Roofline: achieved operations per second of each layer below the ceilings")
    elsewhere = 1 - sum(point.share for point in roofline.points)
    figure.suptitle(f"{title}; {elsewhere:.0%} of it in vector operations", x=0.01, ha="left", fontsize=10)
    marks = _merged_points(roofline.points)
    top = max(roofline.array_gops.values())
    low = min([*(mark.gops for mark in marks), top / 10]) / 2
    # Equal scales in all panels let the slopes of their roofs be compared.
    grid = figure.add_gridspec(1, len(roofline.streams))
    panels: list[Axes] = []
    for column in range(len(roofline.streams)):
        panels.append(figure.add_subplot(grid[0, column], sharey=panels[0] if panels else None))
    for axes, stream in zip(panels, roofline.streams, strict=True):
        intensities = [mark.intensity[stream.name] for mark in marks]
        left = min([*intensities, low / stream.gb_per_s]) / 1.5
        # The first panel has room for the names of the ceilings.
        right = max([*intensities, top / stream.gb_per_s]) * (4 if panels.index(axes) else 30)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(left, right)
        axes.set_ylim(low, top * 1.9)
        knee = [left, top / stream.gb_per_s, right]
        axes.fill_between(knee, [left * stream.gb_per_s, top, top], top * 10, color=COLORS["rule"], lw=0)
        spare = stream.from_memory and roofline.memory_gb_per_s > 1.02 * stream.gb_per_s
        text = f"stream {stream.gb_per_s:.3g} GB/s" + (
            "" if spare or not stream.from_memory else f", {roofline.memory_limit}"
        )
        _roof(axes, stream.gb_per_s, (left, top), color="ink", style="-", text=text)
        if spare:
            text = f"{roofline.memory_gb_per_s:.3g} GB/s: {roofline.memory_limit}" if axes is panels[0] else ""
            _roof(axes, roofline.memory_gb_per_s, (left, top), color="soft", style=(0, (4, 2)), text=text)
        for bits, gops in roofline.array_gops.items():
            axes.plot([gops / stream.gb_per_s, right], [gops, gops], color=COLORS["ink"], linewidth=1.2)
            if axes is panels[0]:
                axes.annotate(
                    f"array, {bits} bits: {gops:,.0f}",
                    (right, gops),
                    xytext=(-2, 2.5),
                    textcoords="offset points",
                    ha="right",
                    fontsize=8,
                )
        for mark in marks:
            _, color, marker = _BOUNDS[mark.bound]
            axes.scatter(
                mark.intensity[stream.name],
                mark.gops,
                s=16 + 400 * mark.share,
                marker=marker,
                color=COLORS[color],
                alpha=0.85,
                edgecolors="white",
                linewidths=0.6,
                zorder=3,
            )
        axes.set_title(_STREAM_TITLES[stream.name])
        axes.set_xlabel(f"operations per byte of {_STREAM_TITLES[stream.name]}")
        axes.grid(which="major")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        if axes is not panels[0]:
            axes.tick_params(axis="y", labelleft=False)
    panels[0].set_ylabel("achieved GOPS")
    _name_marks(panels[-1], marks, roofline.streams[-1].name)
    bounds = [bound for bound in _BOUNDS if any(mark.bound == bound for mark in marks)]
    figure.legend(
        [Line2D([], [], linestyle="", marker=_BOUNDS[bound][2], color=COLORS[_BOUNDS[bound][1]]) for bound in bounds],
        [f"waits for {_BOUNDS[bound][0]}" for bound in bounds],
        loc="outside lower left",
        ncols=len(bounds),
        columnspacing=1.5,
        handlelength=1.2,
    )
    return figure


def _roof(axes: Axes, gb_per_s: float, limits: tuple[float, float], *, color: str, style: Any, text: str) -> None:
    """The line of a bandwidth from the least intensity up to the highest ceiling, with its text along it."""
    left, top = limits
    axes.plot([left, top / gb_per_s], [left * gb_per_s, top], color=COLORS[color], linewidth=1.2, linestyle=style)
    bottom = max(axes.get_ylim()[0], left * gb_per_s)
    height = bottom * (top / bottom) ** 0.45
    axes.text(
        height / gb_per_s,
        height,
        text,
        transform=axes.transData + ScaledTranslation(-4 / 72, 2 / 72, axes.figure.dpi_scale_trans),
        rotation=math.degrees(math.atan(gb_per_s)),  # of the line in data, which the axes turn into its slope
        rotation_mode="anchor",
        transform_rotates_text=True,
        fontsize=8,
        color=COLORS[color],
        ha="center",
    )


def _merged_points(points: Iterable[RooflinePoint]) -> list[RooflinePoint]:
    """Points of one kind that coincide become one with the sum of their shares, the slowest last."""
    merged: dict[tuple[Any, ...], RooflinePoint] = {}
    for point in points:
        key = (point.kind, point.bound, f"{point.gops:.3g}", *(f"{value:.3g}" for value in point.intensity.values()))
        known = merged.get(key)
        merged[key] = replace(known, share=known.share + point.share) if known else point
    return sorted(merged.values(), key=lambda point: -point.gops)


def _name_marks(axes: Axes, marks: Sequence[RooflinePoint], stream: str) -> None:
    """The name and the share of time of each kind of layer, right of the axes, beside its longest mark."""
    kinds: dict[str, RooflinePoint] = {}
    shares: dict[str, float] = {}
    for mark in marks:
        shares[mark.kind] = shares.get(mark.kind, 0) + mark.share
        if mark.kind not in kinds or kinds[mark.kind].share < mark.share:
            kinds[mark.kind] = mark
    bottom, top = (math.log(limit) for limit in axes.get_ylim())
    places = _spread([(math.log(mark.gops) - bottom) / (top - bottom) for mark in kinds.values()], gap=0.042)
    for (kind, mark), place in zip(kinds.items(), places, strict=True):
        axes.annotate(
            f"{kind}  {shares[kind]:.0%}" if shares[kind] >= 0.005 else f"{kind}  <1%",
            (mark.intensity[stream], mark.gops),
            xytext=(1.04, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            arrowprops={
                "arrowstyle": "-",
                "color": COLORS["dots"],
                "linewidth": 0.6,
                "shrinkA": 0,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )


def _spread(places: Sequence[float], *, gap: float) -> list[float]:
    """Places moved as little as needed to lie `gap` apart, within [0, 1] where they fit; their order is kept."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = [places[index] for index in order]
    for _ in range(100):
        for lower in range(len(moved) - 1):
            overlap = gap - (moved[lower + 1] - moved[lower])
            if overlap > 0:
                moved[lower] -= overlap / 2
                moved[lower + 1] += overlap / 2
        moved = [min(max(place, 0.0), 1.0) for place in moved]
    return [moved[order.index(index)] for index in range(len(places))]
