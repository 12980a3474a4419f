"""The fastest and the slowest subnet of a space, exactly, without enumerating it.

Cycles add up over layers, and the layers of a block depend only on that block's genes and on image size and width.
So for each image size and width the extreme over all subnets of depth d is the stem plus d times the extreme block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel.cost import CostModel
from supernet.lowering import lower_many
from supernet.space import BLOCK_GENES, GLOBAL_GENES, Genotypes, SearchSpace


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyBounds:
    """The extremes of a space on one accelerator, and genotypes (G,) that reach them."""

    fastest_ms: float
    slowest_ms: float
    fastest: Genotypes
    slowest: Genotypes


def latency_bounds(space: SearchSpace, model: CostModel) -> LatencyBounds:
    """The smallest and the largest latency of any subnet in `space`."""
    variants = space.block_variants()
    extremes: list[tuple[int, Genotypes]] = []
    for image_size in range(len(space.image_size)):
        for embed_dim in range(len(space.embed_dim)):
            genotypes = np.zeros((len(variants), len(space.gene_sizes)), dtype=np.int64)
            genotypes[:, 0], genotypes[:, 1] = image_size, embed_dim
            genotypes[:, len(GLOBAL_GENES) : len(GLOBAL_GENES) + len(BLOCK_GENES)] = variants
            stem, block = _stem_and_block_cycles(space, model, genotypes)
            for depth, pick in ((0, np.argmin), (len(space.depth) - 1, np.argmax)):
                chosen = int(pick(block))
                genotype = genotypes[chosen].copy()
                genotype[2] = depth
                genotype[len(GLOBAL_GENES) :] = np.tile(variants[chosen], space.max_depth)
                cycles = int(stem[chosen] + space.depth[depth] * block[chosen])
                extremes.append((cycles, space.canonical(genotype[None])[0]))
    fastest = min(extremes, key=lambda e: e[0])[1]
    slowest = max(extremes, key=lambda e: e[0])[1]
    both = model.estimate_many(lower_many(space.arrays(np.stack([fastest, slowest])))).latency_ms
    return LatencyBounds(fastest_ms=float(both[0]), slowest_ms=float(both[1]), fastest=fastest, slowest=slowest)


def _stem_and_block_cycles(
    space: SearchSpace, model: CostModel, genotypes: Genotypes
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cycles outside of blocks and cycles of block 0, each (N,)."""
    population = lower_many(space.arrays(genotypes))
    batch = model.estimate_many(population)

    def total(belongs: Callable[[str], bool]) -> NDArray[np.int64]:
        gemms = np.array([belongs(name) for name in population.gemms.names])
        vectors = np.array([belongs(name) for name in population.vectors.names])
        return np.asarray(
            batch.gemm_cycles[:, gemms].sum(axis=1) + batch.vector_cycles[:, vectors].sum(axis=1), dtype=np.int64
        )

    return total(lambda name: not name.startswith("blocks.")), total(lambda name: name.startswith("blocks.0."))
