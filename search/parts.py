"""All parts that the subnets of a space are put together from, lowered once: stems, block halves and heads.

A block's mixer half depends only on the genes of that half and on image size and width (together: the *size* of a
subnet), its MLP half likewise; see `supernet.lowering`. So a space of 1e27 subnets has a few hundred different parts. A
genotype becomes a row of part numbers by looking up one number for each half, and figures that add up over layers, such
as cycles, are sums of one number for each part. Their extremes over the whole space follow without enumeration: a
subnet of depth d that is smallest consists of d times the smallest halves.
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

    The sizes Z are the combinations of image size and width, in the order of `itertools.product`; `mixers[z, i]` is the
    part for the i-th combination of `MIXER_GENES` in the order of `np.ndindex`, `mlps` likewise. The networks of
    `population` have one block each: what they are is of no interest.
    """

    space: SearchSpace
    population: Population
    stems: IntArray  # (Z,)
    heads: IntArray  # (Z,)
    mixers: IntArray  # (Z, V)
    mlps: IntArray  # (Z, W)
    weights: IntArray  # (7, 2): what the genes of a block count for in the numbers of its two halves

    @staticmethod
    def of(space: SearchSpace) -> SpaceParts:
        """The parts of `space`; worked out once for each."""
        return _parts(space)

    def numbers(self, genotypes: Genotypes) -> IntArray:
        """The parts of canonical genotypes (N, G), shape (N, S); empty slots are part 0."""
        space, count = self.space, len(genotypes)
        blocks = genotypes[:, len(GLOBAL_GENES) :].reshape(count, space.max_depth, len(BLOCK_GENES))
        number = blocks @ self.weights
        size = genotypes[:, 0] * len(space.embed_dim) + genotypes[:, 1]
        empty = np.arange(space.max_depth) >= np.array(space.depth)[genotypes[:, 2]][:, None]
        parts = np.empty((count, 2 + 2 * space.max_depth), dtype=np.int64)
        parts[:, 0] = self.stems[size]
        for half, table in enumerate((self.mixers, self.mlps)):
            halves = table.take(number[..., half] + (size * table.shape[1])[:, None])
            halves[empty] = 0
            parts[:, 1 + half : -1 : 2] = halves
        parts[:, -1] = self.heads[size]
        return parts

    def of_genotypes(self, genotypes: Genotypes) -> Population:
        """The population of canonical genotypes (N, G), with the parts of the whole space in its table."""
        slots = ("", *(str(b) for b in range(self.space.max_depth) for _ in range(2)), "")
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
        space, k = self.space, len(figures)
        rows = np.arange(k)
        found = np.zeros((len(self.stems), k, len(space.gene_sizes)), dtype=np.int64)
        sums = []
        for z, (image, width) in enumerate(product(range(len(space.image_size)), range(len(space.embed_dim)))):
            found[z, :, : len(GLOBAL_GENES)] = image, width, depth % len(space.depth)
            blocks = found[z, :, len(GLOBAL_GENES) :].reshape(k, space.max_depth, len(BLOCK_GENES))
            total = figures[:, self.stems[z]] + figures[:, self.heads[z]]
            for table, genes in ((self.mixers, MIXER_GENES), (self.mlps, MLP_GENES)):
                best = pick(figures[:, table[z]], axis=1)
                places = [BLOCK_GENES.index(gene) for gene in genes]
                blocks[:, :, places] = _choices(space, genes)[best][:, None, :]
                total = total + space.depth[depth] * figures[rows, table[z][best]]
            sums.append(total)
        return space.canonical(found[pick(np.stack(sums), axis=0), rows])


@lru_cache(maxsize=4)
def _parts(space: SearchSpace) -> SpaceParts:
    sizes = list(product(range(len(space.image_size)), range(len(space.embed_dim))))
    mixers, mlps = _choices(space, MIXER_GENES), _choices(space, MLP_GENES)
    variants = max(len(mixers), len(mlps))
    genotypes = np.zeros((len(sizes), variants, len(space.gene_sizes)), dtype=np.int64)
    genotypes[:, :, :2] = np.array(sizes)[:, None, :]
    blocks = genotypes[:, :, len(GLOBAL_GENES) :].reshape(len(sizes), variants, space.max_depth, len(BLOCK_GENES))
    for choices, genes in ((mixers, MIXER_GENES), (mlps, MLP_GENES)):
        padded = choices[np.minimum(np.arange(variants), len(choices) - 1)]
        blocks[..., [BLOCK_GENES.index(gene) for gene in genes]] = padded[None, :, None, :]
    genotypes = space.canonical(genotypes.reshape(-1, genotypes.shape[-1]))
    population = lower_many(space.arrays(genotypes))
    parts = population.parts.reshape(len(sizes), variants, -1)
    return SpaceParts(
        space=space,
        population=population,
        stems=parts[:, 0, 0],
        heads=parts[:, 0, -1],
        mixers=parts[:, : len(mixers), 1],
        mlps=parts[:, : len(mlps), 2],
        weights=np.stack([_weights(space, MIXER_GENES), _weights(space, MLP_GENES)], axis=1),
    )


def _choices(space: SearchSpace, genes: tuple[str, ...]) -> Genotypes:
    """Every combination of these genes of a block, (V, len(genes))."""
    sizes = _sizes(space)[[BLOCK_GENES.index(gene) for gene in genes]]
    return np.indices(sizes.tolist(), dtype=np.int64).reshape(len(genes), -1).T


def _weights(space: SearchSpace, genes: tuple[str, ...]) -> IntArray:
    """What the genes of a block (7,) are multiplied by to give the number of a combination of `genes`."""
    weights, step = np.zeros(len(BLOCK_GENES), dtype=np.int64), 1
    for gene in reversed(genes):
        weights[BLOCK_GENES.index(gene)] = step
        step *= int(_sizes(space)[BLOCK_GENES.index(gene)])
    return weights


def _sizes(space: SearchSpace) -> IntArray:
    return space.gene_sizes[len(GLOBAL_GENES) :][: len(BLOCK_GENES)]
