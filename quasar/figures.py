"""The pictures of a report: matplotlib figures of plain data, and their form as inline SVG.

Every function returns a `Figure`, which can be saved as it is (PNG, PDF) or turned into a piece of HTML by
`inline_svg`. That form keeps text as text and replaces each colour of `PALETTE` by a CSS variable of the same name, so
that the page decides how a picture looks on a light or a dark background. No pyplot, hence no global figures.

The colours of categories are those of Okabe and Ito ("Color Universal Design", 2008), which people with any common
colour blindness can tell apart; precision is told by lightness (more bits, stronger colour).
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from hwmodel.cost import CostEstimate
from hwmodel.roofline import Roofline, RooflinePoint
from hwmodel.workload import Gemm, Workload
from supernet.subnet import Subnet

#: latency in ms and accuracy in [0, 1]
Point = tuple[float, float]

#: name -> colour on a light and on a dark background; the light ones are what the figures are drawn with
PALETTE: Mapping[str, tuple[str, str]] = {
    "ink": ("#1c2126", "#e4e7ea"),
    "soft": ("#5d666f", "#9ba5ae"),
    "rule": ("#dfe3e7", "#343b42"),
    "dots": ("#b3bac1", "#59626b"),
    "blue": ("#0072b2", "#4aa8e0"),
    "sky": ("#56b4e9", "#8fd0f5"),
    "green": ("#009e73", "#2bc498"),
    "orange": ("#e69f00", "#f0b43c"),
    "vermilion": ("#d55e00", "#f2813a"),
    "purple": ("#cc79a7", "#e09cc2"),
    "bits_high": ("#17606e", "#7fd0dc"),
    "bits_low": ("#a3d1d7", "#2f6670"),
}
_C = {name: light for name, (light, _) in PALETTE.items()}
_SERIES = ("blue", "vermilion", "green", "purple", "orange", "sky")

#: layer types of the latency picture, from the bottom of a bar to its top: title, kinds of layer, colour
LAYER_GROUPS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("qkv", ("qkv",), "blue"),
    ("attention products", ("scores", "mix"), "sky"),
    ("proj", ("proj",), "green"),
    ("fc1", ("fc1",), "orange"),
    ("fc2", ("fc2",), "vermilion"),
    ("vector unit", ("layernorm", "softmax", "residual"), "purple"),
    ("embedding, head, others", (), "soft"),
)

#: what binds a layer: the words of a legend, colour, marker
_BOUNDS: Mapping[str, tuple[str, str, str]] = {
    "compute": ("the array", "blue", "o"),
    "weights": ("weights coming in", "vermilion", "s"),
    "activations": ("activations coming in", "purple", "^"),
    "output": ("results going out", "orange", "D"),
}
_STREAM_TITLES = {"weights": "weights", "activations": "activations", "output": "results"}

_MOST_VECTOR_DOTS = 3000  # above this a scatter plot becomes one embedded image: the page must stay small
_STYLE: Any = {  # the type of its keys differs between versions of matplotlib
    "text.parse_math": False,  # names come from users: a dollar sign is a dollar sign
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib, and is wide: other fonts fit where it fits
    "font.size": 9.0,
    "text.color": _C["ink"],
    "axes.labelcolor": _C["soft"],
    "axes.titlecolor": _C["ink"],
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": _C["soft"],
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _C["rule"],
    "grid.linewidth": 0.6,
    "xtick.color": _C["soft"],
    "ytick.color": _C["soft"],
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetMark:
    """A latency target, and the point of the subnet that was chosen for it, if there is one."""

    label: str
    latency_ms: float
    chosen: Point | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """Points that a front is compared with; a front of their own is drawn as steps, others as marks."""

    label: str
    points: Sequence[Point]
    color: str
    marker: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One set of curves over the epochs: values by name of the curve, as (epoch, value)."""

    title: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    percent: bool = False


