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


def reseed(*parts: int) -> None:
    """Seeds the global generators of Python, NumPy and torch (CPU); for use inside `generators_kept`."""
    seed = mixed_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # Not `torch.manual_seed`, which would also seed the accelerators.
    torch.default_generator.manual_seed(seed)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restores the global generators of Python, NumPy and torch (CPU) at its end.

    This takes longer than to seed them, so a batch is kept at once and its images are seeded one by one.
    """
    state_before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        yield
    finally:
        random.setstate(state_before[0])
        np.random.set_state(state_before[1])
        torch.random.set_rng_state(state_before[2])


@contextmanager
def seeded(*parts: int) -> Iterator[None]:
    """Seeds the global generators inside, and restores them after.

    For code that knows no other generators, as image transforms do.
    """
    with generators_kept():
        reseed(*parts)
        yield
