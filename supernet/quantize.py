"""Uniform quantization: symmetric weight rows with a precision each, static 8-bit activations.

A code is `clip(round_half_even(x / scale), -qmax, qmax)` with `qmax = 2^(bits-1) - 1`, so 8-bit codes lie in
[-127, 127] and 4-bit codes in [-7, 7]: never -8, which lets three 4-bit products share one DSP. Gradients pass
straight through, without a saved mask. Biases are rounded to 32-bit codes in units of their accumulator.

Entanglement: a row's scale comes from the full row of the supernet, never from the slice that a subnet uses. The
high-precision codes and the low-precision codes of every subnet are therefore slices of two integer stores.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

#: clip factors tried for the low-precision scale of a row, as shares of its largest magnitude
CLIP_FACTORS = tuple(0.30 + 0.05 * i for i in range(15))
#: values of float32 in a piece that passes find in the cache of a CPU core; smaller pieces take more calls
CACHED_VALUES = 1 << 18
#: keeps the scale of an all-zero row or an unused site from being 0
SMALLEST_SCALE = 1e-8


def qmax(bits: int) -> int:
    """The largest code at a bit width: 127 for 8 bits, 7 for 4."""
    return (1 << (bits - 1)) - 1


class _FakeQuantize(torch.autograd.Function):
    """Quantize and dequantize in one pass over fresh memory; the gradient of `x` passes unchanged.

    Under autocast the result has its type, as what follows is a product, but codes are exact: see `quantize`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, limit: Tensor | float, lowest: Tensor | None) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        if device != "cpu" or scale.dim() or x.numel() < 2 * CACHED_VALUES:
            return quantize(x, scale, limit, lowest).mul_(scale).to(dtype)
        # Several passes over a large tensor: piece by piece, so that all but the first find it in the cache.
        high, low = float(limit), None if lowest is None else float(lowest)  # clipping by numbers is the faster one
        result = torch.empty_like(x, dtype=dtype)
        images = max(1, len(x) * CACHED_VALUES // x.numel())
        for start in range(0, len(x), images):
            part = slice(start, start + images)
            result[part] = quantize(x[part], scale, high, low).mul_(scale)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return grads[0], None, None, None


def fake_quantize(x: Tensor, scale: Tensor, limit: Tensor | float, lowest: Tensor | None = None) -> Tensor:
    """`code * scale` for the codes of `quantize`, with a straight-through gradient to `x`."""
    result: Tensor = _FakeQuantize.apply(x, scale, limit, lowest)
    return result


class _StraightThrough(torch.autograd.Function):
    """Replaces values; gradients pass to the tensor that they replace."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """`value`, with the gradient of a result going to `x` unchanged; both have the same shape."""
    result: Tensor = _StraightThrough.apply(x, value)
    return result


def round_bias(bias: Tensor, row_scale: Tensor, input_scale: Tensor) -> Tensor:
    """A bias (rows,) in whole units of its accumulator, `row_scale * input_scale`, as the hardware adds it."""
    return fake_quantize(bias, row_scale * input_scale, float(qmax(32)))


def quantize(x: Tensor, scale: Tensor, limit: Tensor | float, lowest: Tensor | float | None = None) -> Tensor:
    """The codes of `x`, as floats: rounded half to even and clipped to [lowest, limit]; all broadcast.

    `lowest` is `-limit` where it is not given. With a zero point z (see `functional.ActivationSites`) the result is
    the code less z, so the bounds are those of the codes less z.

    Types of half precision are taken to float32: 8 bits of mantissa do not hold the halves between large codes, and on
    a CPU these passes take less time in float32 than in bfloat16, conversion included.
    """
    codes = (torch.div(x, scale) if x.element_size() > 2 else x.float().div_(scale)).round_()
    if not isinstance(limit, Tensor):
        return codes.clamp_(-limit if lowest is None else cast(float, lowest), limit)
    # A CPU clips by tensors faster so than by `clamp_`.
    torch.maximum(codes, -limit if lowest is None else cast(Tensor, lowest), out=codes)
    return torch.minimum(codes, limit, out=codes)


def row_scales(weight: Tensor, clip: Tensor, *, low_bits: int, high_bits: int) -> tuple[Tensor, Tensor]:
    """Scales of full rows at high and low precision, each (rows,): max-abs, and max-abs times the row's clip factor."""
    largest = weight.detach().abs().amax(dim=1).clamp_(min=SMALLEST_SCALE)
    return largest / qmax(high_bits), largest * clip / qmax(low_bits)


def search_clip(weight: Tensor, *, low_bits: int, inputs: Tensor | None = None) -> Tensor:
    """The factor of `CLIP_FACTORS` with the least squared error at low precision, for each full row, (rows,).

    Args:
        inputs: (inputs,) weighs the error of each weight: with the mean square of its input, the sum is the error of
            the row's output, if inputs are uncorrelated.
    """
    weight = weight.detach()
    limit = qmax(low_bits)
    largest = weight.abs().amax(dim=1, keepdim=True).clamp_(min=SMALLEST_SCALE)
    errors = []
    for factor in CLIP_FACTORS:
        scale = largest * factor / limit
        error = (quantize(weight, scale, limit).mul_(scale) - weight).square()
        errors.append(error.sum(dim=1) if inputs is None else error @ inputs)
    factors = torch.tensor(CLIP_FACTORS, dtype=weight.dtype, device=weight.device)
    return factors[torch.stack(errors).argmin(dim=0)]
