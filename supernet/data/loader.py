"""Batches that a data set makes on the CPU, in worker processes if wanted."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeVar

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from supernet.data.randomness import generator

Batch = TypeVar("Batch")


def load(
    dataset: Dataset[Batch], chunks: Sequence[Tensor], *, workers: int, pin_memory: bool
) -> Generator[Batch, None, None]:
    """`dataset[chunk]`, a tuple with tensors, for each of `chunks`, int64 (B,), in this order."""
    loader = DataLoader(
        dataset,
        batch_size=None,  # the data set makes whole batches
        sampler=chunks,
        num_workers=workers,
        pin_memory=pin_memory,
        generator=generator(0),  # for the workers' base seed, which is drawn from the global generator otherwise
    )
    yield from loader
