"""Figures of a network layer by layer: the precision of its rows, and where the time goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import matplotlib
from matplotlib.figure import Figure

from hwmodel.cost import FpgaCostEstimate
from hwmodel.workload import Gemm, Workload
from quasar.figures.style import COLORS, STYLE, row_of_axes
from supernet.subnet import Subnet

#: layer types of the latency picture, from the bottom of a bar to its top: title, kinds of layer, colour
LAYER_GROUPS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("qkv", ("qkv",), "blue"),
    ("attention products", ("scores", "mix", "context", "readout"), "sky"),
    ("proj", ("proj",), "green"),
    ("fc1", ("fc1",), "orange"),
    ("fc2", ("fc2",), "vermilion"),
    ("vector unit", ("layernorm", "softmax", "residual"), "purple"),
    ("embedding, head, others", (), "soft"),
)


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


@matplotlib.rc_context(STYLE)
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
    all_axes = row_of_axes(figure, len(columns), widths=[widest[kind] + room for kind in columns])
    for axes, kind in zip(all_axes, columns, strict=True):
        blocks = linears[kind]
        high = [gemm.rows_high * gemm.count for gemm in blocks.values()]
        low = [gemm.rows_low * gemm.count for gemm in blocks.values()]
        axes.barh(list(blocks), high, color=COLORS["bits_high"], height=0.72)
        axes.barh(list(blocks), low, left=high, color=COLORS["bits_low"], height=0.72)
        for index, (h, n) in enumerate(zip(high, low, strict=True)):
            share = h / (h + n)
            axes.annotate(
                f"{share:.0%}",
                (h + n, list(blocks)[index]),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                color=COLORS["soft"],
            )
        axes.set_title(kind)
        axes.set_xlim(0, widest[kind] + room)
        axes.set_ylim(subnet.depth - 0.4, -0.6)
        axes.set_xticks([0, widest[kind]])
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    all_axes[0].set_yticks(range(subnet.depth), _block_labels(subnet))
    all_axes[0].tick_params(axis="y", length=0, labelcolor=COLORS["ink"])
    figure.supxlabel("weight rows", fontsize=9, color=COLORS["soft"])
    return figure


@matplotlib.rc_context(STYLE)
def latency_figure(costs: Mapping[str, FpgaCostEstimate]) -> Figure:
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
        axes.barh(list(costs), lengths, left=start, color=COLORS[color], label=title, height=0.66)
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
    axes.tick_params(axis="y", length=0, labelcolor=COLORS["ink"])
    axes.spines["left"].set_visible(False)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper left", ncols=7, columnspacing=1.2, handlelength=1
    )
    return figure


def layer_group(kind: str) -> str:
    """The title in `LAYER_GROUPS` of layers of this kind; the last one if no group names it."""
    return next((title for title, kinds, _ in LAYER_GROUPS if kind in kinds), LAYER_GROUPS[-1][0])


def _block_labels(subnet: Subnet) -> list[str]:
    """Heads and MLP width of each block, and its operator where the blocks differ in it."""
    mixed = len({block.operator for block in subnet.blocks}) > 1
    return [
        f"{index + 1} · {block.num_heads} heads · MLP ×{block.mlp_ratio:g}" + (f" · {block.operator}" if mixed else "")
        for index, block in enumerate(subnet.blocks)
    ]
