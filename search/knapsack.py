"""The best choices of genes whose terms add up, under the limits of a search.

Of a sum with one term for each gene, the minima along the convex hull are found by Lagrange multipliers,

    argmin over choices of  term + multiplier * latency        for each gene by itself,

and the budget that they leave is used by exchanges, which change one gene or two. Latency is a staircase with a step
for each row tile of an accelerator: of ratios that need the same tiles the largest diverges least, so it is the one
that is taken. What genes add to the latency is taken to add up, too, which it does on one accelerator. That only serves
to find candidates; whether one meets its limits is computed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from search.algorithm import FloatArray, SearchProblem
from supernet.space import Genotypes

#: Lagrange multipliers tried, in units of the largest term over the largest latency
_MULTIPLIERS = np.geomspace(1e-4, 1e4, 161)
#: exchanges whose exact costs are computed at a time, best first, and times that this is done
_EXCHANGES = 64
_ROUNDS = 40


class Knapsack:
    """Over the L genes of a problem that have a choice, which must all have the same C choices."""

    def __init__(self, problem: SearchProblem) -> None:
        sizes = problem.space.gene_sizes
        self.genes = np.flatnonzero(sizes > 1)
        self._choices = int(sizes.max())
        self._costs_of = problem.costs_of
        self._base = problem.anchors[0]
        latency_ms = self._costs_of(self.changed(self._base)).latency_ms.reshape(-1, self._choices)
        self._latency = latency_ms - latency_ms.min(axis=1, keepdims=True)  # (L, C)

    def changed(self, genotype: Genotypes) -> Genotypes:
        """The genotypes (L * C, G) that have one gene at another choice than this one (G,), or at the same."""
        changed = np.repeat(genotype[None], len(self.genes) * self._choices, axis=0)
        choices = np.tile(np.arange(self._choices), len(self.genes))
        changed[np.arange(len(changed)), np.repeat(self.genes, self._choices)] = choices
        return changed

    def best(self, terms: FloatArray, limit_ms: float) -> Genotypes | None:
        """The genotype (G,) with about the least sum of terms (L, C) that meets a limit; None if none is found."""
        if not len(self.genes):
            return self._base.copy() if self._meet(np.zeros((1, 0), dtype=np.int64), limit_ms)[0] else None
        genes = np.arange(len(self.genes))
        scale = np.ptp(terms) / max(np.ptp(self._latency), 1e-12)
        lagrangian = terms + scale * _MULTIPLIERS[:, None, None] * self._latency
        choices = np.unique(lagrangian.argmin(axis=2), axis=0)  # (M, L)
        choices = choices[self._meet(choices, limit_ms)]
        if not len(choices):
            return None
        best = choices[terms[genes, choices].sum(axis=1).argmin()]
        for _ in range(_ROUNDS):
            exchanged = self._exchanges(best, terms, limit_ms)
            exchanged = exchanged[self._meet(exchanged, limit_ms)]
            if not len(exchanged):
                break
            best = exchanged[0]
        return np.asarray(self._genotypes(best[None])[0])

    def _exchanges(self, choices: Genotypes, terms: FloatArray, limit_ms: float) -> Genotypes:
        """The choices (N, L) with one gene or two changed that should be better than these (L,) and fit, best first."""
        genes = np.arange(len(choices))
        gain = (terms[genes, choices][:, None] - terms).ravel()  # (L * C,) of each change
        extra = (self._latency - self._latency[genes, choices][:, None]).ravel()
        room = limit_ms - float(self._costs_of(self._genotypes(choices[None])).latency_ms[0]) + 1e-9
        gains = np.where(extra[:, None] + extra <= room, gain[:, None] + gain, -np.inf)
        gene = np.repeat(genes, self._choices)
        gains[gene[:, None] == gene] = -np.inf
        np.fill_diagonal(gains, np.where(extra <= room, gain, -np.inf))  # a change alone
        flat = gains.ravel()
        order = flat.argpartition(-min(_EXCHANGES, len(flat)))[-_EXCHANGES:]
        order = order[flat[order] > 1e-9 * np.ptp(terms)]
        order = order[flat[order].argsort()[::-1]]
        exchanged = np.repeat(choices[None], len(order), axis=0)
        for change in np.divmod(order, len(gene)):
            exchanged[np.arange(len(order)), gene[change]] = change % self._choices
        return exchanged

    def _meet(self, choices: Genotypes, limit_ms: float) -> NDArray[np.bool_]:
        return self._costs_of(self._genotypes(choices)).meet(limit_ms)

    def _genotypes(self, choices: Genotypes) -> Genotypes:
        """Genotypes (N, G) with these choices (N, L)."""
        genotypes = np.repeat(self._base[None], len(choices), axis=0)
        genotypes[:, self.genes] = choices
        return genotypes
