"""All parts that the subnets of a space are put together from, lowered once: stems, block halves and heads.

A block's mixer half depends only on the genes of that half and on image size and width (together: the *size* of a
subnet), its MLP half likewise; see `supernet.lowering`. So a space of 1e27 subnets has a few hundred different parts. A
genotype becomes a row of part numbers by looking up one number for each half, and figures that add up over layers, such
as cycles, are sums of one number for each part. Their extremes over the whole space follow without enumeration: a
subnet of depth d that is smallest consists of d times the smallest halves.

In a space that pools, the halves of a block also depend on how often the grid has been pooled before. As a size then
counts a combination of image size, width and pooling, and it has the halves of each of its first blocks: all up to the
smallest depth, of which the last stands for those behind it, too. What pools is a part of its own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.workload import IntArray, Population
from supernet.lowering import lower_many
from supernet.space import BLOCK_GENES, GLOBAL_GENES, Genotypes, SearchSpace

MIXER_GENES = ("num_heads", "operator", "qkv_ratio", "proj_ratio")
MLP_GENES = ("mlp_ratio", "fc1_ratio", "fc2_ratio")


@dataclass(frozen=True, kw_only=True, slots=True)
class SpaceParts:
    """The parts of a space as a population, and which of them a genotype consists of.

    The sizes Z are the combinations of image size, width and pooling, in the order of `itertools.product`;
    `mixers[z, k, i]` is the part of block k for the i-th combination of `MIXER_GENES` in the order of `np.ndindex`,
    `mlps` likewise, and `pools[z, k]` what pools before it, 0 for nothing. K is 1 in a space without pooling. What the
    networks of `population` are is of no interest.
    """

    space: SearchSpace
    population: Population
    stems: IntArray  # (Z,)
    heads: IntArray  # (Z,)
    mixers: IntArray  # (Z, K, V)
    mlps: IntArray  # (Z, K, W)
    pools: IntArray  # (Z, K)
    weights: IntArray  # (7, 2): what the genes of a block count for in the numbers of its two halves

    @staticmethod
    def of(space: SearchSpace) -> SpaceParts:
        """The parts of `space`; worked out once for each."""
        return _parts(space)

    def numbers(self, genotypes: Genotypes) -> IntArray:
        """The parts of canonical genotypes (N, G), shape (N, S); empty slots are part 0."""
        space, count, slots = self.space, len(genotypes), self._slots
        blocks = genotypes[:, self._first :].reshape(count, space.max_depth, len(BLOCK_GENES))
        number = blocks @ self.weights
        size = genotypes[:, 0] * len(space.embed_dim) + genotypes[:, 1]
        places = self.pools.shape[1]
        if slots > 2:
            size = size * len(space.pooling) + genotypes[:, 3]
        block = size[:, None] * places + np.minimum(np.arange(space.max_depth if slots > 2 else 1), places - 1)
        empty = np.arange(space.max_depth) >= np.array(space.depth)[genotypes[:, 2]][:, None]
        parts = np.zeros((count, 2 + slots * space.max_depth), dtype=np.int64)
        parts[:, 0] = self.stems[size]
        if slots > 2:
            parts[:, 1 : 1 + slots * places : slots] = self.pools[size]
        for half, table in enumerate((self.mixers, self.mlps)):
            halves = table.take(number[..., half] + block * table.shape[2])
            halves[empty] = 0
            parts[:, slots - 1 + half : -1 : slots] = halves
        parts[:, -1] = self.heads[size]
        return parts

    @property
    def _first(self) -> int:
        """The place of the first gene of a block."""
        return len(self.space.global_genes)

    @property
    def _slots(self) -> int:
        """Slots of a block: its halves, and in a space that pools one before them."""
        return 2 if self._first == len(GLOBAL_GENES) else 3

    def repeats(self, depth: int) -> IntArray:
        """How many blocks of a subnet of that depth have the halves of each of the K blocks, (K,)."""
        places = self.pools.shape[1]
        return np.array([1] * (places - 1) + [depth - places + 1])

    def of_genotypes(self, genotypes: Genotypes) -> Population:
        """The population of canonical genotypes (N, G), with the parts of the whole space in its table."""
        slots = ("", *(str(b) for b in range(self.space.max_depth) for _ in range(self._slots)), "")
        return dataclasses.replace(self.population, parts=self.numbers(genotypes), slots=slots)

    @property
    def each(self) -> IntArray:
        """Networks of a single part, for figures of parts: (U, 1)."""
        return np.arange(len(self.population.part_activation_bytes))[:, None]

    def extremes(self, figures: NDArray[Any], *, most_bytes: int | None = None) -> tuple[Genotypes, Genotypes]:
        """The genotypes that are smallest and largest in figures that add up over layers.

        Args:
            figures: of each part, K of them: (K, U).
            most_bytes: only subnets with at most so many bytes of activations, of which there is at least one.

        Returns:
            Two arrays (K, G).
        """
        if most_bytes is not None:
            over = self.population.part_activation_bytes > most_bytes
            low, high = np.where(over, np.inf, figures), np.where(over, -np.inf, figures)
        else:
            low = high = figures
        return self._extreme(low, 0, np.argmin), self._extreme(high, -1, np.argmax)

    def _extreme(self, figures: NDArray[Any], depth: int, pick: Any) -> Genotypes:
        """`depth` is the index of the depth that adds least (0) or most (-1); figures are not negative."""
        space, count = self.space, len(figures)
        rows = np.arange(count)
        found = np.zeros((len(self.stems), count, len(space.gene_sizes)), dtype=np.int64)
        repeats = self.repeats(space.depth[depth]).tolist()
        sums = []
        for z, (image, width, pooling) in enumerate(_sizes(space)):
            found[z, :, : self._first] = (image, width, depth % len(space.depth), pooling)[: self._first]
            blocks = found[z, :, self._first :].reshape(count, space.max_depth, len(BLOCK_GENES))
            total = figures[:, self.stems[z]] + figures[:, self.heads[z]]
            pools = self.pools[z][self.pools[z] > 0]
            total = total + figures[:, pools].sum(axis=1) if len(pools) else total
            for table, genes in ((self.mixers, MIXER_GENES), (self.mlps, MLP_GENES)):
                places = [BLOCK_GENES.index(gene) for gene in genes]
                for k, times in enumerate(repeats):
                    best = pick(figures[:, table[z, k]], axis=1)
                    blocks[:, k:, places] = _choices(space, genes)[best][:, None, :]
                    total = total + times * figures[rows, table[z, k][best]]
            sums.append(total)
        return space.canonical(found[pick(np.stack(sums), axis=0), rows])


@lru_cache(maxsize=4)
def _parts(space: SearchSpace) -> SpaceParts:
    sizes, first = np.array(_sizes(space)), len(space.global_genes)
    pooled = first > len(GLOBAL_GENES)
    places, slots = (space.depth[0], 3) if pooled else (1, 2)
    mixers, mlps = _choices(space, MIXER_GENES), _choices(space, MLP_GENES)
    variants = max(len(mixers), len(mlps))
    genotypes = np.zeros((len(sizes), variants, len(space.gene_sizes)), dtype=np.int64)
    genotypes[:, :, :2] = sizes[:, None, :2]
    if pooled:
        genotypes[:, :, 3] = sizes[:, None, 2]
    blocks = genotypes[:, :, first:].reshape(len(sizes), variants, space.max_depth, len(BLOCK_GENES))
    for choices, genes in ((mixers, MIXER_GENES), (mlps, MLP_GENES)):
        padded = choices[np.minimum(np.arange(variants), len(choices) - 1)]
        blocks[..., [BLOCK_GENES.index(gene) for gene in genes]] = padded[None, :, None, :]
    genotypes = space.canonical(genotypes.reshape(-1, genotypes.shape[-1]))
    population = lower_many(space.arrays(genotypes))
    parts = population.parts.reshape(len(sizes), variants, -1)
    halves = parts[:, :, 1 : 1 + slots * places].reshape(len(sizes), variants, places, slots).transpose(3, 0, 2, 1)
    return SpaceParts(
        space=space,
        population=population,
        stems=parts[:, 0, 0],
        heads=parts[:, 0, -1],
        mixers=np.ascontiguousarray(halves[-2, :, :, : len(mixers)]),
        mlps=np.ascontiguousarray(halves[-1, :, :, : len(mlps)]),
        pools=halves[0, :, :, 0] if pooled else np.zeros((len(sizes), 1), dtype=np.int64),
        weights=np.stack([_weights(space, MIXER_GENES), _weights(space, MLP_GENES)], axis=1),
    )


def _choices(space: SearchSpace, genes: tuple[str, ...]) -> Genotypes:
    """Every combination of these genes of a block, (V, len(genes))."""
    sizes = _block_sizes(space)[[BLOCK_GENES.index(gene) for gene in genes]]
    return np.indices(sizes.tolist(), dtype=np.int64).reshape(len(genes), -1).T


def _weights(space: SearchSpace, genes: tuple[str, ...]) -> IntArray:
    """What the genes of a block (7,) are multiplied by to give the number of a combination of `genes`."""
    weights, step = np.zeros(len(BLOCK_GENES), dtype=np.int64), 1
    for gene in reversed(genes):
        weights[BLOCK_GENES.index(gene)] = step
        step *= int(_block_sizes(space)[BLOCK_GENES.index(gene)])
    return weights


def _sizes(space: SearchSpace) -> list[tuple[int, int, int]]:
    """The choices of image size, width and pooling of each size."""
    return list(product(range(len(space.image_size)), range(len(space.embed_dim)), range(len(space.pooling))))


def _block_sizes(space: SearchSpace) -> IntArray:
    return space.gene_sizes[len(space.global_genes) :][: len(BLOCK_GENES)]
