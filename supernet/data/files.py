"""Batches of images that are decoded and transformed as they are read, in worker processes if wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hwmodel.errors import DamagedInputError, UsageError
from supernet.data.config import DataConfig
from supernet.data.randomness import generator, seeded
from supernet.data.samples import FileSamples

Transform = Callable[[Image.Image], Tensor]


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


def transform_for(config: DataConfig, *, image_size: int, in_chans: int, train: bool) -> Transform:
    """timm's transform to uint8 (C, image_size, image_size): random resized crop, or resize and centre crop."""
    scale = None if config.min_crop_scale is None else (config.min_crop_scale, 1.0)
    try:
        transform: Transform = create_transform(
            (in_chans, image_size, image_size),
            is_training=train,
            scale=scale,
            hflip=0.5 if config.horizontal_flip else 0.0,
            color_jitter=0.0,
            auto_augment=config.auto_augment,
            interpolation="bicubic",
            mean=(0.5,) * in_chans,  # the colour that auto_augment fills holes with
            normalize=False,  # on the device, from a quarter of the bytes
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise UsageError(f"data.auto_augment: timm knows no policy '{config.auto_augment}' ({error})") from error
    return transform


@dataclass(frozen=True, kw_only=True, slots=True)
class _Decoded(Dataset[tuple[Tensor, int] | DamagedInputError]):
    samples: FileSamples
    transform: Transform
    seeds: tuple[int, ...]

    def __getitem__(self, index: int) -> tuple[Tensor, int] | DamagedInputError:
        source = self.samples.source
        try:
            image = source.read(index).convert("L" if self.samples.in_chans == 1 else "RGB")
        except Exception as error:  # a damaged image can raise anything
            # Returned, since an exception from a worker process arrives as the text of a traceback.
            return DamagedInputError(
                f"{source.name(index)}: cannot be read as an image ({type(error).__name__}: {error}); "
                "restore the file or remove it"
            )
        # Seeded by sample, so that neither the number of workers nor the batch size matters.
        with seeded(*self.seeds, index):
            return self.transform(image), int(self.samples.labels[index])


def _collate(items: list[tuple[Tensor, int] | DamagedInputError]) -> tuple[Tensor, Tensor] | DamagedInputError:
    images, labels = [], []
    for item in items:
        if isinstance(item, DamagedInputError):
            return item
        images.append(item[0])
        labels.append(item[1])
    return torch.stack(images), torch.tensor(labels)


def load_batches(
    samples: FileSamples,
    order: Tensor,
    transform: Transform,
    *,
    seeds: tuple[int, ...],
    batch_size: int,
    drop_last: bool,
    workers: int,
    pin_memory: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images uint8 (B, C, H, W) and labels int64 (B,) of the samples at `order` (int64), on the CPU.

    Args:
        seeds: what random transforms depend on, besides the sample.

    Raises:
        DamagedInputError: an image that cannot be decoded.
    """
    loader = DataLoader(
        _Decoded(samples=samples, transform=transform, seeds=seeds),
        batch_size=batch_size,
        sampler=order.tolist(),
        drop_last=drop_last,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        generator=generator(0),  # for the workers' base seed, which is drawn from the global generator otherwise
    )
    for batch in loader:
        if isinstance(batch, DamagedInputError):
            raise batch
        yield batch
