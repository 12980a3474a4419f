"""The fastest and the slowest subnet of a space, exactly, without enumerating it.

Cycles add up over layers. Those of a block's mixer half depend only on the genes of that half and on image size and
width, those of its MLP half likewise. So for each image size and width the extreme over all subnets of depth d consists
of d times the extreme halves, and each half can be varied on its own while the other one stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from hwmodel.cost import CostModel
from hwmodel.workload import IntArray
from supernet.lowering import lower_many
from supernet.space import BLOCK_GENES, GLOBAL_GENES, Genotypes, SearchSpace

MIXER_GENES = ("num_heads", "operator", "qkv_ratio", "proj_ratio")
MLP_GENES = ("mlp_ratio", "fc1_ratio", "fc2_ratio")


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyBounds:
    """The extremes of a space on one accelerator, and genotypes (G,) that reach them."""

    fastest_ms: float
    slowest_ms: float
    fastest: Genotypes
    slowest: Genotypes


def latency_bounds(space: SearchSpace, model: CostModel) -> LatencyBounds:
    """The smallest and the largest latency of any subnet in `space`, on a model whose cycles add up over layers."""
    extremes: list[Genotypes] = []
    for image_size, embed_dim in product(range(len(space.image_size)), range(len(space.embed_dim))):
        for depth, pick in ((0, np.argmin), (len(space.depth) - 1, np.argmax)):
            genotype = np.zeros(len(space.gene_sizes), dtype=np.int64)
            genotype[: len(GLOBAL_GENES)] = image_size, embed_dim, depth
            for half in (MIXER_GENES, MLP_GENES):
                variants = _variants(space, genotype, half)
                genotype = variants[pick(_cycles(space, model, variants))]
            extremes.append(genotype)
    candidates = np.stack(extremes)
    cycles = _cycles(space, model, candidates)
    fastest, slowest = candidates[cycles.argmin()], candidates[cycles.argmax()]
    both = model.estimate_many(lower_many(space.arrays(np.stack([fastest, slowest])))).latency_ms
    return LatencyBounds(fastest_ms=float(both[0]), slowest_ms=float(both[1]), fastest=fastest, slowest=slowest)


def _variants(space: SearchSpace, genotype: Genotypes, genes: tuple[str, ...]) -> Genotypes:
    """`genotype` with every combination of these genes of a block, the same in all its blocks, shape (V, G)."""
    gene_sizes = space.gene_sizes[len(GLOBAL_GENES) :][: len(BLOCK_GENES)]
    places = [BLOCK_GENES.index(gene) for gene in genes]
    choices = np.array(list(np.ndindex(*gene_sizes[places])), dtype=np.int64)
    variants = np.tile(genotype, (len(choices), 1))
    blocks = variants[:, len(GLOBAL_GENES) :].reshape(len(choices), space.max_depth, len(BLOCK_GENES))
    blocks[:, :, places] = choices[:, None, :]
    return space.canonical(variants)


def _cycles(space: SearchSpace, model: CostModel, genotypes: Genotypes) -> IntArray:
    """Cycles of whole subnets, shape (N,)."""
    return model.estimate_many(lower_many(space.arrays(genotypes))).cycles
