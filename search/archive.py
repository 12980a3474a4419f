"""The best trials in each bin of latency: small however long the search, and diverse along the whole frontier."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Iterable
from operator import itemgetter

import numpy as np

from search.algorithm import FloatArray
from search.trial import Trial
from supernet.space import Genotypes

#: bins between the fastest subnet and the widest limit, beside the edges that the limits themselves are
_BINS = 32


class LatencyArchive:
    """Bins of latency, each with its `depth` best trials; the limits are edges, so that no bin straddles one."""

    def __init__(self, *, fastest_ms: float, limits_ms: Iterable[float], depth: int) -> None:
        limits = sorted(limits_ms)
        inner = np.linspace(fastest_ms, limits[-1], _BINS + 1)[1:-1].tolist()
        self._edges = sorted({*inner, *limits})
        # of each trial what it is sorted by, its latency, and its genotype (G,)
        self._bins: list[list[tuple[tuple[float, ...], float, Genotypes]]] = [[] for _ in range(len(self._edges) + 1)]
        self._depth = depth

    def add(self, trials: Iterable[Trial], genotypes: Genotypes) -> None:
        """Keeps those of the trials, with genotypes (N, G), that are among the best of their bins."""
        for trial, genotype in zip(trials, genotypes, strict=True):
            # a latency equal to an edge belongs below it: it still meets that limit
            members = self._bins[bisect_right(self._edges, math.nextafter(trial.latency_ms, 0))]
            place = (*(-part for part in trial.quality), trial.index)
            insort(members, (place, trial.latency_ms, genotype), key=itemgetter(0))
            del members[self._depth :]

    def ranked(self) -> tuple[Genotypes, FloatArray]:
        """All kept trials, best first: genotypes (n, G) and latency in ms (n,)."""
        trials = sorted((trial for members in self._bins for trial in members), key=itemgetter(0))
        genotypes = np.array([genotype for _, _, genotype in trials], dtype=np.int64)
        return genotypes, np.array([latency_ms for _, latency_ms, _ in trials])
