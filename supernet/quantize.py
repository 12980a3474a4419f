"""Uniform quantization: symmetric weight rows with a precision each, static 8-bit activations.

A code is `clip(round_half_even(x / scale), -qmax, qmax)` with `qmax = 2^(bits-1) - 1`, so 8-bit codes lie in
[-127, 127] and 4-bit codes in [-7, 7]: never -8, which lets three 4-bit products share one DSP. Biases are rounded to
32-bit codes in units of their accumulator.

Entanglement: a row's scale belongs to the full row of the supernet, never to the slice that a subnet uses. The
high-precision codes and the low-precision codes of every subnet are therefore slices of two integer stores.

Scales are measured, and then gradients pass straight through, without a saved mask; or they are learned. A learned
scale s has the gradient of LSQ (Esser et al. 2020, arXiv:1902.08153): of `q(x) = s * code(x / s)`,

    dq/ds = code - x / s   where the code is rounded, at most half
    dq/ds = code           where it is clipped

and the gradient of `x` is 0 where it is clipped. What is learned is log s, as for thresholds in TQT (Jain et al. 2019,
arXiv:1903.08066): s stays positive, and a step of Adam changes it by a share of itself, whatever its size is. Left out
is LSQ's factor `1 / sqrt(n * qmax)` on the gradient, which balances steps of s with those of weights under SGD: Adam
divides it out again, and without it the gradients to log s have less than a hundredth of the weights' norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

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


def _result_type(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _in_pieces(x: Tensor) -> bool:
    """Whether several passes over `x` are better made piece by piece, so that all but the first find it in a cache."""
    return x.device.type == "cpu" and x.numel() >= 2 * CACHED_VALUES


def _pieces(x: Tensor) -> Iterator[slice]:
    images = max(1, len(x) * CACHED_VALUES // x.numel())
    return (slice(start, start + images) for start in range(0, len(x), images))


class _FakeQuantize(torch.autograd.Function):
    """Quantize and dequantize in one pass over fresh memory; the gradient of `x` passes unchanged.

    Under autocast the result has its type, as what follows is a product, but codes are exact: see `quantize`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, limit: Tensor | float, lowest: Tensor | None) -> Tensor:
        dtype = _result_type(x)
        if scale.dim() or not _in_pieces(x):
            return quantize(x, scale, limit, lowest).mul_(scale).to(dtype)
        high, low = float(limit), None if lowest is None else float(lowest)  # clipping by numbers is the faster one
        result = torch.empty_like(x, dtype=dtype)
        for part in _pieces(x):
            result[part] = quantize(x[part], scale, high, low).mul_(scale)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return grads[0], None, None, None


def fake_quantize(x: Tensor, scale: Tensor, limit: Tensor | float, lowest: Tensor | None = None) -> Tensor:
    """`code * scale` for the codes of `quantize`, with a straight-through gradient to `x`.

    If `scale` is learned, it has its gradient, and clipped values have none; see the module's docstring.
    """
    if scale.requires_grad and torch.is_grad_enabled():
        return straight_through(x, scale, value_and_slope(x, scale, limit, lowest))
    result: Tensor = _FakeQuantize.apply(x, scale, limit, lowest)
    return result


class Quantized(NamedTuple):
    """Dequantized values, and by how much each changes with its scale: None if that is not learned.

    Slopes are at most half a code in size where a value is rounded, and a whole code at least where it is clipped.
    """

    value: Tensor
    slope: Tensor | None


@torch.no_grad()
def value_and_slope(x: Tensor, scale: Tensor, limit: Tensor | float, lowest: Tensor | None = None) -> Quantized:
    """The values of `fake_quantize`, bit for bit, with their slopes in bfloat16."""
    dtype = _result_type(x)
    if scale.dim() or not _in_pieces(x):
        return Quantized(*_value_and_slope(x, scale, limit, lowest, dtype))
    high, low = float(limit), None if lowest is None else float(lowest)
    value, slope = torch.empty_like(x, dtype=dtype), torch.empty_like(x, dtype=torch.bfloat16)
    for part in _pieces(x):
        value[part], slope[part] = _value_and_slope(x[part], scale, high, low, dtype)
    return Quantized(value, slope)


