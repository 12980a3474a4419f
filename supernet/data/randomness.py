"""Random numbers that depend on named integers alone, and leave the process's own generators as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def mixed_seed(*parts: int) -> int:
    """A 64-bit seed from non-negative integers; close parts give unrelated seeds."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def generator(*parts: int) -> torch.Generator:
    """A CPU generator for `parts`: on the CPU, so that a seed means the same on every device."""
    return torch.Generator().manual_seed(mixed_seed(*parts))


@contextmanager
def seeded(*parts: int) -> Iterator[None]:
    """Seeds the global generators of Python, NumPy and torch (CPU) inside, and restores them after.

    For code that knows no other generators, as image transforms do.
    """
    seed = mixed_seed(*parts)
    state_before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # Not `torch.manual_seed`, which would also seed the accelerators.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(state_before[0])
        np.random.set_state(state_before[1])
        torch.random.set_rng_state(state_before[2])
