"""The picture of a sweep, in the style of `quasar.figures`."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from quasar.figures import _C, _PERCENT, _STYLE
from quasar.tune_journal import Trial


@matplotlib.rc_context(_STYLE)
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
            axes.plot(epochs, values, color=_C[color], linewidth=width, marker="o", markersize=3, label=title)
    axes.set_title(f"{metric.replace('_', ' ')} on the validation split, %")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.yaxis.set_major_formatter(_PERCENT)
    axes.grid(axis="y")
    handles, titles = axes.get_legend_handles_labels()
    figure.legend(handles, titles, loc="outside upper left", ncols=3, columnspacing=1.5, handlelength=1.2)
    return figure
