"""Images that are decoded and transformed as they are read, in worker processes if wanted.

Whatever a decoder raises, the file is to blame: damaged, cut short, empty, or no image at all. Workers report such
files with the batch, and `Unreadable` counts those that a process has met.

Shapes: B images, C channels, height H, width W.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from hwmodel.errors import DamagedInputError
from supernet.data.loader import load
from supernet.data.randomness import generators_kept, reseed
from supernet.data.samples import FileSamples


@dataclass(frozen=True, kw_only=True, slots=True)
class PathSource:
    """Image files at `paths` relative to `root`."""

    root: Path
    paths: tuple[str, ...]

    def read(self, index: int) -> Image.Image:
        """Decodes one file."""
        with (self.root / self.paths[index]).open("rb") as file:
            image = Image.open(file)
            image.load()
        return image

    def name(self, index: int) -> str:
        """The path of one file."""
        return str(self.root / self.paths[index])

    def identity(self, index: int) -> str:
        """The path under the root and the size in bytes."""
        try:
            return f"{Path(self.paths[index]).as_posix()} {(self.root / self.paths[index]).stat().st_size}"
        except OSError as error:
            raise DamagedInputError(f"{self.name(index)}: gone since the data set was opened ({error})") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Unreadable:
    """The different unreadable images of one part of a data set that this process has met.

    Args:
        allowed: how many there may be.
    """

    allowed: int
    _met: set[int] = field(default_factory=set)

    def meet(self, index: int, error: str) -> None:
        """Counts a sample; warns of it on stderr the first time.

        Raises:
            DamagedInputError: it is one more than is allowed.
        """
        if index in self._met:
            return
        count = len(self._met) + 1
        if count > self.allowed:
            remedy = "restore the file or remove it"
            if self.allowed:
                remedy = (
                    f"this is unreadable image number {count}, and data.max_unreadable is {self.allowed}: "
                    "restore the files that were named, or allow more"
                )
            raise DamagedInputError(f"{error}; {remedy}")
        self._met.add(index)
        print(
            f"warning: {error}; skipped, number {count} of at most {self.allowed}: in training another image of its "
            "class takes its place, and accuracies leave it out",
            file=sys.stderr,
        )


def next_of_class(labels: NDArray[np.int64], indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each sample of `indices` the one that follows it among those of its class, after the last one the first.

    Args:
        labels: (N,), of all samples.
        indices: (M,), different ones of these samples.

    Returns:
        (N,), of which only the entries at `indices` mean something.
    """
    by_class = indices[np.argsort(labels[indices], kind="stable")]
    is_first = np.diff(labels[by_class], prepend=-1) != 0
    following = np.roll(by_class, -1)
    following[np.roll(is_first, -1)] = by_class[is_first]
    result = np.zeros_like(labels)
    result[by_class] = following
    return result


class _Loaded(NamedTuple):
    """Images uint8 (B, C, H, W), labels int64 (B,), and the samples that were tried and cannot be read, with why."""

    images: Tensor
    labels: Tensor
    unreadable: list[tuple[int, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Decoded(Dataset[_Loaded]):
    samples: FileSamples
    transform: Callable[[Image.Image], Tensor]
    seeds: tuple[int, ...]
    following: NDArray[np.int64] | None

    def __getitem__(self, indices: Tensor) -> _Loaded:
        images, labels = [], []
        unreadable: list[tuple[int, str]] = []
        with generators_kept():
            for index in indices.tolist():
                image = self._read(index, unreadable)
                if image is not None:
                    # Seeded by sample, so that neither the number of workers nor the batch size matters.
                    reseed(*self.seeds, index)
                    images.append(self.transform(image))
                    labels.append(int(self.samples.labels[index]))
        return _Loaded(torch.stack(images) if images else torch.empty(0), torch.tensor(labels), unreadable)

    def _read(self, index: int, unreadable: list[tuple[int, str]]) -> Image.Image | None:
        """The image, or the next readable one that may take its place; the unreadable ones are added to the list."""
        source, place = self.samples.source, index
        while True:
            try:
                return source.read(place).convert("L" if self.samples.in_chans == 1 else "RGB")
            except Exception as error:  # a damaged image can raise anything
                # Not raised again: an exception from a worker process arrives as the text of a traceback.
                why = f"{type(error).__name__}: {' '.join(str(error).split())}"
                if isinstance(error, UnidentifiedImageError):  # whose text is the address of an object
                    why = "no known image format"
                unreadable.append((place, f"{source.name(place)}: cannot be read as an image ({why})"))
            if self.following is None:
                return None
            place = int(self.following[place])
            if place == index:
                return None


def load_batches(
    samples: FileSamples,
    chunks: Sequence[Tensor],
    transform: Callable[[Image.Image], Tensor],
    *,
    seeds: tuple[int, ...],
    following: NDArray[np.int64] | None,
    unreadable: Unreadable,
    workers: int,
    pin_memory: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images uint8 (B, C, H, W) and labels int64 (B,) of the samples at each of `chunks`, on the CPU.

    Args:
        chunks: int64 (B,) each.
        seeds: what random transforms depend on, besides the sample.
        following: (N,), for each sample the one that takes its place if it cannot be read; None leaves it out.
        unreadable: counts the samples that cannot be read.

    Raises:
        DamagedInputError: an image cannot be read, and no more may be skipped or none is left to take its place.
    """
    dataset = _Decoded(samples=samples, transform=transform, seeds=seeds, following=following)
    # Closed, so that an error here ends the workers now, and not when its traceback goes.
    with closing(load(dataset, chunks, workers=workers, pin_memory=pin_memory)) as loaded:
        for chunk, (images, labels, problems) in zip(chunks, loaded, strict=True):
            for index, error in problems:
                unreadable.meet(index, error)
            if following is not None and len(labels) < len(chunk):
                raise DamagedInputError(f"{problems[-1][1]}; nor can any other image of its class: restore the files")
            if len(labels):
                yield images, labels