@matplotlib.rc_context(_STYLE)
def front_figure(
    *,
    trials: Sequence[Point],
    front: Sequence[Point],
    targets: Sequence[TargetMark],
    device: str,
    references: Sequence[Reference] = (),
) -> Figure:
    """All trials, the Pareto front as a step line, and the targets with the subnets chosen for them.

    `references` are other fronts, or other points.
    """
    figure = Figure(
        figsize=(10, 5), label="Accuracy against latency of all trials, with the Pareto front and the targets"
    )
    axes = figure.add_subplot()
    if trials:
        x, y = zip(*trials, strict=True)
        axes.scatter(
            x,
            y,
            s=9,
            color=_C["dots"],
            linewidths=0,
            label=f"trials ({len(trials):,})",
            rasterized=len(trials) > _MOST_VECTOR_DOTS,
        )
    for reference in references:
        _draw_reference(axes, reference)
    if front:
        x, y = zip(*sorted(front), strict=True)
        # Between two points of the front, the best that is known is the one on the left: hence steps.
        axes.plot(x, y, drawstyle="steps-post", color=_C["blue"], label=f"Pareto front ({len(front)})")
        axes.scatter(x, y, s=12, color=_C["blue"], linewidths=0, zorder=3)
    chosen = [mark.chosen for mark in targets if mark.chosen]
    if chosen:
        x, y = zip(*chosen, strict=True)
        axes.scatter(x, y, s=70, marker="D", color=_C["vermilion"], linewidths=0, label="chosen for a target", zorder=4)
    for mark in targets:
        axes.axvline(mark.latency_ms, color=_C["ink"], linewidth=0.9, linestyle="-" if mark.chosen else (0, (1, 2)))
        axes.annotate(  # above the axes, where no point can be
            mark.label + ("" if mark.chosen else " (infeasible)"),
            (mark.latency_ms, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-2, 4),
            textcoords="offset points",
            rotation=30,
            rotation_mode="anchor",
            fontsize=8.5,
        )
    points = (*trials, *front, *chosen, *(point for reference in references for point in reference.points))
    _latency_axis(axes, [latency for latency, _ in points] + [mark.latency_ms for mark in targets])
    axes.set_xlabel(f"modelled latency on {device}, ms")
    axes.set_ylabel("validation accuracy, %")
    axes.yaxis.set_major_formatter(_PERCENT)
    axes.grid(axis="y")
    _legend_on_top(figure, *axes.get_legend_handles_labels())
    return figure


def _draw_reference(axes: Axes, reference: Reference) -> None:
    if not reference.points:
        return
    x, y = zip(*sorted(reference.points), strict=True)
    color = _C[reference.color]
    if reference.marker:
        axes.scatter(x, y, s=26, marker=reference.marker, color=color, linewidths=0, label=reference.label, zorder=3)
    else:
        axes.plot(x, y, drawstyle="steps-post", color=color, linewidth=1.2, label=reference.label)


def _latency_axis(axes: Axes, latencies: Sequence[float]) -> None:
    """A logarithmic axis where latencies differ by much."""
    if latencies and min(latencies) > 0 and max(latencies) / min(latencies) > 8:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


@matplotlib.rc_context(_STYLE)
def fronts_figure(fronts: Mapping[str, Sequence[Point]], curves: Mapping[str, Sequence[Point]]) -> Figure:
    """Several searches: their fronts on the left, their hypervolumes over the evaluations on the right."""
    figure = Figure(figsize=(12, 5), label="Fronts of several searches, and their hypervolumes over the evaluations")
    left, right = _row_of_axes(figure, 2, widths=[3, 2])
    colors = itertools.cycle(_SERIES)
    for (name, points), color in zip(fronts.items(), colors, strict=False):
        _draw_reference(left, Reference(label=name, points=points, color=color))
        if curves[name]:
            x, y = zip(*curves[name], strict=True)
            right.plot(x, y, color=_C[color])
    _latency_axis(left, [latency for points in fronts.values() for latency, _ in points])
    left.set_xlabel("modelled latency, ms")
    left.set_ylabel("validation accuracy, %")
    left.yaxis.set_major_formatter(_PERCENT)
    _hypervolume_axes(right)
    left.grid(axis="y")
    _legend_on_top(figure, *left.get_legend_handles_labels())
    return figure


@matplotlib.rc_context(_STYLE)
def search_figure(curves: Mapping[str, Sequence[Point]], importance: Mapping[str, float]) -> Figure:
    """How a search went: hypervolume over the evaluations, and the importance of each kind of choice.

    Args:
        curves: (evaluations, hypervolume) by the name of the search.
        importance: share of the variance of accuracy that is lost without the choice, the largest first; may be empty.
    """
    figure = Figure(figsize=(10, 3.3), label="Hypervolume over the evaluations, and the importance of each choice")
    axes = _row_of_axes(figure, 2 if importance else 1)
    for (name, points), color in zip(curves.items(), itertools.cycle(_SERIES), strict=False):
        if points:
            x, y = zip(*points, strict=True)
            axes[0].plot(x, y, color=_C[color], label=name)
    _hypervolume_axes(axes[0])
    axes[0].legend(loc="lower right")
    if importance:
        axes[1].barh(list(importance), list(importance.values()), color=_C["blue"], height=0.66)
        axes[1].invert_yaxis()
        axes[1].set_title("importance of each choice, % of the variance of accuracy")
        axes[1].xaxis.set_major_formatter(_PERCENT)
        axes[1].tick_params(axis="y", length=0, labelcolor=_C["ink"])
        axes[1].grid(axis="x")
    return figure


