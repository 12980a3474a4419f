"""The splits that training, search and export read: batches of normalized images with their labels.

`open_train` gives the training and the validation split. `open_test` is apart from it so that nothing sees the test
images by accident: neither training nor search calls it.

Every split has a fixed shuffled order, so that its first so many samples are a fair sample of it. The order and the
augmentation of an epoch follow from (seed, epoch) alone, whatever the device, the batch size and the number of
workers, and no global random generator is consumed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwmodel.errors import UsageError
from supernet.data.config import DataConfig
from supernet.data.files import Unreadable, load_batches, next_of_class
from supernet.data.loader import load
from supernet.data.memory import Varied, crop_and_flip, resize
from supernet.data.randomness import generator
from supernet.data.registry import DATASETS, Part
from supernet.data.samples import ArraySamples, FileSamples, Normalization, Samples, carve, fixed_order
from supernet.data.transforms import file_transform, memory_transform


class Split:
    """Some samples of a data set, in a fixed order.

    Made by `open_train` and `open_test`. Images in memory are moved to the device of the last `batches` call.

    Attributes:
        classes: names of the classes, by label.
        in_chans: channels C of the images.
        image_size: height and width of the images that `batches` gives.
        normalization: mean and standard deviation that `batches` applies to pixels in [0, 1], per channel.
    """

    def __init__(
        self,
        samples: Samples,
        indices: NDArray[np.int64],
        *,
        config: DataConfig,
        image_size: int,
        normalization: Normalization,
        seed: int | None,
        unreadable: Unreadable,
    ) -> None:
        """`seed` is None for splits without epochs: validation and test; `unreadable` is that of the whole part."""
        self.classes = samples.classes
        self.in_chans = samples.in_chans
        self.image_size = image_size
        self.normalization = normalization
        self._samples = samples
        self._indices = indices
        self._config = config
        self._seed = seed
        self._unreadable = unreadable
        self._resident: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def num_classes(self) -> int:
        """Number of classes of the whole data set."""
        return len(self.classes)

    @cached_property
    def digest(self) -> str:
        """sha256 over the content: pixels and labels, or for files their names under the root, sizes and labels."""
        samples, labels = self._samples, self._samples.labels[self._indices]
        hasher = hashlib.sha256(json.dumps([self.classes, self.in_chans, len(self)]).encode())
        if isinstance(samples, ArraySamples):
            images = samples.images[self._indices]
            hasher.update(json.dumps(images.shape).encode())
            hasher.update(np.ascontiguousarray(images).data)
            hasher.update(labels.astype("<i8").data)
        else:
            names = (samples.source.identity(int(index)) for index in self._indices)
            for line in sorted(f"{name}\t{label}\n" for name, label in zip(names, labels, strict=True)):
                hasher.update(line.encode(errors="surrogateescape"))
        return hasher.hexdigest()

    def batches(
        self,
        batch_size: int,
        *,
        epoch: int | None = None,
        device: torch.device | str = "cpu",
        limit: int | None = None,
        places: Tensor | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images, float32 (B, C, image_size, image_size), with labels, int64 (B,), on `device`.

        Where `data.max_unreadable` allows it, a file that cannot be decoded is skipped. In an epoch the next readable
        image of its class in the fixed order takes its place, so that batches are full and classes keep their share.
        Without an epoch it is left out, and its batch is smaller: nothing is counted that was not seen.

        Args:
            epoch: None gives the fixed order, without augmentation, to the last sample. A number (training split
                only) gives the shuffled and augmented samples of that epoch, in full batches only.
            limit: only the first so many samples of the fixed order; all if there are fewer.
            places: of each full batch of an epoch only the samples at these places, int64 (B,), as they are in it:
                what one of several processes takes.

        Raises:
            UsageError: an epoch without a single full batch. Raised by the call, as are the next two.
            ValueError: an epoch of a split other than the training split; a size, epoch or limit out of range.
            DamagedInputError: more files that cannot be decoded than allowed; raised by the iterator.
        """
        if batch_size < 1 or (limit is not None and limit < 1) or (epoch is not None and epoch < 0):
            raise ValueError(f"batch_size={batch_size}, limit={limit} or epoch={epoch} is out of range")
        if places is not None and epoch is None:
            raise ValueError("only an epoch has places: all of its batches are full")
        count = len(self) if limit is None else min(limit, len(self))
        if epoch is not None:
            if self._seed is None:
                raise ValueError("only the training split has epochs")
            if batch_size > count:
                raise UsageError(
                    f"a batch of {batch_size} is larger than the training split of {count} images; lower it"
                )
        if isinstance(self._samples, ArraySamples):
            stream = self._from_memory(count, batch_size, epoch, torch.device(device), wanted=places)
        else:
            stream = self._from_files(self._samples, count, batch_size, epoch, torch.device(device), wanted=places)
        return stream

    def _from_memory(
        self, count: int, batch_size: int, epoch: int | None, device: torch.device, *, wanted: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        vary = None
        if epoch is not None:
            vary = memory_transform(self._config, image_size=self.image_size, normalization=self.normalization)
        images, labels = self._resident_on(device if vary is None else torch.device("cpu"))
        if epoch is None:
            for start in range(0, count, batch_size):
                places = slice(start, min(start + batch_size, count))
                yield self._normalized(images[places]), labels[places].clone()
            return
        rng = generator(*self._seeds(epoch))
        padding = self._config.crop_padding
        # Drawn for the whole epoch at once: one transfer, and nothing depends on the batch size.
        order = torch.randperm(count, generator=rng)
        offsets = torch.randint(2 * padding + 1, (count, 2), generator=rng)
        flip = torch.rand(count, generator=rng) < (0.5 if self._config.horizontal_flip else 0.0)
        taken = _full_batches(torch.arange(count), batch_size, wanted)
        if vary is not None:
            varied = Varied(
                images=images,
                labels=labels,
                order=order,
                padding=padding,
                offsets=offsets,
                flip=flip,
                vary=vary,
                seeds=self._seeds(epoch),
            )
            pin = device.type == "cuda"
            yield from self._on(device, load(varied, taken.unbind(), workers=self._config.workers, pin_memory=pin))
            return
        order, offsets, flip = order.to(device), offsets.to(device), flip.to(device)
        for places_B in taken.to(device):
            chosen = order[places_B]
            batch = crop_and_flip(images[chosen], padding, offsets[places_B], flip[places_B])
            yield self._normalized(batch), labels[chosen]

    def _from_files(
        self,
        samples: FileSamples,
        count: int,
        batch_size: int,
        epoch: int | None,
        device: torch.device,
        *,
        wanted: Tensor | None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.from_numpy(self._indices[:count])
        if epoch is None:
            chunks = torch.split(order, batch_size)
        else:
            shuffled = order[torch.randperm(count, generator=generator(*self._seeds(epoch)))]
            chunks = _full_batches(shuffled, batch_size, wanted).unbind()
        replace = epoch is not None and self._config.max_unreadable > 0
        loaded = load_batches(
            samples,
            chunks,
            file_transform(
                self._config, image_size=self.image_size, normalization=self.normalization, train=epoch is not None
            ),
            seeds=self._seeds(epoch),
            following=next_of_class(samples.labels, self._indices[:count]) if replace else None,
            unreadable=self._unreadable,
            workers=self._config.workers,
            pin_memory=device.type == "cuda",
        )
        yield from self._on(device, loaded)

    def _on(self, device: torch.device, batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in batches:
            yield self._normalized(images.to(device, non_blocking=True)), labels.to(device, non_blocking=True)

    def _seeds(self, epoch: int | None) -> tuple[int, ...]:
        """What the randomness of an epoch depends on; nothing is random without one."""
        if epoch is None:
            return ()
        assert self._seed is not None
        return self._seed, epoch

    def _resident_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """All images, uint8 (N, C, image_size, image_size), and labels of this split on `device`."""
        assert isinstance(self._samples, ArraySamples)
        if self._resident is None:
            images = torch.from_numpy(self._samples.images[self._indices])
            labels = torch.from_numpy(self._samples.labels[self._indices])
            self._resident = resize(images, self.image_size), labels
        self._resident = self._resident[0].to(device), self._resident[1].to(device)
        return self._resident

    def _normalized(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values, device=images.device).view(1, -1, 1, 1) for values in self.normalization)
        return images.float().div_(255).sub_(mean).div_(std)


def _full_batches(epoch_M: Tensor, batch_size: int, wanted_B: Tensor | None) -> Tensor:
    """The full batches of an epoch, one a row, and of each batch only the wanted places, if they are given."""
    batches = epoch_M[: len(epoch_M) // batch_size * batch_size].view(-1, batch_size)
    return batches if wanted_B is None else batches[:, wanted_B]


def open_train(config: DataConfig, *, image_size: int, seed: int) -> tuple[Split, Split]:
    """The training split and the validation split, which is carved from the train part and never augmented.

    Args:
        image_size: height and width of the images to give.
        seed: of the order and the augmentation of epochs; `config.split_seed` alone decides who is in which split.

    Raises:
        UsageError: a key of `config` that is missing, wrong or without effect, or a data set that cannot be split.
        DamagedInputError: a file that cannot be read.
    """
    samples = _load(config, "train")
    train, val = carve(
        samples.labels,
        samples.classes,
        fraction=config.val_fraction,
        seed=config.split_seed,
        key="data.val_fraction",
        stratify=config.stratify,
    )
    normalization = _normalization(config, samples)
    # A bad policy is to be known before the first epoch.
    if isinstance(samples, FileSamples):
        file_transform(config, image_size=image_size, normalization=normalization, train=True)
    else:
        memory_transform(config, image_size=image_size, normalization=normalization)
    unreadable = Unreadable(allowed=config.max_unreadable)

    def split(indices: NDArray[np.int64], split_seed: int | None) -> Split:
        return Split(
            samples,
            indices,
            config=config,
            image_size=image_size,
            normalization=normalization,
            seed=split_seed,
            unreadable=unreadable,
        )

    return split(train, seed), split(val, None)


def open_test(config: DataConfig, *, image_size: int) -> Split:
    """The test split, for the last measurement only. Raises as `open_train` does."""
    samples = _load(config, "test")
    return Split(
        samples,
        fixed_order(len(samples.labels)),
        config=config,
        image_size=image_size,
        normalization=_normalization(config, samples),
        seed=None,
        unreadable=Unreadable(allowed=config.max_unreadable),
    )


def _load(config: DataConfig, part: Part) -> Samples:
    samples = DATASETS.get(config.name)(config, part)
    if len(samples.classes) < 2:
        raise UsageError(f"data: the data set '{config.name}' has {len(samples.classes)} class; a classifier needs two")
    if not len(samples.labels):
        raise UsageError(f"data: the {part} part of the data set '{config.name}' has no images")
    if config.grey and samples.in_chans != 1:
        raise UsageError(
            f"data.grey: the data set '{config.name}' comes with {samples.in_chans} channels; remove the key"
        )
    if isinstance(samples, ArraySamples):
        config.refuse_unused("min_crop_scale", because="its images are in memory, see crop_padding")
        config.refuse_unused("max_unreadable", because="its images were decoded when it was opened")
    else:
        config.refuse_unused("crop_padding", because="its images are decoded from files, see min_crop_scale")
    return samples


def _normalization(config: DataConfig, samples: Samples) -> Normalization:
    if config.mean is None or config.std is None:
        return samples.normalization
    for key, values in (("mean", config.mean), ("std", config.std)):
        if len(values) != samples.in_chans:
            raise UsageError(f"data.{key}: {len(values)} values for images of {samples.in_chans} channels")
    return Normalization(config.mean, config.std)
