"""The seam for runtimes: what is timed in each, and how it is set up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from supernet.subnet import BlockChoice, Subnet

#: runs something once, and keeps its results where they are
Run = Callable[[], object]


class Point(NamedTuple):
    """An operator of `hwmodel.measured.OPERATORS` with its sizes."""

    operator: str
    sizes: tuple[int, ...]


class Timed(NamedTuple):
    """What is timed for a point: a run of so many copies of the operator, each with weights of its own."""

    run: Run
    copies: int


class HostRuntime(Protocol):
    """A runtime on this host.

    Everything runs on so many threads as the runtime was made for, on one image, and is ready to run when it is given:
    loaded, its memory taken, its first run done.
    """

    @property
    def name(self) -> str:
        """The runtime's name."""

    @property
    def form(self) -> str:
        """What is run, in words."""

    @property
    def packages(self) -> tuple[str, ...]:
        """The installed packages on whose versions times depend."""

    @property
    def layers(self) -> Mapping[str, Mapping[str, int]]:
        """How many operators of each name a layer of each kind consists of; see `hwmodel.measured.MeasuredHost`."""

    def call(self) -> Run:
        """A call of the runtime that does next to nothing."""

    def linears(self, tokens: Sequence[int], *, width: int, hidden: int) -> dict[Point, Timed]:
        """`linear_up` from `width` to `hidden` channels and `linear_down` back, for each number of tokens."""

    def elementwise(self, tokens: Sequence[int], *, width: int) -> dict[Point, Timed]:
        """`layernorm`, `gelu` and `residual` on rows of `width`, for each number of tokens."""

    def attention(self, *, grid: int, heads: int, head_dim: int) -> dict[Point, Timed]:
        """`attention` over the tokens of `grid` x `grid` patches and the class token."""

    def patch_embed(self, *, grid: int, patch_size: int, width: int) -> dict[Point, Timed]:
        """`patch_embed` of an RGB image of `grid` x `grid` patches."""

    def network(self, subnet: Subnet) -> Run:
        """A whole subnet with random weights, from an image to logits."""


def small_subnet(
    *,
    width: int = 4,
    hidden: int = 4,
    heads: int = 1,
    head_dim: int = 2,
    grid: int = 1,
    patch_size: int = 1,
    depth: int = 1,
) -> Subnet:
    """A subnet with these sizes, and as little as possible of everything else."""
    block = BlockChoice(
        num_heads=heads,
        mlp_ratio=hidden / width,
        operator="attention",
        qkv_ratio=1.0,
        proj_ratio=1.0,
        fc1_ratio=1.0,
        fc2_ratio=1.0,
    )
    return Subnet(
        image_size=grid * patch_size,
        patch_size=patch_size,
        in_chans=3,
        num_classes=2,
        embed_dim=width,
        head_dim=head_dim,
        blocks=(block,) * depth,
    )


#: the operators that each layer of a network is made of, by the layer's kind, with their numbers
LAYERS = {
    "patch_embed": {"patch_embed": 1, "call": 1},
    "qkv": {"linear_up": 1},
    "scores": {"attention": 1},
    "softmax": {},
    "mix": {},
    "proj": {"linear_down": 1},
    "fc1": {"linear_up": 1, "gelu": 1},
    "fc2": {"linear_down": 1},
    "head": {"linear_down": 1},
    "layernorm": {"layernorm": 1},
    "residual": {"residual": 1},
}
#: copies of an operator without weights that are run together
COPIES = 4


def linear_copies(tokens: int, inputs: int, rows: int) -> int:
    """How many copies of a product are run together, each with weights of its own.

    A network has a few dozen products, and finds little of their weights in the fast caches when it comes round again.
    So copies are to have about as many weights together, up to 4 million, unless that would take long.
    """
    weights = inputs * rows
    several = min(36, max(2, 2**22 // weights))
    return several if several * tokens * weights <= 1e9 else min(several, COPIES)
