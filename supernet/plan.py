"""Which slice of each linear a subnet uses, and which of its rows are at high precision. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from supernet.subnet import BlockChoice, Subnet, hidden_units, high_precision_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearPlan:
    """The active slice of a linear: the first `rows` rows and the first `inputs` inputs.

    The first `high` rows of each `group` are at high precision. For qkv a group is one head's rows of q, k or v
    (`head_dim` of them); for all other linears it is all the rows. `site` names the activation site of the input,
    whose scale sets the unit of the bias.
    """

    site: str
    rows: int
    inputs: int
    group: int
    high: int
    low_bits: int
    high_bits: int

    @property
    def is_high(self) -> NDArray[np.bool_]:
        """True where a row is at high precision, (rows,)."""
        return np.arange(self.rows) % self.group < self.high

    @property
    def rows_high(self) -> int:
        """Rows at high precision."""
        return self.rows // self.group * self.high

    @property
    def row_bits(self) -> NDArray[np.int64]:
        """Bits of each row, (rows,)."""
        return np.where(self.is_high, self.high_bits, self.low_bits)


def linear_plan(
    subnet: Subnet, *, site: str, rows: int, inputs: int, ratio: float, group: int | None = None
) -> LinearPlan:
    """The plan of a linear with a `ratio` of its rows (of each group) at high precision."""
    group = group or rows
    return LinearPlan(
        site=site,
        rows=rows,
        inputs=inputs,
        group=group,
        high=int(high_precision_rows(ratio, group)),
        low_bits=subnet.low_bits,
        high_bits=subnet.high_bits,
    )


def patch_plan(subnet: Subnet) -> LinearPlan:
    """The patch embedding, wholly at high precision."""
    return linear_plan(
        subnet, site="image", rows=subnet.embed_dim, inputs=subnet.in_chans * subnet.patch_size**2, ratio=1.0
    )


def head_plan(subnet: Subnet) -> LinearPlan:
    """The classifier, wholly at high precision."""
    return linear_plan(subnet, site="norm", rows=subnet.num_classes, inputs=subnet.embed_dim, ratio=1.0)


def pool_plan(subnet: Subnet) -> LinearPlan:
    """The linear over 2 x 2 neighbours that pools patches, wholly at high precision."""
    return linear_plan(subnet, site="pooled", rows=subnet.embed_dim, inputs=4 * subnet.embed_dim, ratio=1.0)


def attention_plan(subnet: Subnet, block: BlockChoice) -> dict[str, LinearPlan]:
    """The linears of softmax attention."""
    width, inner = subnet.embed_dim, block.num_heads * subnet.head_dim
    return {
        "qkv": linear_plan(
            subnet, site="norm1", rows=3 * inner, inputs=width, ratio=block.qkv_ratio, group=subnet.head_dim
        ),
        "proj": linear_plan(subnet, site="mixed", rows=width, inputs=inner, ratio=block.proj_ratio),
    }


def mlp_plan(subnet: Subnet, block: BlockChoice) -> dict[str, LinearPlan]:
    """The two linears of a block's MLP."""
    width = subnet.embed_dim
    hidden = int(hidden_units(block.mlp_ratio, width))
    return {
        "fc1": linear_plan(subnet, site="norm2", rows=hidden, inputs=width, ratio=block.fc1_ratio),
        "fc2": linear_plan(subnet, site="gelu", rows=width, inputs=hidden, ratio=block.fc2_ratio),
    }