def _hypervolume_axes(axes: Axes) -> None:
    axes.set_title("hypervolume")
    axes.set_xlabel("evaluated subnets")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    axes.grid(axis="y")


@matplotlib.rc_context(_STYLE)
def curves_figure(panels: Sequence[Panel]) -> Figure:
    """Training curves, one panel beside the other."""
    figure = Figure(figsize=(10, 3.3), label="Loss, accuracy and learning rate over the epochs")
    names = dict.fromkeys(name for panel in panels for name in panel.series)
    colors = dict(zip(names, itertools.cycle(_SERIES), strict=False))  # one curve, one colour, in all panels
    lines = {}
    for axes, panel in zip(_row_of_axes(figure, len(panels)), panels, strict=True):
        for name, points in panel.series.items():
            x, y = zip(*points, strict=True)
            marker = "o" if len(x) < 20 else ""
            (lines[name],) = axes.plot(x, y, color=_C[colors[name]], marker=marker, markersize=3)
        axes.set_title(panel.title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
        if panel.percent:
            axes.yaxis.set_major_formatter(_PERCENT)
        axes.grid(axis="y")
    _legend_on_top(figure, list(lines.values()), list(lines))
    return figure


def block_linears(workload: Workload) -> dict[str, dict[int, Gemm]]:
    """The products with stored weights that sit in blocks: kind -> index of the block -> product."""
    linears: dict[str, dict[int, Gemm]] = {}
    for gemm in workload.gemms:
        scope, _, rest = gemm.name.partition(".")
        if gemm.stored and scope == "blocks":
            linears.setdefault(gemm.kind, {})[int(rest.partition(".")[0])] = gemm
    return linears


def widest_rows(workloads: Iterable[Workload]) -> dict[str, int]:
    """For each kind of linear, its largest number of rows in any block of any workload."""
    widest: dict[str, int] = {}
    for workload in workloads:
        for kind, blocks in block_linears(workload).items():
            widest[kind] = max(widest.get(kind, 0), *(gemm.rows * gemm.count for gemm in blocks.values()))
    return widest


@matplotlib.rc_context(_STYLE)
def rows_figure(subnet: Subnet, workload: Workload, *, widest: Mapping[str, int]) -> Figure:
    """The rows of each linear of each block as a bar, split by precision.

    `widest` comes from `widest_rows` over all pictures that are to be compared: a row has the same length in all of
    them, and in all columns of one.
    """
    linears = block_linears(workload)
    columns = [kind for kind in widest if kind in linears]
    room = 0.055 * sum(widest.values())  # for the number at the end of the longest bar
    figure = Figure(
        figsize=(10, 0.75 + 0.235 * subnet.depth), label="Rows of each linear of each block, split by precision"
    )
    all_axes = _row_of_axes(figure, len(columns), widths=[widest[kind] + room for kind in columns])
    for axes, kind in zip(all_axes, columns, strict=True):
        blocks = linears[kind]
        high = [gemm.rows_high * gemm.count for gemm in blocks.values()]
        low = [gemm.rows_low * gemm.count for gemm in blocks.values()]
        axes.barh(list(blocks), high, color=_C["bits_high"], height=0.72)
        axes.barh(list(blocks), low, left=high, color=_C["bits_low"], height=0.72)
        for index, (h, n) in enumerate(zip(high, low, strict=True)):
            share = h / (h + n)
            axes.annotate(
                f"{share:.0%}",
                (h + n, list(blocks)[index]),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                color=_C["soft"],
            )
        axes.set_title(kind)
        axes.set_xlim(0, widest[kind] + room)
        axes.set_ylim(subnet.depth - 0.4, -0.6)
        axes.set_xticks([0, widest[kind]])
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    all_axes[0].set_yticks(range(subnet.depth), _block_labels(subnet))
    all_axes[0].tick_params(axis="y", length=0, labelcolor=_C["ink"])
    figure.supxlabel("weight rows", fontsize=9, color=_C["soft"])
    return figure


@matplotlib.rc_context(_STYLE)
def latency_figure(costs: Mapping[str, CostEstimate]) -> Figure:
    """Stacked bars: for each label, the milliseconds of each group of layers."""
    figure = Figure(figsize=(10, 1.35 + 0.42 * len(costs)), label="Latency of each chosen subnet by type of layer")
    axes = figure.add_subplot()
    start = [0.0] * len(costs)
    for title, _, color in LAYER_GROUPS:
        lengths = [
            sum(layer.cycles for layer in cost.layers if layer_group(layer.kind) == title)
            / cost.cycles
            * cost.latency_ms
            for cost in costs.values()
        ]
        axes.barh(list(costs), lengths, left=start, color=_C[color], label=title, height=0.66)
        start = [s + length for s, length in zip(start, lengths, strict=True)]
    for position, total in enumerate(start):
        axes.annotate(
            f"{total:.3g} ms", (total, position), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5
        )
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlim(left=0)
    axes.set_xlabel("modelled latency, ms")
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0, labelcolor=_C["ink"])
    axes.spines["left"].set_visible(False)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper left", ncols=7, columnspacing=1.2, handlelength=1
    )
    return figure


