"""Batches of images that stay in memory as uint8, on the device, and are augmented there.

Shapes: B images, C channels, height H, width W.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

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
