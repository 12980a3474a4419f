"""Pooling-based Vision Transformers (PiT) as shapes, and what the hardware executes for them.

PiT (Heo et al. 2021, "Rethinking Spatial Dimensions of Vision Transformers", arXiv:2103.16302) has stages of ordinary
encoder blocks. Before each stage but the first, the grid of g x g tokens is pooled to ceil(g / 2) x ceil(g / 2), and
the channels grow. The class token passes a linear of its own there.

Two ways of pooling:

* `merge`: a LayerNorm, then one linear over the 2 x 2 tokens that become one: 4 * D inputs, as Swin's patch merging
  (Liu et al. 2021, arXiv:2103.14030) has it, but with the norm before the tokens are put together. An odd grid is
  padded with tokens of 0. It is a matrix product like all others, and its inputs are the 8-bit codes of a LayerNorm, so
  our engine and vector unit do it as they are.
* `depthwise`: a 3 x 3 convolution with stride 2 that makes out/in channels of each channel, as in the paper and in
  timm. It has 1/50 of the MACs and far worse use of the array: a matrix product of 9 inputs for each channel. It reads
  the 16-bit residual stream itself, which no unit of ours turns into 8-bit codes without a LayerNorm; one pass of the
  stream through the vector unit is charged for it.

Torch-free; `supernet.pit` has the network.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hwmodel.errors import DamagedInputError, UsageError
from hwmodel.workload import IntArray, Workload
from supernet.lowering import RESIDUAL_BYTES, Lowered, PartTable, mixer_halves, mlp_halves, residual_bytes
from supernet.operators.registry import LayerColumns, MixerShapes
from supernet.subnet import LINEARS, BlockChoice, Subnet, hidden_units
from supernet.validation import read_yaml, validate


@dataclass(frozen=True, kw_only=True, slots=True)
class PitShape:
    """A pooling ViT of len(widths) stages; sizes in pixels (`image_size`, `patch_size`, `stride`) and channels.

    Args:
        stride: pixels between patches, which overlap if it is below `patch_size`.
        widths, depths, heads: channels, blocks and attention heads of each stage.
        pooling: how tokens are pooled between stages; see the module's docstring.
        class_tokens: 1; 2 with the token for distillation, which has a head of its own.
        operator: of all blocks.

    Raises:
        UsageError: a size that does not divide, lists of different lengths, a value out of range.
    """

    __pydantic_config__ = {"extra": "forbid"}

    image_size: int
    patch_size: int
    stride: int
    in_chans: int
    num_classes: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    mlp_ratio: float = 4.0
    pooling: Literal["merge", "depthwise"] = "merge"
    class_tokens: int = 1
    operator: str = "attention"

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "stride", "in_chans", "num_classes"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be positive, not {getattr(self, name)}")
        if self.stride > self.patch_size or self.patch_size > self.image_size:
            raise UsageError(
                f"need stride <= patch_size <= image_size, not {self.stride}, {self.patch_size}, {self.image_size}"
            )
        if not len(self.widths) == len(self.depths) == len(self.heads) > 0:
            raise UsageError(
                "widths, depths and heads need one number for each stage, not "
                f"{len(self.widths)}, {len(self.depths)} and {len(self.heads)}"
            )
        for width, depth, heads in zip(self.widths, self.depths, self.heads, strict=True):
            if min(width, depth, heads) < 1:
                raise UsageError(f"a stage needs positive width, depth and heads, not {width}, {depth}, {heads}")
            if width % heads:
                raise UsageError(f"widths: {heads} heads do not divide {width} channels")
        if self.class_tokens not in (1, 2):
            raise UsageError(f"class_tokens must be 1 or 2, not {self.class_tokens}")
        for before, after in zip(self.widths, self.widths[1:], strict=False):
            if self.pooling == "depthwise" and after % before:
                raise UsageError(f"widths: pooling depthwise needs {after} to be a multiple of {before}; or merge")

    @property
    def grids(self) -> tuple[int, ...]:
        """Tokens along a side of the grid in each stage."""
        grids = [(self.image_size - self.patch_size) // self.stride + 1]
        for _ in self.depths[1:]:
            grids.append(-(-grids[-1] // 2))
        return tuple(grids)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of each stage, class tokens included."""
        return tuple(grid**2 + self.class_tokens for grid in self.grids)

    @property
    def depth(self) -> int:
        """Encoder blocks of all stages."""
        return sum(self.depths)

    @property
    def digest(self) -> str:
        """Sixteen hex digits over all fields: equal for equal shapes."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def stages(self, *, high_precision_ratio: float, weight_bits: tuple[int, int] = (4, 8)) -> tuple[Subnet, ...]:
        """Each stage as the subnet whose blocks it has, over a grid of tokens instead of pixels.

        Args:
            high_precision_ratio: share of high-precision rows of the four linears of all blocks.
            weight_bits: of the other rows, and of those.
        """
        shares = {f"{linear}_ratio": float(high_precision_ratio) for linear in LINEARS}
        return tuple(
            Subnet(
                image_size=grid,
                patch_size=1,
                in_chans=self.in_chans,
                num_classes=self.num_classes,
                embed_dim=width,
                head_dim=width // heads,
                blocks=(BlockChoice(num_heads=heads, mlp_ratio=self.mlp_ratio, operator=self.operator, **shares),)
                * depth,
                low_bits=weight_bits[0],
                high_bits=weight_bits[1],
            )
            for grid, width, depth, heads in zip(self.grids, self.widths, self.depths, self.heads, strict=True)
        )

    def scaled(self, *, depth: float = 1.0, width: float = 1.0, image_size: int | None = None) -> PitShape:
        """The shape with about `depth` times the blocks, `width` times the channels, and images of another size.

        Blocks: `depth` times all of them to the nearest whole number, shared among the stages in proportion by largest
        remainders, at least one each. Channels: those of a head grow, to the nearest multiple of 8 and by the same
        factor in all stages that had equal heads; the number of heads stays, and so do the ratios between widths.
        """
        head_dims = [max(8, 8 * round(w / h * width / 8)) if width != 1.0 else w // h for w, h in self._widths_heads()]
        return dataclasses.replace(
            self,
            depths=_shared(self.depths, max(len(self.depths), round(depth * self.depth))),
            widths=tuple(size * heads for size, heads in zip(head_dims, self.heads, strict=True)),
            image_size=self.image_size if image_size is None else image_size,
        )

    def _widths_heads(self) -> list[tuple[int, int]]:
        return list(zip(self.widths, self.heads, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for YAML or JSON; `from_dict` gives an equal shape back."""
        data = dataclasses.asdict(self)
        data |= {name: list(data[name]) for name in ("widths", "depths", "heads")}
        return data | {"mlp_ratio": float(self.mlp_ratio)}

    @staticmethod
    def from_dict(data: object, *, source: str = "shape") -> PitShape:
        """The shape that `data` describes; raises `DamagedInputError` naming `source`."""
        return validate(PitShape, data, source=source, error=DamagedInputError)

    @staticmethod
    def load(path: Path) -> PitShape:
        """Reads a shape from YAML or JSON; raises `UsageError` or `DamagedInputError` naming the file."""
        return PitShape.from_dict(read_yaml(path, what="shape file"), source=str(path))


