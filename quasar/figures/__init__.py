"""The pictures of reports, comparisons and sweeps: matplotlib figures of plain data.

Every function returns a `Figure`, which can be saved as it is (PNG, PDF) or turned into a piece of HTML by
`inline_svg`. That form keeps text as text and replaces each colour of `PALETTE` by a CSS variable of the same name, so
that the page decides how a picture looks on a light or a dark background. No pyplot, hence no global figures.
"""

from quasar.figures.curves import (
    Panel,
    Point,
    Reference,
    TargetMark,
    curves_figure,
    front_figure,
    fronts_figure,
    search_figure,
    trials_figure,
)
from quasar.figures.layers import LAYER_GROUPS, block_linears, latency_figure, layer_group, rows_figure, widest_rows
from quasar.figures.roofline import roofline_figure
from quasar.figures.style import PALETTE, inline_svg

__all__ = [
    "LAYER_GROUPS",
    "PALETTE",
    "Panel",
    "Point",
    "Reference",
    "TargetMark",
    "block_linears",
    "curves_figure",
    "front_figure",
    "fronts_figure",
    "inline_svg",
    "latency_figure",
    "layer_group",
    "roofline_figure",
    "rows_figure",
    "search_figure",
    "trials_figure",
    "widest_rows",
]
