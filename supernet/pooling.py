"""Pooling of tokens: the grid of patches shrinks by 2 in each direction, by a linear over 2 x 2 neighbours.

Shape suffixes as in `supernet.functional`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor

from supernet.functional import Linear, Norm, Quantizer

POOL_SITES = ("pooled",)


def group_tokens(x_BTD: Tensor) -> Tensor:
    """The tokens of each 2 x 2 window of a square grid as one, (B, ceil(g / 2)^2, 4 * D) of (B, g * g, D).

    Channel by channel, so that the first channels of the tokens are the first inputs of what reads the result. An odd
    grid is padded with tokens of 0 at its lower and right sides.
    """
    batch, tokens, width = x_BTD.shape
    grid = math.isqrt(tokens)
    half = -(-grid // 2)
    x_BGGD = F.pad(x_BTD.reshape(batch, grid, grid, width), (0, 0, 0, grid % 2, 0, grid % 2))
    windows = x_BGGD.reshape(batch, half, 2, half, 2, width).permute(0, 1, 3, 5, 2, 4)
    return windows.reshape(batch, half * half, 4 * width)


def pool_tokens(x_BTD: Tensor, *, norm: Norm, merge: Linear, quantizer: Quantizer) -> Tensor:
    """The residual stream with a quarter of the patches, (B, T', D); the class token, which comes first, stays.

    What is pooled is normalised, so that it has codes of 8 bits like the input of every other linear.
    """
    windows = quantizer("pooled", group_tokens(norm(x_BTD[:, 1:])))
    return torch.cat([x_BTD[:, :1], merge(windows)], dim=1)
