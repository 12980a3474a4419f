"""Sampling strategies: which subnets one training step trains. Torch-free.

Add one by a file that registers a `Strategy`, or by an entry point of the group "quasar.strategies" that resolves to
one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hwmodel.registry import Registry
from supernet.space import SearchSpace
from supernet.subnet import Subnet

#: `strategy(space, rng, random)` gives the subnets of one step, `random` of them random. All randomness comes from
#: `rng`. Distillation within a step takes the first one as teacher if that is the largest of the space.
Strategy = Callable[[SearchSpace, np.random.Generator, int], list[Subnet]]

STRATEGIES: Registry[Strategy] = Registry("sampling strategy", group="quasar.strategies")


@STRATEGIES.register("single")
def single(space: SearchSpace, rng: np.random.Generator, random: int) -> list[Subnet]:
    """Random subnets alone; with one of them, single-path training (Guo et al. 2020, arXiv:1904.00420)."""
    return [space.decode(genotype) for genotype in space.sample(rng, random)]


@STRATEGIES.register("sandwich")
def sandwich(space: SearchSpace, rng: np.random.Generator, random: int) -> list[Subnet]:
    """The largest, the smallest and random subnets (Yu and Huang 2019, arXiv:1903.05134)."""
    return [space.largest(), space.smallest(), *single(space, rng, random)]


@STRATEGIES.register("max_random")
def max_random(space: SearchSpace, rng: np.random.Generator, random: int) -> list[Subnet]:
    """The largest and random subnets: a teacher at hand for two thirds of a sandwich's price."""
    return [space.largest(), *single(space, rng, random)]
