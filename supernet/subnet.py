"""One architecture of a search space with the precision of its rows, as a value: hashable, comparable, storable.

A subnet holds all that the hardware and an extracted network need to know, so a file with one is enough for
`quasar hw estimate`. It is plain data: no weights, no reference to the space that it came from, no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from hwmodel.errors import DamagedInputError, UsageError
from supernet.validation import read_yaml, validate

_quoted = json.encoder.encode_basestring_ascii

#: the four linears of a block whose rows have a precision each
LINEARS = ("qkv", "proj", "fc1", "fc2")


def high_precision_rows(ratio: float | NDArray[np.float64], rows: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows at the higher precision, `ceil(ratio * rows)`, element by element.

    The small slack keeps products such as 0.1 * 30 = 3.0000000000000004 from gaining a row.
    """
    return np.ceil(np.asarray(ratio) * rows - 1e-9).astype(np.int64)


def hidden_units(mlp_ratio: float | NDArray[np.float64], embed_dim: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Hidden units of the MLP, `mlp_ratio * embed_dim` to the nearest integer, element by element."""
    return np.rint(np.asarray(mlp_ratio) * embed_dim).astype(np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockChoice:
    """One encoder block: heads, MLP width, token-mixing operator, and the share of 8-bit rows of each linear."""

    __pydantic_config__ = {"extra": "forbid"}

    num_heads: int
    mlp_ratio: float
    operator: str
    qkv_ratio: float
    proj_ratio: float
    fc1_ratio: float
    fc2_ratio: float

    @property
    def high_precision_ratios(self) -> tuple[float, float, float, float]:
        """The shares in the order of `LINEARS`."""
        return (self.qkv_ratio, self.proj_ratio, self.fc1_ratio, self.fc2_ratio)


def pooling_mistake(pooling: tuple[int, ...], *, depth: int, grid: int) -> str | None:
    """What is wrong with the places of pooling in a network of so many blocks and of `grid` x `grid` patches."""
    if list(pooling) != sorted(set(pooling)):
        return f"must name blocks in ascending order, each once, not {list(pooling)}"
    if pooling and depth < 2:
        return f"needs at least two blocks, and a network has one, not {list(pooling)}"
    if pooling and not (pooling[0] >= 1 and pooling[-1] < depth):
        return f"must name blocks from 1 to {depth - 1}, as a network has {depth}, not {list(pooling)}"
    if pooling and grid <= 2 ** (len(pooling) - 1):
        return f"{list(pooling)} would pool a grid of one patch: there are {grid} along a side at first"
    return None


# A space has few different blocks, and a search asks the same of them for thousands of subnets.
@lru_cache(maxsize=4096)
def _mistake(block: BlockChoice, embed_dim: int) -> str | None:
    """What is wrong with a block of a subnet of this width."""
    if block.num_heads < 1:
        return f"num_heads must be positive, not {block.num_heads}"
    # to the nearest integer, half to even: the same as `hidden_units` >= 1, which is slow for a single number
    if not (math.isfinite(block.mlp_ratio) and block.mlp_ratio * embed_dim > 0.5):
        return (
            f"mlp_ratio must be finite and give embed_dim {embed_dim} at least one hidden unit, not {block.mlp_ratio}"
        )
    for linear, ratio in zip(LINEARS, block.high_precision_ratios, strict=True):
        if not 0 <= ratio <= 1:
            return f"{linear}_ratio must lie in [0, 1], not {ratio}"
    return None


@lru_cache(maxsize=4096)
def _canonical(block: BlockChoice) -> str:
    """The block in the canonical form of a subnet; 4 and 4.0 are the same choice, and give the same."""
    return (
        f'{{"fc1_ratio":{float(block.fc1_ratio)!r},"fc2_ratio":{float(block.fc2_ratio)!r},'
        f'"mlp_ratio":{float(block.mlp_ratio)!r},"num_heads":{block.num_heads},"operator":{_quoted(block.operator)},'
        f'"proj_ratio":{float(block.proj_ratio)!r},"qkv_ratio":{float(block.qkv_ratio)!r}}}'
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Subnet:
    """A Vision Transformer of `len(blocks)` blocks; sizes in pixels (`image_size`, `patch_size`) and channels.

    `pooling` has the numbers of the blocks, from 1 on, before which the grid of patches shrinks by 2 in each direction.
    """

    __pydantic_config__ = {"extra": "forbid"}

    image_size: int
    patch_size: int
    in_chans: int
    num_classes: int
    embed_dim: int
    head_dim: int
    blocks: tuple[BlockChoice, ...]
    low_bits: int = 4
    high_bits: int = 8
    act_bits: int = 8
    pooling: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "in_chans", "num_classes", "embed_dim", "head_dim"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be positive, not {getattr(self, name)}")
        if self.image_size % self.patch_size:
            raise UsageError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}")
        if not self.blocks:
            raise UsageError("blocks is empty; give at least one block")
        if not 2 <= self.low_bits <= self.high_bits <= 8:
            raise UsageError(f"need 2 <= low_bits <= high_bits <= 8, not {self.low_bits}, {self.high_bits}")
        if self.pooling:
            mistake = pooling_mistake(self.pooling, depth=len(self.blocks), grid=self.image_size // self.patch_size)
            if mistake:
                raise UsageError(f"pooling {mistake}")
        for index, block in enumerate(self.blocks):
            mistake = _mistake(block, self.embed_dim)
            if mistake:
                raise UsageError(f"blocks[{index}]: {mistake}")

    @property
    def depth(self) -> int:
        """Number of encoder blocks."""
        return len(self.blocks)

    @property
    def tokens(self) -> int:
        """Tokens of one image before the first block: its patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def grids(self) -> tuple[int, ...]:
        """Patches along a side of the grid in each block."""
        grid = self.image_size // self.patch_size
        return tuple(-(-grid // 2 ** sum(place <= block for place in self.pooling)) for block in range(self.depth))

    @property
    def digest(self) -> str:
        """Sixteen hex digits over the canonical form: equal for equal subnets, whatever space they come from."""
        # `json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))`, put together many times as fast
        blocks = ",".join(map(_canonical, self.blocks))
        canonical = (
            f'{{"act_bits":{self.act_bits},"blocks":[{blocks}],"embed_dim":{self.embed_dim},'
            f'"head_dim":{self.head_dim},"high_bits":{self.high_bits},"image_size":{self.image_size},'
            f'"in_chans":{self.in_chans},"low_bits":{self.low_bits},"num_classes":{self.num_classes},'
            f'"patch_size":{self.patch_size}'
        )
        if self.pooling:
            canonical += f',"pooling":{json.dumps(self.pooling, separators=(",", ":"))}'
        canonical += "}"
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for YAML or JSON; `from_dict` gives an equal subnet back."""
        data = asdict(self)
        data["blocks"] = [asdict(block) for block in self.blocks]
        if self.pooling:
            data["pooling"] = list(self.pooling)
        else:
            del data["pooling"]  # files are as they were before there was any
        for block in data["blocks"]:
            for key in ("mlp_ratio", *(f"{linear}_ratio" for linear in LINEARS)):
                block[key] = float(block[key])  # 4 and 4.0 are the same choice and must hash alike
        return data

    @staticmethod
    def from_dict(data: object, *, source: str = "subnet") -> Subnet:
        """The subnet that `data` describes; `source` names the file in errors.

        Raises:
            DamagedInputError: a key is missing, unknown or of the wrong type, or values contradict each other.
        """
        return validate(Subnet, data, source=source, error=DamagedInputError)

    def save(self, path: Path) -> None:
        """Writes the subnet as YAML."""
        path.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Subnet:
        """Reads a subnet from YAML or JSON; raises `UsageError` or `DamagedInputError` naming the file."""
        return Subnet.from_dict(read_yaml(path, what="subnet file"), source=str(path))


@dataclass(frozen=True, kw_only=True, slots=True)
class SubnetArrays:
    """N subnets that share patch size, channels, classes and bits, in array form (B = largest depth).

    `operator` holds indices into `operators`. Entries of blocks beyond a subnet's depth have no meaning. `pooled` is
    true where the grid is pooled before a block; None if it is nowhere.
    """

    patch_size: int
    in_chans: int
    num_classes: int
    head_dim: int
    low_bits: int
    high_bits: int
    act_bits: int
    operators: tuple[str, ...]
    image_size: NDArray[np.int64]  # (N,)
    embed_dim: NDArray[np.int64]  # (N,)
    depth: NDArray[np.int64]  # (N,)
    num_heads: NDArray[np.int64]  # (N, B)
    mlp_ratio: NDArray[np.float64]  # (N, B)
    operator: NDArray[np.int64]  # (N, B)
    high_precision_ratio: NDArray[np.float64]  # (N, B, 4), in the order of LINEARS
    pooled: NDArray[np.bool_] | None = None  # (N, B)

    @staticmethod
    def of(subnet: Subnet) -> SubnetArrays:
        """The arrays of one subnet (N = 1)."""
        blocks = subnet.blocks
        operators = tuple(sorted({block.operator for block in blocks}))
        return SubnetArrays(
            patch_size=subnet.patch_size,
            in_chans=subnet.in_chans,
            num_classes=subnet.num_classes,
            head_dim=subnet.head_dim,
            low_bits=subnet.low_bits,
            high_bits=subnet.high_bits,
            act_bits=subnet.act_bits,
            operators=operators,
            image_size=np.array([subnet.image_size]),
            embed_dim=np.array([subnet.embed_dim]),
            depth=np.array([subnet.depth]),
            num_heads=np.array([[block.num_heads for block in blocks]]),
            mlp_ratio=np.array([[block.mlp_ratio for block in blocks]], dtype=np.float64),
            operator=np.array([[operators.index(block.operator) for block in blocks]]),
            high_precision_ratio=np.array([[block.high_precision_ratios for block in blocks]], dtype=np.float64),
            pooled=np.isin(np.arange(subnet.depth), subnet.pooling)[None] if subnet.pooling else None,
        )
