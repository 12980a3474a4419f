"""Figures of accuracies: fronts, trainings, searches and sweeps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from quasar.figures.style import COLORS, PERCENT, SERIES, STYLE, legend_on_top, row_of_axes
from quasar.tune_journal import Trial

#: latency in ms and accuracy in [0, 1], or divergence from floats in nats
Point = tuple[float, float]


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


_MOST_VECTOR_DOTS = 3000  # above this a scatter plot becomes one embedded image: the page must stay small


@matplotlib.rc_context(STYLE)
def front_figure(
    *,
    trials: Sequence[Point],
    front: Sequence[Point],
    targets: Sequence[TargetMark],
    device: str,
    references: Sequence[Reference] = (),
    kl: bool = False,
) -> Figure:
    """All trials, the Pareto front as a step line, and the targets with the subnets chosen for them.

    `references` are other fronts, or other points. With `kl`, points are divergences.
    """
    what = "Divergence" if kl else "Accuracy"
    figure = Figure(
        figsize=(10, 5), label=f"{what} against latency of all trials, with the Pareto front and the targets"
    )
    axes = figure.add_subplot()
    if trials:
        x, y = zip(*trials, strict=True)
        axes.scatter(
            x,
            y,
            s=9,
            color=COLORS["dots"],
            linewidths=0,
            label=f"trials ({len(trials):,})",
            rasterized=len(trials) > _MOST_VECTOR_DOTS,
        )
    for reference in references:
        _draw_reference(axes, reference)
    if front:
        x, y = zip(*sorted(front), strict=True)
        # Between two points of the front, the best that is known is the one on the left: hence steps.
        axes.plot(x, y, drawstyle="steps-post", color=COLORS["blue"], label=f"Pareto front ({len(front)})")
        axes.scatter(x, y, s=12, color=COLORS["blue"], linewidths=0, zorder=3)
    chosen = [mark.chosen for mark in targets if mark.chosen]
    if chosen:
        x, y = zip(*chosen, strict=True)
        axes.scatter(
            x, y, s=70, marker="D", color=COLORS["vermilion"], linewidths=0, label="chosen for a target", zorder=4
        )
    for mark in targets:
        axes.axvline(mark.latency_ms, color=COLORS["ink"], linewidth=0.9, linestyle="-" if mark.chosen else (0, (1, 2)))
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
    _height_axis(axes, kl=kl)
    axes.grid(axis="y")
    legend_on_top(figure, *axes.get_legend_handles_labels())
    return figure


def _height_axis(axes: Axes, *, kl: bool) -> None:
    """What points are over the latency."""
    if kl:
        axes.set_ylabel("KL divergence from floats, nats")
    else:
        axes.set_ylabel("validation accuracy, %")
        axes.yaxis.set_major_formatter(PERCENT)


def _draw_reference(axes: Axes, reference: Reference) -> None:
    if not reference.points:
        return
    x, y = zip(*sorted(reference.points), strict=True)
    color = COLORS[reference.color]
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


@matplotlib.rc_context(STYLE)
def fronts_figure(
    fronts: Mapping[str, Sequence[Point]], curves: Mapping[str, Sequence[Point]], *, kl: bool = False
) -> Figure:
    """Several searches: their fronts on the left, their hypervolumes over the evaluations on the right."""
    figure = Figure(figsize=(12, 5), label="Fronts of several searches, and their hypervolumes over the evaluations")
    left, right = row_of_axes(figure, 2, widths=[3, 2])
    colors = itertools.cycle(SERIES)
    for (name, points), color in zip(fronts.items(), colors, strict=False):
        _draw_reference(left, Reference(label=name, points=points, color=color))
        if curves[name]:
            x, y = zip(*curves[name], strict=True)
            right.plot(x, y, color=COLORS[color])
    _latency_axis(left, [latency for points in fronts.values() for latency, _ in points])
    left.set_xlabel("modelled latency, ms")
    _height_axis(left, kl=kl)
    _hypervolume_axes(right)
    left.grid(axis="y")
    legend_on_top(figure, *left.get_legend_handles_labels())
    return figure


@matplotlib.rc_context(STYLE)
def search_figure(curves: Mapping[str, Sequence[Point]], importance: Mapping[str, float]) -> Figure:
    """How a search went: hypervolume over the evaluations, and the importance of each kind of choice.

    Args:
        curves: (evaluations, hypervolume) by the name of the search.
        importance: share of the variance that is lost without the choice, the largest first; may be empty.
    """
    figure = Figure(figsize=(10, 3.3), label="Hypervolume over the evaluations, and the importance of each choice")
    axes = row_of_axes(figure, 2 if importance else 1)
    for (name, points), color in zip(curves.items(), itertools.cycle(SERIES), strict=False):
        if points:
            x, y = zip(*points, strict=True)
            axes[0].plot(x, y, color=COLORS[color], label=name)
    _hypervolume_axes(axes[0])
    axes[0].legend(loc="lower right")
    if importance:
        axes[1].barh(list(importance), list(importance.values()), color=COLORS["blue"], height=0.66)
        axes[1].invert_yaxis()
        axes[1].set_title("importance of each choice, % of variance")
        axes[1].xaxis.set_major_formatter(PERCENT)
        axes[1].tick_params(axis="y", length=0, labelcolor=COLORS["ink"])
        axes[1].grid(axis="x")
    return figure


def _hypervolume_axes(axes: Axes) -> None:
    axes.set_title("hypervolume")
    axes.set_xlabel("evaluated subnets")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    axes.grid(axis="y")


@matplotlib.rc_context(STYLE)
def curves_figure(panels: Sequence[Panel]) -> Figure:
    """Training curves, one panel beside the other."""
    figure = Figure(figsize=(10, 3.3), label="Loss, accuracy and learning rate over the epochs")
    names = dict.fromkeys(name for panel in panels for name in panel.series)
    colors = dict(zip(names, itertools.cycle(SERIES), strict=False))  # one curve, one colour, in all panels
    lines = {}
    for axes, panel in zip(row_of_axes(figure, len(panels)), panels, strict=True):
        for name, points in panel.series.items():
            x, y = zip(*points, strict=True)
            marker = "o" if len(x) < 20 else ""
            (lines[name],) = axes.plot(x, y, color=COLORS[colors[name]], marker=marker, markersize=3)
        axes.set_title(panel.title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
        if panel.percent:
            axes.yaxis.set_major_formatter(PERCENT)
        axes.grid(axis="y")
    legend_on_top(figure, list(lines.values()), list(lines))
    return figure


@matplotlib.rc_context(STYLE)
def trials_figure(trials: Sequence[Trial], *, best: int | None, metric: str) -> Figure:
    """The metric of each trial over its epochs: the best one, those that finished, and those that ended early."""
    figure = Figure(figsize=(10, 4.5), label="The metric of each trial over its epochs")
    axes = figure.add_subplot()
    kinds = {
        "stopped early, or failed": ("dots", 1.0, [t for t in trials if t.state != "finished"]),
        "finished": ("blue", 1.2, [t for t in trials if t.state == "finished" and t.number != best]),
        f"trial {best}, the best": ("vermilion", 2.2, [t for t in trials if t.number == best]),
    }
    for label, (color, width, members) in kinds.items():
        for trial in members:
            epochs, values = list(trial.values), list(trial.values.values())
            title = label if trial is members[0] else None
            axes.plot(epochs, values, color=COLORS[color], linewidth=width, marker="o", markersize=3, label=title)
    axes.set_title(f"{metric.replace('_', ' ')} on the validation split, %")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.yaxis.set_major_formatter(PERCENT)
    axes.grid(axis="y")
    handles, titles = axes.get_legend_handles_labels()
    figure.legend(handles, titles, loc="outside upper left", ncols=3, columnspacing=1.5, handlelength=1.2)
    return figure