def _value_and_slope(
    x: Tensor, scale: Tensor, limit: Tensor | float, lowest: Tensor | float | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    ratio = _ratio(x, scale)
    codes = _clip(ratio.round(), limit, lowest)
    if isinstance(limit, Tensor):
        slope = codes - ratio
        slope = torch.where(slope.abs() > 0.5, codes, slope)
    else:
        least = -limit if lowest is None else cast(float, lowest)
        slope = torch.sub(codes, _between(ratio, ratio, least - 0.5, limit + 0.5), out=ratio)
    return codes.mul_(scale).to(dtype), slope.bfloat16()


def _between(x: Tensor, by: Tensor, least: float, most: float) -> Tensor:
    """`x` where `by` lies between two numbers, else 0; as the gradient of a hardtanh that is one pass."""
    result: Tensor = torch.ops.aten.hardtanh_backward(x, by, least, most)
    return result


class _StraightThrough(torch.autograd.Function):
    """Replaces values; gradients pass to the tensor that they replace."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _LearnedScale(torch.autograd.Function):
    """Replaces values; gradients pass to the tensor that they replace unless they are clipped, and to the scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        ctx.of_rows = scale.dim() > 0
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        if ctx.of_rows or not _in_pieces(slope):
            return *_gradients(grads[0], slope, of_rows=ctx.of_rows), None, None
        to_x, to_scale = torch.empty_like(slope, dtype=grads[0].dtype), torch.zeros((), device=slope.device)
        for part in _pieces(slope):
            to_x[part], change = _gradients(grads[0][part], slope[part], of_rows=False)
            to_scale += change
        return to_x, to_scale, None, None


def _gradients(gradient: Tensor, slope: Tensor, *, of_rows: bool) -> tuple[Tensor, Tensor]:
    """To the values that were quantized, and to their scale, (rows, 1) or ()."""
    slope = slope.to(gradient.dtype)
    change = gradient * slope
    to_scale = change.sum(dim=1, keepdim=True, dtype=torch.float32) if of_rows else change.sum(dtype=torch.float32)
    return _between(gradient, slope, -0.75, 0.75), to_scale


def straight_through(x: Tensor, scale: Tensor, quantized: Quantized) -> Tensor:
    """The quantized value, with gradients to `x`, of the same shape, and to `scale` if there are slopes.

    Args:
        scale: () for all of `x`, or (rows, 1).
    """
    result: Tensor
    if quantized.slope is None:
        result = _StraightThrough.apply(x, quantized.value)
    else:
        result = _LearnedScale.apply(x, scale, *quantized)
    return result


def round_bias(bias: Tensor, row_scale: Tensor, input_scale: Tensor) -> Tensor:
    """A bias (rows,) in whole units of its accumulator, `row_scale * input_scale`, as the hardware adds it.

    Gradients pass to the bias alone: the units are so small that they do not change its value.
    """
    return fake_quantize(bias, (row_scale * input_scale).detach(), float(qmax(32)))


def quantize(x: Tensor, scale: Tensor, limit: Tensor | float, lowest: Tensor | float | None = None) -> Tensor:
    """The codes of `x`, as floats: rounded half to even and clipped to [lowest, limit]; all broadcast.

    `lowest` is `-limit` where it is not given. With a zero point z (see `functional.ActivationSites`) the result is
    the code less z, so the bounds are those of the codes less z.

    Types of half precision are taken to float32: 8 bits of mantissa do not hold the halves between large codes, and on
    a CPU these passes take less time in float32 than in bfloat16, conversion included.
    """
    return _clip(_ratio(x, scale).round_(), limit, lowest)


def _ratio(x: Tensor, scale: Tensor) -> Tensor:
    return torch.div(x, scale) if x.element_size() > 2 else x.float().div_(scale)


def _clip(codes: Tensor, limit: Tensor | float, lowest: Tensor | float | None) -> Tensor:
    """In place."""
    if not isinstance(limit, Tensor):
        return codes.clamp_(-limit if lowest is None else cast(float, lowest), limit)
    # A CPU clips by tensors faster so than by `clamp_`.
    torch.maximum(codes, -limit if lowest is None else cast(Tensor, lowest), out=codes)
    return torch.minimum(codes, limit, out=codes)


def row_ranges(weight: Tensor) -> Tensor:
    """The largest magnitude of each full row, (rows,)."""
    return weight.detach().abs().amax(dim=1).clamp_(min=SMALLEST_SCALE)


def row_scales(ranges: Tensor, clip: Tensor, *, low_bits: int, high_bits: int) -> tuple[Tensor, Tensor]:
    """Scales of full rows at high and low precision, each (rows,), from the magnitudes of their largest codes.

    Args:
        ranges: (rows,) at high precision.
        clip: (rows,) the share of that at low precision.
    """
    return ranges / qmax(high_bits), ranges * clip / qmax(low_bits)


def search_clip(weight: Tensor, ranges: Tensor, *, low_bits: int, inputs: Tensor | None = None) -> Tensor:
    """The factor of `CLIP_FACTORS` with the least squared error at low precision, for each full row, (rows,).

    Args:
        ranges: (rows,) what the factors are shares of.
        inputs: (inputs,) weighs the error of each weight: with the mean square of its input, the sum is the error of
            the row's output, if inputs are uncorrelated.
    """
    weight = weight.detach()
    limit = qmax(low_bits)
    errors = []
    for factor in CLIP_FACTORS:
        scale = ranges[:, None] * factor / limit
        error = (quantize(weight, scale, limit).mul_(scale) - weight).square()
        errors.append(error.sum(dim=1) if inputs is None else error @ inputs)
    factors = torch.tensor(CLIP_FACTORS, dtype=weight.dtype, device=weight.device)
    return factors[torch.stack(errors).argmin(dim=0)]
