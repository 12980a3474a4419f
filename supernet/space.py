"""The search space: the choices of every elastic dimension, and genotypes over them.

A genotype is a vector of choice indices of fixed length, in this order (B = largest depth):

    image_size, embed_dim, depth, in a space that pools also pooling, then for each of B blocks:
    num_heads, mlp_ratio, operator, and the share of 8-bit rows of qkv, proj, fc1 and fc2

Genes of blocks beyond the chosen depth are inactive; the canonical form sets them to 0, so that equal subnets have
equal genotypes. Populations of genotypes are int64 arrays of shape (N, G).
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import UsageError
from supernet.subnet import LINEARS, BlockChoice, Subnet, SubnetArrays, hidden_units, pooling_mistake

Genotypes = NDArray[np.int64]

GLOBAL_GENES = ("image_size", "embed_dim", "depth")
BLOCK_GENES = ("num_heads", "mlp_ratio", "operator", *(f"{linear}_ratio" for linear in LINEARS))
_ELASTIC = (
    "image_size",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "operator",
    "high_precision_ratio",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    """Choices of each elastic dimension (kept in ascending order) and what all subnets share.

    A choice of `pooling` is a list of the blocks, from 1 on, before which the grid of patches shrinks by 2 in each
    direction. Blocks that not all subnets have cannot be among them. The choice with the most tokens counts as largest.

    `num_heads: embed` ties the heads of each block to the width, `embed_dim / head_dim`, as in a plain ViT.
    Weight rows have `weight_bits[1]` bits for the first `high_precision_ratio` of a linear's rows and
    `weight_bits[0]` for the rest; the patch embedding and the head are wholly at `weight_bits[1]`.

    Raises:
        UsageError: an empty or repeated choice, a size that does not divide, a value out of range.
    """

    __pydantic_config__ = {"extra": "forbid"}

    num_classes: int
    in_chans: int
    patch_size: int
    head_dim: int
    image_size: tuple[int, ...]
    embed_dim: tuple[int, ...]
    depth: tuple[int, ...]
    num_heads: tuple[int, ...] | Literal["embed"]
    mlp_ratio: tuple[float, ...]
    high_precision_ratio: tuple[float, ...]
    operator: tuple[str, ...] = ("attention",)
    weight_bits: tuple[int, int] = (4, 8)
    act_bits: int = 8
    pooling: tuple[tuple[int, ...], ...] = ((),)

    def __post_init__(self) -> None:
        for name in _ELASTIC:
            self._check_choices(name)
        for name in ("num_classes", "in_chans", "patch_size", "head_dim"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be positive, not {getattr(self, name)}")
        for size in self.image_size:
            if size % self.patch_size:
                raise UsageError(f"image_size: patch_size {self.patch_size} does not divide {size}")
        if self.num_heads == "embed":
            for width in self.embed_dim:
                if width % self.head_dim:
                    raise UsageError(
                        f"embed_dim: {width} is not a multiple of head_dim {self.head_dim}, "
                        "which num_heads: embed needs; change either, or list num_heads"
                    )
        if not (math.isfinite(self.mlp_ratio[-1]) and hidden_units(self.mlp_ratio[0], self.embed_dim[0]) >= 1):
            raise UsageError(
                f"mlp_ratio: every choice must be finite and give at least one hidden unit at embed_dim "
                f"{self.embed_dim[0]}, not {list(self.mlp_ratio)}"
            )
        low, high = self.weight_bits
        if not 2 <= low <= high <= 8:
            raise UsageError(f"weight_bits: need 2 <= low <= high <= 8, not [{low}, {high}]")
        if self.act_bits != 8:
            raise UsageError(f"act_bits: only 8-bit activations are implemented, not {self.act_bits}")
        self._check_pooling()

    def _check_pooling(self) -> None:
        if not self.pooling:
            raise UsageError("pooling: the list of choices is empty; give at least one, [[]] for none")
        if len(set(self.pooling)) < len(self.pooling):
            raise UsageError(f"pooling: a choice is listed twice in {[list(choice) for choice in self.pooling]}")
        for choice in self.pooling:
            mistake = pooling_mistake(choice, depth=self.depth[0], grid=self.image_size[0] // self.patch_size)
            if mistake:
                raise UsageError(f"pooling: a choice {mistake}")

        def tokens(choice: tuple[int, ...]) -> float:
            return sum(4.0 ** -sum(place <= block for place in choice) for block in range(self.max_depth))

        object.__setattr__(self, "pooling", tuple(sorted(self.pooling, key=lambda choice: (tokens(choice), choice))))

    def _check_choices(self, name: str) -> None:
        choices = getattr(self, name)
        if choices == "embed":
            return
        if not choices:
            raise UsageError(f"{name}: the list of choices is empty; give at least one")
        if len(set(choices)) < len(choices):
            raise UsageError(f"{name}: a choice is listed twice in {list(choices)}")
        if name == "high_precision_ratio":
            if not all(0 <= value <= 1 for value in choices):
                raise UsageError(f"{name}: shares of rows must lie in [0, 1], not {list(choices)}")
        elif name == "operator":
            return  # listed in the user's order: the first is what inactive genes show
        elif not all(value > 0 for value in choices):
            raise UsageError(f"{name}: every choice must be positive, not {list(choices)}")
        # In ascending order index 0 is the smallest choice, and two spellings of a space are one space.
        object.__setattr__(self, name, tuple(sorted(choices)))

    @staticmethod
    def of(subnet: Subnet) -> SearchSpace:
        """The smallest space that has this subnet: it has others too where its blocks differ."""
        blocks = subnet.blocks
        return SearchSpace(
            num_classes=subnet.num_classes,
            in_chans=subnet.in_chans,
            patch_size=subnet.patch_size,
            head_dim=subnet.head_dim,
            image_size=(subnet.image_size,),
            embed_dim=(subnet.embed_dim,),
            depth=(subnet.depth,),
            num_heads=tuple({block.num_heads for block in blocks}),
            mlp_ratio=tuple({block.mlp_ratio for block in blocks}),
            high_precision_ratio=tuple({getattr(block, f"{linear}_ratio") for block in blocks for linear in LINEARS}),
            operator=tuple(dict.fromkeys(block.operator for block in blocks)),
            weight_bits=(subnet.low_bits, subnet.high_bits),
            act_bits=subnet.act_bits,
            pooling=(subnet.pooling,),
        )

    @property
    def global_genes(self) -> tuple[str, ...]:
        """The names of the genes that no block has, which come first."""
        return GLOBAL_GENES if self.pooling == ((),) else (*GLOBAL_GENES, "pooling")

    @property
    def max_depth(self) -> int:
        """Blocks of the deepest subnet."""
        return self.depth[-1]

    @property
    def max_heads(self) -> int:
        """Heads of the block with the most."""
        return self._heads(-1, self.embed_dim[-1])

    @property
    def gene_names(self) -> tuple[str, ...]:
        """A name for each gene: `depth`, `blocks.3.mlp_ratio`, …"""
        blocks = (f"blocks.{b}.{gene}" for b in range(self.max_depth) for gene in BLOCK_GENES)
        return (*self.global_genes, *blocks)

    @property
    def gene_sizes(self) -> NDArray[np.int64]:
        """Number of choices of each gene, shape (G,)."""
        ratios = len(self.high_precision_ratio)
        block = (self._head_choices, len(self.mlp_ratio), len(self.operator), ratios, ratios, ratios, ratios)
        shared = [len(getattr(self, name)) for name in self.global_genes]
        return np.array((*shared, *block * self.max_depth), dtype=np.int64)

    @property
    def gene_choices(self) -> tuple[tuple[int | float | str, ...], ...]:
        """What each gene chooses between, in the order of its indices; of heads that are tied to the width, "embed"."""
        heads = ("embed",) if self.num_heads == "embed" else self.num_heads
        block = (heads, self.mlp_ratio, self.operator, *[self.high_precision_ratio] * len(LINEARS))
        pooling = tuple("+".join(map(str, choice)) or "none" for choice in self.pooling)
        shared = (self.image_size, self.embed_dim, self.depth, pooling)[: len(self.global_genes)]
        return (*shared, *block * self.max_depth)

    @property
    def size(self) -> int:
        """Number of different subnets."""
        per_block = math.prod(self.gene_sizes[len(self.global_genes) :][: len(BLOCK_GENES)].tolist())
        encoders: int = sum(per_block**depth for depth in self.depth)
        return len(self.image_size) * len(self.embed_dim) * len(self.pooling) * encoders

    @property
    def digest(self) -> str:
        """Sixteen hex digits over all choices: equal for equal spaces."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """All fields; without `pooling` where there is none, as before there was any."""
        return without_defaults(asdict(self))

    @property
    def _head_choices(self) -> int:
        return 1 if self.num_heads == "embed" else len(self.num_heads)

    def canonical(self, genotypes: Genotypes) -> Genotypes:
        """The genotypes (N, G) with the genes of blocks beyond the depth set to 0."""
        return genotypes * _active_genes(self)[genotypes[:, 2]]

    def sample(self, rng: np.random.Generator, count: int) -> Genotypes:
        """`count` canonical genotypes, every gene drawn uniformly and independently, shape (count, G)."""
        return self.canonical(rng.integers(0, self.gene_sizes, size=(count, len(self.gene_sizes))))

    def mutate(self, genotypes: Genotypes, rng: np.random.Generator, *, probability: float) -> Genotypes:
        """Each gene redrawn uniformly with `probability`; canonical, shape (N, G)."""
        redrawn = rng.integers(0, self.gene_sizes, size=genotypes.shape)
        return self.canonical(np.where(rng.random(genotypes.shape) < probability, redrawn, genotypes))

    def crossover(self, first: Genotypes, second: Genotypes, rng: np.random.Generator) -> Genotypes:
        """Each gene from either parent with equal chance; canonical, shape (N, G)."""
        return self.canonical(np.where(rng.random(first.shape) < 0.5, first, second))

    def smallest(self) -> Subnet:
        """The subnet with the first choice of every dimension."""
        return self.decode(np.zeros(len(self.gene_sizes), dtype=np.int64))

    def largest(self, *, operator: int = 0) -> Subnet:
        """The subnet with the last choice of every dimension, and everywhere the operator of that index."""
        genotype = self.gene_sizes - 1
        genotype[len(self.global_genes) + BLOCK_GENES.index("operator") :: len(BLOCK_GENES)] = operator
        return self.decode(genotype)

    def decode(self, genotype: Genotypes) -> Subnet:
        """The subnet of one genotype, shape (G,)."""
        genes = genotype.tolist()
        embed_dim = self.embed_dim[genes[1]]
        known, blocks = _known_blocks(self), []
        first = len(self.global_genes)
        for start in range(first, first + self.depth[genes[2]] * len(BLOCK_GENES), len(BLOCK_GENES)):
            key = (embed_dim, *genes[start : start + len(BLOCK_GENES)])
            block = known.get(key)
            if block is None:
                known[key] = block = self._block(*key)
            blocks.append(block)
        return Subnet(
            image_size=self.image_size[genes[0]],
            patch_size=self.patch_size,
            in_chans=self.in_chans,
            num_classes=self.num_classes,
            embed_dim=embed_dim,
            head_dim=self.head_dim,
            blocks=tuple(blocks),
            low_bits=self.weight_bits[0],
            high_bits=self.weight_bits[1],
            act_bits=self.act_bits,
            pooling=self.pooling[genes[3]] if first > 3 else (),
        )

    def encode(self, subnet: Subnet) -> Genotypes:
        """The canonical genotype (G,) of a subnet; raises `UsageError` naming the dimension that does not fit."""
        for name in ("patch_size", "in_chans", "num_classes", "head_dim", "act_bits"):
            self._require(name, getattr(subnet, name), (getattr(self, name),))
        self._require("weight_bits", (subnet.low_bits, subnet.high_bits), (self.weight_bits,))
        genes = [
            self._require("image_size", subnet.image_size, self.image_size),
            self._require("embed_dim", subnet.embed_dim, self.embed_dim),
            self._require("depth", subnet.depth, self.depth),
            self._require("pooling", subnet.pooling, self.pooling),
        ][: len(self.global_genes)]
        heads = self.num_heads
        if heads == "embed":
            heads = (self._heads(0, subnet.embed_dim),)
        for b, block in enumerate(subnet.blocks):
            where = f"blocks[{b}]."
            genes += [
                self._require(where + "num_heads", block.num_heads, heads),
                self._require(where + "mlp_ratio", block.mlp_ratio, self.mlp_ratio),
                self._require(where + "operator", block.operator, self.operator),
            ]
            for linear, ratio in zip(LINEARS, block.high_precision_ratios, strict=True):
                genes.append(self._require(f"{where}{linear}_ratio", ratio, self.high_precision_ratio))
        genes += [0] * (len(self.gene_sizes) - len(genes))
        return np.array(genes, dtype=np.int64)

    def arrays(self, genotypes: Genotypes) -> SubnetArrays:
        """The subnets of canonical genotypes (N, G) in array form, for a cost model."""
        embed_dim = np.array(self.embed_dim)[genotypes[:, 1]]
        first = len(self.global_genes)
        genes = genotypes[:, first:].reshape(len(genotypes), self.max_depth, len(BLOCK_GENES))
        pooled = None
        if first > 3:
            pooled = np.array([np.isin(np.arange(self.max_depth), choice) for choice in self.pooling])[genotypes[:, 3]]
        if self.num_heads == "embed":
            num_heads = np.broadcast_to(embed_dim[:, None] // self.head_dim, genes.shape[:2])
        else:
            num_heads = np.array(self.num_heads)[genes[:, :, 0]]
        return SubnetArrays(
            patch_size=self.patch_size,
            in_chans=self.in_chans,
            num_classes=self.num_classes,
            head_dim=self.head_dim,
            low_bits=self.weight_bits[0],
            high_bits=self.weight_bits[1],
            act_bits=self.act_bits,
            operators=self.operator,
            image_size=np.array(self.image_size)[genotypes[:, 0]],
            embed_dim=embed_dim,
            depth=np.array(self.depth)[genotypes[:, 2]],
            num_heads=num_heads,
            mlp_ratio=np.array(self.mlp_ratio, dtype=np.float64)[genes[:, :, 1]],
            operator=genes[:, :, 2],
            high_precision_ratio=np.array(self.high_precision_ratio, dtype=np.float64)[genes[:, :, 3:]],
            pooled=pooled,
        )

    def _block(self, embed_dim: int, heads: int, mlp: int, operator: int, *ratios: int) -> BlockChoice:
        """The block with these choices, of a subnet of that width."""
        qkv, proj, fc1, fc2 = (self.high_precision_ratio[i] for i in ratios)
        return BlockChoice(
            num_heads=self._heads(heads, embed_dim),
            mlp_ratio=self.mlp_ratio[mlp],
            operator=self.operator[operator],
            qkv_ratio=qkv,
            proj_ratio=proj,
            fc1_ratio=fc1,
            fc2_ratio=fc2,
        )

    def _heads(self, index: int, embed_dim: int) -> int:
        if self.num_heads == "embed":
            return embed_dim // self.head_dim
        return int(self.num_heads[index])

    @staticmethod
    def _require(name: str, value: object, choices: tuple[object, ...]) -> int:
        if value not in choices:
            raise UsageError(f"subnet is outside the space: {name} is {value}, the space has {list(choices)}")
        return choices.index(value)


def without_defaults(data: dict[str, Any]) -> dict[str, Any]:
    """The fields of a space, without `pooling` if there is none: files and digests are as before there was any."""
    return {key: value for key, value in data.items() if key != "pooling" or [list(v) for v in value] != [[]]}


@lru_cache(maxsize=16)
def _active_genes(space: SearchSpace) -> Genotypes:
    """1 for the genes that matter at each choice of depth, else 0, shape (depths, G)."""
    block_of_gene = np.repeat(np.arange(space.max_depth), len(BLOCK_GENES))
    active = np.ones((len(space.depth), len(space.gene_sizes)), dtype=np.int64)
    active[:, len(space.global_genes) :] = block_of_gene < np.array(space.depth)[:, None]
    return active


@lru_cache(maxsize=16)
def _known_blocks(space: SearchSpace) -> dict[tuple[int, ...], BlockChoice]:
    """The blocks of a space that have been asked for, by width and genes: making one takes longer than finding it."""
    return {}
