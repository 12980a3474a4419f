"""What is measured on a host: the grids of all operators, and networks to check the table with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from supernet.lowering import lower
from supernet.subnet import BlockChoice, Subnet


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The sizes that are measured, and how often.

    Attributes:
        tokens: of linears and of what is done element by element.
        widths, hidden: channels of the residual stream, and of what linears widen it to.
        grids: patches along a side of the image, for attention and patch embedding.
        heads, head_dims, patch_sizes, embed_widths: of those two.
        rounds: repetitions of everything, one after the other.
        burst_s: seconds for which one thing is run again and again in a round.
        most_macs, most_weights: of the networks that the table is fitted to and checked with.
    """

    tokens: tuple[int, ...]
    widths: tuple[int, ...]
    hidden: tuple[int, ...]
    grids: tuple[int, ...]
    heads: tuple[int, ...]
    head_dims: tuple[int, ...]
    patch_grids: tuple[int, ...]
    patch_sizes: tuple[int, ...]
    embed_widths: tuple[int, ...]
    rounds: int
    burst_s: float
    most_macs: float
    most_weights: float


FULL = Plan(
    tokens=(1, 17, 65, 197, 577),
    widths=(2, 96, 320, 1024),
    hidden=(2, 96, 384, 1280, 4096),
    grids=(1, 2, 4, 6, 8, 11, 14, 18, 24),
    heads=(1, 4, 16),
    head_dims=(2, 16, 64, 128),
    patch_grids=(1, 4, 8, 14, 24),
    patch_sizes=(1, 4, 8, 16),
    embed_widths=(2, 192, 1024),
    rounds=9,
    burst_s=3e-3,
    most_macs=2e9,
    most_weights=25e6,
)
QUICK = Plan(
    tokens=(1, 17, 65, 197),
    widths=(2, 128, 384, 1024),
    hidden=(2, 128, 512, 1536),
    grids=(1, 2, 4, 8, 11, 14),
    heads=(1, 8),
    head_dims=(2, 64),
    patch_grids=(1, 4, 14),
    patch_sizes=(1, 4, 16),
    embed_widths=(2, 1024),
    rounds=7,
    burst_s=1e-3,
    most_macs=3e8,
    most_weights=8e6,
)


#: networks that a table is fitted to, and others that it is checked with
FITTED, CHECKED = 18, 30
#: of those networks
MLP_RATIOS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Networks:
    """Random subnets within the sizes of a plan, both sets evenly spread over the logarithm of their MACs."""

    fitted: tuple[Subnet, ...]
    checked: tuple[Subnet, ...]

    @staticmethod
    def of(plan: Plan, *, seed: int) -> Networks:
        """Different ones for each seed; none is on the grid of the plan on purpose."""
        rng = np.random.default_rng(seed)
        count = FITTED + CHECKED
        drawn: dict[Subnet, int] = {}
        while len(drawn) < 4 * count:
            subnet = _drawn(plan, rng)
            workload = lower(subnet)
            weights = sum(gemm.inputs * gemm.rows for gemm in workload.gemms if gemm.stored)
            if workload.macs <= plan.most_macs and weights <= plan.most_weights:
                drawn[subnet] = workload.macs
        chosen: list[Subnet] = []
        for rung in np.geomspace(min(drawn.values()), max(drawn.values()), count).tolist():
            nearest = min(drawn, key=lambda subnet: abs(np.log(drawn[subnet] / rung)))
            chosen.append(nearest)
            del drawn[nearest]
        to_fit = np.linspace(1, count - 2, FITTED).round().astype(int).tolist()
        return Networks(
            fitted=tuple(chosen[index] for index in to_fit),
            checked=tuple(subnet for index, subnet in enumerate(chosen) if index not in to_fit),
        )


def _drawn(plan: Plan, rng: np.random.Generator) -> Subnet:
    grid = int(rng.integers(3, plan.grids[-1] + 1))
    width = 8 * int(rng.integers(4, plan.widths[-1] // 8 + 1))
    head_dim = int(rng.choice([size for size in (16, 24, 32, 48, 64) if size <= min(width, plan.head_dims[-1])]))
    heads = [n for n in range(1, plan.heads[-1] + 1) if n * head_dim <= min(1.5 * width, plan.hidden[-1] / 3)]
    ratios = (0.0, 0.25, 0.5, 1.0)

    def block() -> BlockChoice:
        qkv, proj, fc1, fc2 = rng.choice(ratios, 4).tolist()
        return BlockChoice(
            num_heads=int(rng.choice(heads)),
            mlp_ratio=float(rng.choice([ratio for ratio in MLP_RATIOS if ratio * width <= plan.hidden[-1]])),
            operator="attention",
            qkv_ratio=qkv,
            proj_ratio=proj,
            fc1_ratio=fc1,
            fc2_ratio=fc2,
        )

    patch_size = int(rng.choice([size for size in (2, 4, 8, 16) if size <= plan.patch_sizes[-1]]))
    return Subnet(
        image_size=grid * patch_size,
        patch_size=patch_size,
        in_chans=3,
        num_classes=int(rng.choice([classes for classes in (10, 100, 1000) if classes <= plan.widths[-1]])),
        embed_dim=width,
        head_dim=head_dim,
        blocks=tuple(block() for _ in range(int(rng.integers(2, 15)))),
    )
