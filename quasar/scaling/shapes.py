"""The shapes that a study of scaling chooses from: plain ViTs whose blocks are all alike.

Many shapes are an array (N, 6) of their `DIMENSIONS`, so that a hundred thousand of them are lowered and cost at once.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.cost import CostModel
from hwmodel.errors import UsageError
from supernet.lowering import lower_many
from supernet.space import SearchSpace
from supernet.subnet import BlockChoice, Subnet, SubnetArrays

#: the fields of a shape, in the order of the columns of an array of shapes
DIMENSIONS = ("depth", "embed_dim", "num_heads", "mlp_ratio", "image_size", "patch_size")
#: more shapes than these are not enumerated
MOST_SHAPES = 1_000_000
#: shapes that are lowered together
_CHUNK = 8192

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class VitShape:
    """A plain ViT; sizes in pixels and channels."""

    __pydantic_config__ = {"extra": "forbid"}

    depth: int
    embed_dim: int
    num_heads: int
    mlp_ratio: float
    image_size: int
    patch_size: int

    def __post_init__(self) -> None:
        for name in DIMENSIONS:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}")

    @staticmethod
    def of_row(row: FloatArray) -> VitShape:
        """The shape of a row (6,)."""
        values: dict[str, Any] = {name: round(value) for name, value in zip(DIMENSIONS, row.tolist(), strict=True)}
        return VitShape(**values | {"mlp_ratio": float(row[DIMENSIONS.index("mlp_ratio")])})

    @property
    def grid(self) -> int:
        """Patches along a side of the image: the resolution that a network computes at."""
        return self.image_size // self.patch_size

    def row(self) -> FloatArray:
        """The shape as a row (6,)."""
        return np.array([getattr(self, name) for name in DIMENSIONS], dtype=np.float64)

    def subnet(self, space: SearchSpace) -> Subnet:
        """The network of this shape, with all else as in `space`, which has one operator and one share of rows."""
        ratio = space.high_precision_ratio[0]
        block = BlockChoice(
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            operator=space.operator[0],
            qkv_ratio=ratio,
            proj_ratio=ratio,
            fc1_ratio=ratio,
            fc2_ratio=ratio,
        )
        return Subnet(
            image_size=self.image_size,
            patch_size=self.patch_size,
            in_chans=space.in_chans,
            num_classes=space.num_classes,
            embed_dim=self.embed_dim,
            head_dim=space.head_dim,
            blocks=(block,) * self.depth,
            low_bits=space.weight_bits[0],
            high_bits=space.weight_bits[1],
            act_bits=space.act_bits,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.depth} x {self.embed_dim}, {self.num_heads} heads, MLP {self.mlp_ratio:g}, "
            f"{self.image_size} px / {self.patch_size}"
        )


def enumerate_shapes(space: SearchSpace, patch_sizes: tuple[int, ...]) -> FloatArray:
    """All shapes that the choices of a space and these patch sizes make, (N, 6), in lexicographic order.

    Combinations whose patch size does not divide the image size are left out.

    Raises:
        UsageError: there are more than `MOST_SHAPES`.
    """
    tied = space.num_heads == "embed"
    heads: tuple[Any, ...] = (0,) if tied else tuple(space.num_heads)
    choices = (space.depth, space.embed_dim, heads, space.mlp_ratio, space.image_size, patch_sizes)
    count = int(np.prod([len(choice) for choice in choices], dtype=np.float64))
    if count > MOST_SHAPES:
        raise UsageError(f"space: its choices make {count:,} shapes, and {MOST_SHAPES:,} can be looked at; list fewer")
    shapes = np.array(list(itertools.product(*choices)), dtype=np.float64)
    if tied:
        shapes[:, DIMENSIONS.index("num_heads")] = shapes[:, DIMENSIONS.index("embed_dim")] // space.head_dim
    divides: NDArray[np.bool_] = shapes[:, 4] % shapes[:, 5] == 0
    return shapes[divides]


def shape_costs(shapes: FloatArray, space: SearchSpace, models: dict[int, CostModel] | None) -> FloatArray:
    """MACs and latency in ms of shapes (N, 6), as an array (N, 2).

    The latency is NaN where a shape does not fit the device, and everywhere without models.

    Args:
        models: the cost model by patch size.
    """
    costs = np.full((len(shapes), 2), np.nan)
    for patch in np.unique(shapes[:, 5]).astype(int).tolist():
        of_patch = np.flatnonzero(shapes[:, 5] == patch)
        for start in range(0, len(of_patch), _CHUNK):
            rows = of_patch[start : start + _CHUNK]
            population = lower_many(_arrays(shapes[rows], space, patch))
            costs[rows, 0] = population.macs()
            if models is not None:
                batch = models[patch].estimate_many(population)
                costs[rows, 1] = np.where(batch.fits, batch.latency_ms, np.nan)
    return costs


def _arrays(shapes: FloatArray, space: SearchSpace, patch_size: int) -> SubnetArrays:
    depth, embed_dim, num_heads, mlp_ratio, image_size, _ = shapes.T
    blocks = (len(shapes), int(depth.max()))
    return SubnetArrays(
        patch_size=patch_size,
        in_chans=space.in_chans,
        num_classes=space.num_classes,
        head_dim=space.head_dim,
        low_bits=space.weight_bits[0],
        high_bits=space.weight_bits[1],
        act_bits=space.act_bits,
        operators=space.operator,
        image_size=image_size.astype(np.int64),
        embed_dim=embed_dim.astype(np.int64),
        depth=depth.astype(np.int64),
        num_heads=np.broadcast_to(num_heads.astype(np.int64)[:, None], blocks),
        mlp_ratio=np.broadcast_to(mlp_ratio[:, None], blocks),
        operator=np.zeros(blocks, dtype=np.int64),
        high_precision_ratio=np.full((*blocks, 4), space.high_precision_ratio[0]),
    )


def space_filling(shapes: FloatArray, among: NDArray[np.int64], count: int, rng: np.random.Generator) -> list[int]:
    """`count` of the shapes with the numbers `among`, far from each other; all of them if there are no more.

    The first one is random, each further one the farthest from those before (Gonzalez 1985, "Clustering to minimize
    the maximum intercluster distance"). Distances are Euclidean over the logarithms of the dimensions, each scaled by
    its range over all `shapes` (N, 6).
    """
    if len(among) <= count:
        return [int(number) for number in among]
    logs = np.log(shapes)
    spread = np.ptp(logs, axis=0)
    points = logs[among] / np.where(spread > 0, spread, 1.0)
    chosen = [int(rng.integers(len(among)))]
    distance = np.full(len(among), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
        chosen.append(int(distance.argmax()))
    return sorted(int(among[index]) for index in chosen)