def _shared(depths: tuple[int, ...], total: int) -> tuple[int, ...]:
    """`total` blocks in the proportions of `depths`, by largest remainders, at least one for each stage."""
    exact = np.array(depths) * total / sum(depths)
    shared = np.maximum(1, np.floor(exact)).astype(np.int64)
    while shared.sum() != total:
        step = 1 if shared.sum() < total else -1
        shared[np.argmax(np.where((shared > 1) | (step > 0), step * (exact - shared), -np.inf))] += step
    return tuple(shared.tolist())


def lower_pit(
    shape: PitShape, *, high_precision_ratio: float = 1.0, weight_bits: tuple[int, int] = (4, 8), act_bits: int = 8
) -> Workload:
    """The workload of a pooling ViT for one image; embedding, pooling and heads are wholly at high precision.

    Args:
        high_precision_ratio: share of high-precision rows of the four linears of all blocks.
    """
    act_bytes = -(-act_bits // 8)
    table = PartTable()
    table.add(*_stem(shape, act_bytes))
    parts, slots, block = [0], [""], 0
    for index, stage in enumerate(shape.stages(high_precision_ratio=high_precision_ratio, weight_bits=weight_bits)):
        if index:
            parts.append(table.parts)
            slots.append(str(index))
            table.add(*_pool(shape, index, act_bytes))
        halves = (table.parts, table.parts + 1)
        tokens, width = np.array([shape.tokens[index]]), np.array([stage.embed_dim])
        ratios = np.array([stage.blocks[0].high_precision_ratios])
        mixer = MixerShapes(
            name="blocks.{}",
            tokens=tokens,
            embed_dim=width,
            num_heads=np.array([stage.blocks[0].num_heads]),
            head_dim=stage.head_dim,
            qkv_ratio=ratios[:, 0],
            proj_ratio=ratios[:, 1],
        )
        table.add(*mixer_halves(shape.operator, mixer, act_bytes=act_bytes))
        hidden = hidden_units(shape.mlp_ratio, width)
        table.add(*mlp_halves(tokens=tokens, width=width, hidden=hidden, ratios=ratios[:, 2:], act_bytes=act_bytes))
        parts += halves * stage.depth
        slots += [str(block + b) for b in range(stage.depth) for _ in halves]
        block += stage.depth
    parts.append(table.parts)
    slots.append("")
    table.add(*_head(shape))
    population = table.population(
        np.array([parts]), slots=tuple(slots), high_bits=weight_bits[1], low_bits=weight_bits[0], act_bits=act_bits
    )
    return population.workload(0, name=shape.digest)


def _one(value: int) -> IntArray:
    return np.array([value], dtype=np.int64)


def _stem(shape: PitShape, act_bytes: int) -> Lowered:
    """The patch embedding, to which positions are added; the class tokens have none.

    Overlapping patches are laid out one after another, so pixels are in the buffer as often as patches have them.
    """
    patches, width = shape.grids[0] ** 2, shape.widths[0]
    inputs = shape.in_chans * shape.patch_size**2
    layers = LayerColumns()
    _product(layers, "patch_embed", "patch_embed", tokens=patches, inputs=inputs, rows=width)
    layers.vector("pos_embed", "residual", tokens=_one(patches), width=_one(width), count=_one(1))
    return layers, _one(patches * inputs * act_bytes) + residual_bytes(_one(shape.tokens[0]), _one(width))


def _pool(shape: PitShape, stage: int, act_bytes: int) -> Lowered:
    """The pooling before stage `stage`, and the linear that widens the class tokens there."""
    before, after = shape.widths[stage - 1], shape.widths[stage]
    tokens, pooled = shape.tokens[stage - 1], shape.grids[stage] ** 2
    layers = LayerColumns()
    if shape.pooling == "merge":
        layers.vector("pools.{}.norm", "layernorm", tokens=_one(tokens), width=_one(before), count=_one(1))
        _product(layers, "pools.{}.merge", "merge", tokens=pooled, inputs=4 * before, rows=after)
    else:
        layers.vector("pools.{}.codes", "residual", tokens=_one(tokens), width=_one(before), count=_one(1))
        rows = after // before
        _product(layers, "pools.{}.conv", "depthwise", tokens=pooled, inputs=9, rows=rows, count=before)
    _product(layers, "pools.{}.class_token", "merge", tokens=shape.class_tokens, inputs=before, rows=after)
    # 8-bit codes of the stream beside its 16-bit successor, when the stream itself has gone
    window = 4 if shape.pooling == "merge" else 9
    codes = (pooled * window + shape.class_tokens) * before * act_bytes
    return layers, _one(
        max(tokens * before * (RESIDUAL_BYTES + act_bytes), codes + shape.tokens[stage] * after * RESIDUAL_BYTES)
    )


def _head(shape: PitShape) -> Lowered:
    """The last norm, of the class tokens alone, and a classifier for each of them."""
    width = shape.widths[-1]
    layers = LayerColumns()
    layers.vector("norm", "layernorm", tokens=_one(shape.class_tokens), width=_one(width), count=_one(1))
    _product(layers, "head", "head", tokens=1, inputs=width, rows=shape.num_classes, count=shape.class_tokens)
    return layers, residual_bytes(_one(shape.tokens[-1]), _one(width))


def _product(
    layers: LayerColumns, name: str, kind: str, *, tokens: int, inputs: int, rows: int, count: int = 1
) -> None:
    """Adds a product with all its rows at high precision."""
    layers.gemm(
        name,
        kind,
        tokens=_one(tokens),
        inputs=_one(inputs),
        rows_high=_one(rows),
        rows_low=_one(0),
        count=_one(count),
    )
