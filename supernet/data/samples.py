"""What a data set gives for one part, before any split, resize or augmentation. Imports without torch.

A data set that fits into memory gives `ArraySamples`; one whose images are decoded as they are read gives
`FileSamples`. `carve` divides labelled samples so that every class is in both parts, unless that is not wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from hwmodel.errors import UsageError
from supernet.data.config import DataConfig

#: share of a data set without a test part that is set aside as one, unless `data.test_fraction` says otherwise
TEST_FRACTION = 0.2


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel, of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


# timm.data.constants.IMAGENET_DEFAULT_MEAN and _STD; repeated so that this module needs no torch.
_IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def default_normalization(in_chans: int) -> Normalization:
    """ImageNet's for three channels, and its average over the channels for grey images."""
    if in_chans == 3:
        return _IMAGENET
    return Normalization(*((round(sum(values) / 3, 3),) * in_chans for values in _IMAGENET))


class ImageSource(Protocol):
    """Images that are decoded when they are read. Worker processes get a copy, so it must pickle."""

    def read(self, index: int) -> Image:
        """The image, in any mode; may raise whatever its decoder raises."""

    def name(self, index: int) -> str:
        """Where the image is, for messages; a path usually."""

    def identity(self, index: int) -> str:
        """What tells the image from others wherever the data set lies: its name under the root and its size."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ArraySamples:
    """Images in memory.

    Args:
        images: uint8, (N, C, H, W).
        labels: int64, (N,), indices into `classes`.

    Raises:
        ValueError: shapes, types or labels that do not fit together.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    normalization: Normalization

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(f"images must be uint8 (N, C, H, W), not {self.images.dtype} {self.images.shape}")
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images have {len(self.labels)} labels")
        _check_labels(self.labels, self.classes)
        _check_normalization(self.normalization, self.in_chans)

    @property
    def in_chans(self) -> int:
        """Channels of an image."""
        return int(self.images.shape[1])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FileSamples:
    """Images that are decoded as they are read, as RGB or as one grey channel.

    Args:
        labels: int64, (N,), indices into `classes`.
        source: the N images.
        in_chans: 3 for RGB or 1 for grey.

    Raises:
        ValueError: labels or normalization that do not fit, or another number of channels.
    """

    source: ImageSource
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    in_chans: int
    normalization: Normalization

    def __post_init__(self) -> None:
        if self.in_chans not in (1, 3):
            raise ValueError(f"in_chans must be 1 or 3, not {self.in_chans}")
        _check_labels(self.labels, self.classes)
        _check_normalization(self.normalization, self.in_chans)


Samples = ArraySamples | FileSamples


def _check_labels(labels: NDArray[np.int64], classes: tuple[str, ...]) -> None:
    if labels.dtype != np.int64 or labels.ndim != 1:
        raise ValueError(f"labels must be int64 (N,), not {labels.dtype} {labels.shape}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        raise ValueError(f"labels must lie in 0..{len(classes) - 1}, not in {labels.min()}..{labels.max()}")


def _check_normalization(normalization: Normalization, in_chans: int) -> None:
    if not len(normalization.mean) == len(normalization.std) == in_chans:
        raise ValueError(f"normalization {tuple(normalization)} is not that of {in_chans} channels")


def fixed_order(count: int, seed: int = 0) -> NDArray[np.int64]:
    """A permutation of `range(count)`.

    `RandomState` because NumPy promises never to change its stream, so that no upgrade moves an image from one
    part to another.
    """
    return np.random.RandomState(seed).permutation(count).astype(np.int64)


def carve(
    labels: NDArray[np.int64],
    classes: tuple[str, ...],
    *,
    fraction: float,
    seed: int,
    key: str,
    stratify: bool = True,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divides samples into a part to keep and a carved part with `fraction` of each class (rounded half up).

    Args:
        key: the configuration key to blame in messages.
        stratify: if false, the carved part has `fraction` of all samples, whatever their classes.

    Returns:
        Indices of the kept and of the carved samples, disjoint, each in a fixed shuffled order.

    Raises:
        UsageError: a class, or without `stratify` a part, that would be left without samples.
    """
    order = fixed_order(len(labels), seed)
    if not stratify:
        count = int(np.floor(fraction * len(labels) + 0.5))
        if not 0 < count < len(labels):
            raise UsageError(
                f"{key}: {fraction:g} of {len(labels)} images is {count} of them; neither part may be empty"
            )
        return order[count:], order[:count]
    counts = np.bincount(labels, minlength=len(classes))
    carved_counts = np.floor(fraction * counts + 0.5).astype(np.int64)
    for name, count, carved in zip(classes, counts, carved_counts, strict=True):
        if not 0 < carved < count:
            raise UsageError(
                f"{key}: {fraction:g} of the {count} images of class '{name}' is {carved} of them, and a class "
                "must be on both sides of the split; give the class more images, leave it out, or for a network that "
                "is not trained here set data.stratify=false"
            )
    by_class = order[np.argsort(labels[order], kind="stable")]
    rank_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    is_carved = np.zeros(len(labels), dtype=bool)
    is_carved[by_class] = rank_in_class < np.repeat(carved_counts, counts)
    return order[~is_carved[order]], order[is_carved[order]]


def carve_test(labels: NDArray[np.int64], classes: tuple[str, ...], config: DataConfig, part: str) -> NDArray[np.int64]:
    """Indices of one part of a data set that has no test part of its own; no seed of the user's changes it."""
    fraction = TEST_FRACTION if config.test_fraction is None else config.test_fraction
    train, test = carve(labels, classes, fraction=fraction, seed=0, key="data.test_fraction", stratify=config.stratify)
    return test if part == "test" else train
