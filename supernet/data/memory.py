"""Images that stay in memory as uint8: batches are cropped and mirrored on the device that holds them.

Policies and erasing exist for one image at a time, so with them batches are made on the CPU (`Varied`), in worker
processes if wanted. A second of one CPU core (AMD EPYC, one thread) crops and mirrors about 40,000 RGB images of
32 x 32; with rand-m9-mstd0.5-inc1 also applied it is about 4,000, and with random erasing as well about 3,000.

Shapes: B images, C channels, height H, width W.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torch.utils.data import Dataset

from supernet.data.randomness import generators_kept, reseed

_CHUNK = 1024


def resize(images_BCHW: Tensor, size: int) -> Tensor:
    """uint8 images at (size, size), bilinear with antialiasing, rounded to uint8; unchanged if they have that size."""
    if images_BCHW.shape[2:] == (size, size):
        return images_BCHW
    # In chunks: a data set as float32 would take four times the memory.
    return torch.cat(
        [
            interpolate(chunk.float(), (size, size), mode="bilinear", antialias=True).round().clamp(0, 255).byte()
            for chunk in torch.split(images_BCHW, _CHUNK)
        ]
    )


def crop_and_flip(images_BCHW: Tensor, padding: int, offsets_B2: Tensor, flip_B: Tensor) -> Tensor:
    """Crops each image, padded with `padding` pixels of zeros, to its size at (top, left), and mirrors some.

    Args:
        offsets_B2: int64, 0..2 * padding.
        flip_B: bool.
    """
    B, C, H, W = images_BCHW.shape
    device = images_BCHW.device
    padded = pad(images_BCHW, (padding,) * 4)
    columns_BW = torch.arange(W, device=device).expand(B, W)
    columns_BW = torch.where(flip_B[:, None], columns_BW.flip(1), columns_BW) + offsets_B2[:, 1:]
    rows_BH = torch.arange(H, device=device) + offsets_B2[:, :1]
    return padded[
        torch.arange(B, device=device)[:, None, None, None],
        torch.arange(C, device=device)[None, :, None, None],
        rows_BH[:, None, :, None],
        columns_BW[:, None, None, :],
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Varied(Dataset[tuple[Tensor, Tensor]]):
    """The batches of an epoch on the CPU: images uint8 (B, C, H, W) and labels int64 (B,) at places int64 (B,) of it.

    Args:
        images, labels: all samples, uint8 (N, C, H, W) and int64 (N,).
        order: the samples of the epoch, int64 (M,).
        offsets, flip: of each place in the epoch, (M, 2) and (M,), see `crop_and_flip`.
        vary: from one image to the next, by the global generators.
        seeds: what `vary` depends on, besides the sample.
    """

    images: Tensor
    labels: Tensor
    order: Tensor
    padding: int
    offsets: Tensor
    flip: Tensor
    vary: Callable[[Tensor], Tensor]
    seeds: tuple[int, ...]

    def __getitem__(self, places_B: Tensor) -> tuple[Tensor, Tensor]:
        samples_B = self.order[places_B]
        cropped = crop_and_flip(self.images[samples_B], self.padding, self.offsets[places_B], self.flip[places_B])
        varied = []
        with generators_kept():
            for index, image_CHW in zip(samples_B.tolist(), cropped, strict=True):
                # Seeded by sample, so that neither the number of workers nor the batch size matters.
                reseed(*self.seeds, index)
                varied.append(self.vary(image_CHW))
        return torch.stack(varied), self.labels[samples_B]