@matplotlib.rc_context(_STYLE)
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
        axes.fill_between(
            [left, top / stream.gb_per_s, right], [left * stream.gb_per_s, top, top], top * 10, color=_C["rule"], lw=0
        )
        spare = stream.from_memory and roofline.memory_gb_per_s > 1.02 * stream.gb_per_s
        text = f"stream {stream.gb_per_s:.3g} GB/s" + (
            "" if spare or not stream.from_memory else f", {roofline.memory_limit}"
        )
        _roof(axes, stream.gb_per_s, (left, top), color="ink", style="-", text=text)
        if spare:
            text = f"{roofline.memory_gb_per_s:.3g} GB/s: {roofline.memory_limit}" if axes is panels[0] else ""
            _roof(axes, roofline.memory_gb_per_s, (left, top), color="soft", style=(0, (4, 2)), text=text)
        for bits, gops in roofline.array_gops.items():
            axes.plot([gops / stream.gb_per_s, right], [gops, gops], color=_C["ink"], linewidth=1.2)
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
                color=_C[color],
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
        [Line2D([], [], linestyle="", marker=_BOUNDS[bound][2], color=_C[_BOUNDS[bound][1]]) for bound in bounds],
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
    axes.plot([left, top / gb_per_s], [left * gb_per_s, top], color=_C[color], linewidth=1.2, linestyle=style)
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
        color=_C[color],
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
                "color": _C["dots"],
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


def layer_group(kind: str) -> str:
    """The title in `LAYER_GROUPS` of layers of this kind; the last one if no group names it."""
    return next((title for title, kinds, _ in LAYER_GROUPS if kind in kinds), LAYER_GROUPS[-1][0])


def inline_svg(figure: Figure, *, name: str) -> str:
    """The figure as an `<svg>` element for an HTML page; `name` keeps its ids apart from those of other figures.

    It is as wide as its container, has the figure's label for screen readers, and refers to nothing outside itself.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):  # equal data, equal bytes
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)  # names of artists, the same in every figure
    for color, (light, _) in PALETTE.items():
        text = text.replace(light, f"var(--{color})")
    return text.replace("<svg", f'<svg role="img" aria-label="{figure.get_label()}"', 1)


_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g}")


def _legend_on_top(figure: Figure, handles: Sequence[Artist], titles: Sequence[str]) -> None:
    figure.legend(handles, titles, loc="outside upper left", ncols=len(titles), columnspacing=1.5, handlelength=1.2)


def _row_of_axes(figure: Figure, count: int, *, widths: Sequence[float] | None = None) -> list[Axes]:
    grid = figure.add_gridspec(1, count, width_ratios=widths)
    return [figure.add_subplot(grid[0, column]) for column in range(count)]


def _block_labels(subnet: Subnet) -> list[str]:
    """Heads and MLP width of each block, and its operator where the blocks differ in it."""
    mixed = len({block.operator for block in subnet.blocks}) > 1
    return [
        f"{index + 1} · {block.num_heads} heads · MLP ×{block.mlp_ratio:g}" + (f" · {block.operator}" if mixed else "")
        for index, block in enumerate(subnet.blocks)
    ]
