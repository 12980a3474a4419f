"""How all figures look: colours, style, and their form as inline SVG.

The colours of categories are those of Okabe and Ito ("Color Universal Design", 2008), which people with any common
colour blindness can tell apart; precision is told by lightness (more bits, stronger colour).
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

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

#: the colours that figures are drawn with
COLORS = {name: light for name, (light, _) in PALETTE.items()}

#: colours of curves that are told apart by nothing else, in the order in which they are taken
SERIES = ("blue", "vermilion", "green", "purple", "orange", "sky")

STYLE: Any = {  # the type of its keys differs between versions of matplotlib
    "text.parse_math": False,  # names come from users: a dollar sign is a dollar sign
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib, and is wide: other fonts fit where it fits
    "font.size": 9.0,
    "text.color": COLORS["ink"],
    "axes.labelcolor": COLORS["soft"],
    "axes.titlecolor": COLORS["ink"],
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": COLORS["soft"],
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": COLORS["rule"],
    "grid.linewidth": 0.6,
    "xtick.color": COLORS["soft"],
    "ytick.color": COLORS["soft"],
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}

#: shows a share as per cent
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g}")


def inline_svg(figure: Figure, *, name: str) -> str:
    """The figure as an `<svg>` element for an HTML page; `name` keeps its ids apart from those of other figures.

    It is as wide as its container, has the figure's label for screen readers, and refers to nothing outside itself.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):  # equal data, equal bytes
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)  # names of artists, the same in every figure
    for color, (light, _) in PALETTE.items():
        text = text.replace(light, f"var(--{color})")
    return text.replace("<svg", f'<svg role="img" aria-label="{figure.get_label()}"', 1)


def legend_on_top(figure: Figure, handles: Sequence[Artist], titles: Sequence[str]) -> None:
    """One legend for all axes, in a row above them."""
    figure.legend(handles, titles, loc="outside upper left", ncols=len(titles), columnspacing=1.5, handlelength=1.2)


def row_of_axes(figure: Figure, count: int, *, widths: Sequence[float] | None = None) -> list[Axes]:
    """Axes side by side, of these relative widths or all alike."""
    grid = figure.add_gridspec(1, count, width_ratios=widths)
    return [figure.add_subplot(grid[0, column]) for column in range(count)]
