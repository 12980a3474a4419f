"""Families of networks that a strategy can scale: plain ViTs and pooling ViTs (PiT).

A strategy knows how many times as deep, as wide and as fine a network should be; a family knows what that makes of its
base, with whole blocks, heads and pixels.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from hwmodel.workload import Workload
from quasar.scaling.shapes import VitShape
from supernet.lowering import lower
from supernet.pit_shape import PitShape, lower_pit
from supernet.space import SearchSpace

if TYPE_CHECKING:
    from torch import nn

#: channels are whole multiples of this where heads are not tied to the width
_WIDTH_STEP = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Multipliers:
    """How many times as deep, wide and fine (patches along a side) as the base."""

    depth: float = 1.0
    width: float = 1.0
    resolution: float = 1.0


class Shape(Protocol):
    """A network of a family, as a value that can be compared."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        ...


S = TypeVar("S", bound=Shape)


class Family(Protocol[S]):
    """Networks of one kind that grow from a base: shapes from multipliers, what they cost, and how they are built."""

    @property
    def base(self) -> S:
        """What multipliers of 1 give."""
        ...

    def scaled(self, by: Multipliers) -> S:
        """The nearest shape that the family has."""
        ...

    def lower(self, shape: S) -> Workload:
        """What the hardware executes for one image."""
        ...

    def build(self, shape: S) -> nn.Module:
        """The network with random weights."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class VitFamily:
    """Plain ViTs; patch size, MLP ratio and, unless `space` ties them, heads for each channel are those of the base."""

    base: VitShape
    space: SearchSpace

    def scaled(self, by: Multipliers) -> VitShape:
        """See `Family`; the width goes in steps of a head where `space` ties heads to it, else of 8 channels."""
        base, tied = self.base, self.space.num_heads == "embed"
        step = self.space.head_dim if tied else _WIDTH_STEP
        width = step * max(1, round(base.embed_dim * by.width / step))
        heads = width // step if tied else max(1, round(base.num_heads * width / base.embed_dim))
        return dataclasses.replace(
            base,
            depth=max(1, round(base.depth * by.depth)),
            embed_dim=width,
            num_heads=heads,
            image_size=base.patch_size * max(1, round(base.grid * by.resolution)),
        )

    def lower(self, shape: VitShape) -> Workload:
        """See `Family`."""
        return lower(shape.subnet(self.space))

    def build(self, shape: VitShape) -> nn.Module:
        """See `Family`; as `supernet.alone` trains it."""
        from supernet.alone import supernet_of_one

        return supernet_of_one(shape.subnet(self.space), layer_scale=None, seed=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class PitFamily:
    """Pooling ViTs; see `PitShape.scaled` for how they grow."""

    base: PitShape
    high_precision_ratio: float = 1.0

    def scaled(self, by: Multipliers) -> PitShape:
        """See `Family`; the image grows in steps of a stride."""
        base = self.base
        grid = max(1, round(base.grids[0] * by.resolution))
        return base.scaled(depth=by.depth, width=by.width, image_size=base.patch_size + (grid - 1) * base.stride)

    def lower(self, shape: PitShape) -> Workload:
        """See `Family`."""
        return lower_pit(shape, high_precision_ratio=self.high_precision_ratio)

    def build(self, shape: PitShape) -> nn.Module:
        """See `Family`."""
        from supernet.pit import build_pit

        return build_pit(shape, high_precision_ratio=self.high_precision_ratio)
