"""The figure of a profile: how FLOPs, bytes, latency and energy share out between types of operators."""

from __future__ import annotations

import matplotlib
from matplotlib.figure import Figure

from quasar.figures.style import COLORS, PERCENT, STYLE
from quasar.profiling.rows import Profile

_TITLES = {"flops": "FLOPs", "bytes": "bytes", "latency_ms": "latency", "energy_mj": "energy"}
_COLORS = ("blue", "vermilion", "green", "orange", "purple", "sky", "bits_high", "bits_low", "dots", "soft", "ink")
#: share from which a piece of a bar has room for its number
_ROOM = 0.045


@matplotlib.rc_context(STYLE)
def profile_figure(profile: Profile) -> Figure:
    """A bar for each figure that is known, the types of operators as pieces of it; beside it the total."""
    known = [figure for figure in _TITLES if profile.shares(figure)]
    figure = Figure(figsize=(10, 1.9 + 0.5 * len(known)), label="Shares of each type of operator")
    figure.suptitle(f"{profile.network} on {profile.title}", x=0.01, ha="left", fontsize=10)
    axes = figure.add_subplot()
    start = [0.0] * len(known)
    for index, row in enumerate(profile.rows):
        lengths = [(profile.shares(name) or [])[index] for name in known]
        color = COLORS[_COLORS[index % len(_COLORS)]]
        hatch = "///" if index >= len(_COLORS) else None
        axes.barh(range(len(known)), lengths, left=start, color=color, height=0.7, label=row.kind, hatch=hatch)
        for position, (left, length) in enumerate(zip(start, lengths, strict=True)):
            if length >= _ROOM:
                axes.annotate(
                    f"{length:.0%}", (left + length / 2, position), ha="center", va="center", color="white", fontsize=8
                )
        start = [left + length for left, length in zip(start, lengths, strict=True)]
    for position, name in enumerate(known):
        axes.annotate(
            _amount(name, profile.total(name) or 0.0),
            (1, position),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    axes.set_yticks(range(len(known)), [_TITLES[name] for name in known])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(PERCENT)
    axes.set_xlabel("share, %")
    axes.tick_params(axis="y", length=0, labelcolor=COLORS["ink"])
    axes.spines["left"].set_visible(False)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower left", ncols=6, columnspacing=1.2, handlelength=1
    )
    return figure


def _amount(name: str, total: float) -> str:
    if name == "flops":
        return f"{total / 1e9:.3g} G"
    if name == "bytes":
        return f"{total / 1e6:.3g} MB"
    return f"{total:.3g} {'ms' if name == 'latency_ms' else 'mJ'}"
