"""What a search is compared with: random search with the same budget, and subnets of one precision throughout.

The uniform subnets have the same choices in all blocks and all rows at the higher or all at the lower precision: what
one would build without a search. Of those that keep to the limits, a ladder over the latencies is measured, on each
rung the one with the most multiply-accumulates.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from hwmodel.cost import CostModel
from search.bounds import figures_of
from search.config import SearchConfig
from search.limits import costs_function
from supernet.space import BLOCK_GENES, Genotypes, SearchSpace
from supernet.subnet import LINEARS

#: rungs of a ladder
_RUNGS = 8


def uniform_ladder(space: SearchSpace, model: CostModel, config: SearchConfig, *, ratio: float) -> Genotypes:
    """Up to eight uniform subnets with this share of rows at the higher precision, by latency, shape (n, G).

    There are none if the space does not offer the share, or none keeps to the widest target and the limits.
    """
    if ratio not in space.high_precision_ratio:
        return np.zeros((0, len(space.gene_sizes)), dtype=np.int64)
    shares = (space.high_precision_ratio.index(ratio),) * len(LINEARS)
    first = len(space.global_genes)
    sizes = space.gene_sizes[: first + len(BLOCK_GENES) - len(LINEARS)].tolist()
    shapes = product(*map(range, sizes))
    rows = [(*shape[:first], *((*shape[first:], *shares) * space.max_depth)) for shape in shapes]
    genotypes = space.canonical(np.array(rows, dtype=np.int64))
    widest = max(target.limit_ms for target in config.targets)
    genotypes = genotypes[costs_function(space, model, config.limits)(genotypes).meet(widest)]
    if not len(genotypes):
        return genotypes
    figures = figures_of(space, model, genotypes)
    latency = figures["latency_ms"]
    edges = np.geomspace(latency.min(), latency.max() * (1 + 1e-9), _RUNGS + 1)
    rung = np.searchsorted(edges, latency, side="right")
    best = [max(np.flatnonzero(rung == r), key=lambda i: figures["macs"][i]) for r in np.unique(rung)]
    return genotypes[best]
