"""How well devices agree about subnets: matrices with a number in each field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from quasar.figures.style import COLORS, STYLE, row_of_axes

#: from what transfers to what does not
_COLORS = LinearSegmentedColormap.from_list("transfer", ["#ffffff", COLORS["sky"], COLORS["blue"]])


@matplotlib.rc_context(STYLE)
def transfer_figure(document: Mapping[str, Any]) -> Figure:
    """Ranks, and what borrowed strategies lose in score and in time, of what `quasar.transfer` gives.

    A field is the darker, the less agrees. Rows are the devices for which strategies were chosen.
    """
    devices = document["devices"]
    of_accuracy = document["score"] == "accuracy"
    panels = (
        ("Kendall's tau of latencies", document["kendall"], 1.0, "{:.2f}", -1.0),
        ("accuracy lost, points" if of_accuracy else "bit operations lost, %", document["lost"], 100.0, "{:.1f}", 1.0),
        ("slower than necessary, %", document["slower"], 100.0, "{:.0f}", 1.0),
    )
    size = 1.6 + 0.42 * len(devices)
    figure = Figure(figsize=(3 * size + 1, size + 1.6), label="Agreement of devices about subnets")
    for place, (axes, panel) in enumerate(zip(row_of_axes(figure, len(panels)), panels, strict=True)):
        title, matrix, scale, form, sign = panel
        _matrix(axes, matrix, scale=scale, form=form, sign=sign)
        axes.set_title(title)
        axes.set_xticks(range(len(devices)), devices, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(devices)), devices if place == 0 else [""] * len(devices))
        axes.set_xlabel("" if place == 0 else "chosen for the row's device, run on the column's")
    return figure


def _matrix(axes: Axes, matrix: Sequence[Sequence[float | None]], *, scale: float, form: str, sign: float) -> None:
    """One field for each pair; `sign` is that of values that grow where less agrees."""
    values = scale * np.array([[np.nan if value is None else value for value in row] for row in matrix])
    shades = sign * values
    low, high = np.nanmin(shades), np.nanmax(shades)
    axes.imshow(shades, cmap=_COLORS, vmin=low, vmax=max(high, low + 1e-9))
    for (row, column), value in np.ndenumerate(values):
        text = "–" if np.isnan(value) else form.format(value)
        dark = not np.isnan(value) and shades[row, column] > low + 0.75 * (high - low)
        axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color="white" if dark else COLORS["ink"])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
