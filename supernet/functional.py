"""The forward pass of a quantized Vision Transformer, shared by the supernet and by extracted subnets.

Both hand the same values to the same operations, so an extracted subnet gives the supernet's outputs bit for bit.
Shape suffixes: B images, T tokens, D channels, H heads, N channels of a head, C image channels, M hidden units.

The activations are quantized where the hardware writes them to a buffer: the image, the normalised input of each
linear, q, k and v, the mixed values, and the hidden units before and after GELU. The residual stream and the
attention scores are floats here; the hardware has codes of 16 and of 8 bits for them (`supernet.integer_vit`).

What leaves GELU is nowhere below -0.17, so symmetric codes would waste nearly half of their range there. That site has
a zero point; see `ActivationSites` for what it means in integers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor, nn

from supernet.quantize import SMALLEST_SCALE, fake_quantize, qmax, quantize

#: quantizes at a named site of the group at hand
Quantizer = Callable[[str, Tensor], Tensor]


class Linear(NamedTuple):
    """A linear's effective (dequantized) weight (rows, inputs) and bias (rows,).

    With a `scale` (rows,), the weight holds codes, int8, and so does what it is called with (`ActivationSites.coder`).
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """`x @ weight.T + bias`; of codes `scale * (x @ weight.T) + bias` in float32, where the product is exact."""
        if self.scale is None:
            return F.linear(x, self.weight, self.bias)
        product = torch._int_mm(x.reshape(-1, x.shape[-1]), self.weight.T)
        return torch.addcmul(self.bias, product, self.scale).reshape(*x.shape[:-1], -1)


class Norm(NamedTuple):
    """Weight and bias of a LayerNorm, both (D,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """`x` normalised over its last dimension."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, eps=1e-6)


class Observer:
    """Collects the range of each activation site while a model runs; an argument, never module state.

    With `quantize=False` the sites pass their input on unchanged: the first calibration sees float activations.

    Attributes:
        ranges: the smallest and the largest value seen at each site.
    """

    def __init__(self, *, quantize: bool = True) -> None:
        self.quantize = quantize
        self.ranges: dict[tuple[ActivationSites, int], tuple[Tensor, Tensor]] = {}

    def record(self, sites: ActivationSites, index: int, x: Tensor) -> None:
        """Notes the extreme values of `x` at one site, unless nothing there follows them."""
        if self.quantize and sites.log_gain is not None and not sites.asymmetric[index]:
            return
        smallest, largest = x.detach().aminmax()
        if (sites, index) in self.ranges:
            seen = self.ranges[sites, index]
            smallest, largest = torch.minimum(smallest, seen[0]), torch.maximum(largest, seen[1])
        self.ranges[sites, index] = smallest, largest

    def unite(self, maximum: Callable[[Tensor], None]) -> None:
        """Widens the ranges to those of all observers that saw other images of the same batch.

        Args:
            maximum: replaces each element of a tensor by the largest of all observers.
        """
        ends_S2 = torch.stack([torch.stack([-smallest, largest]) for smallest, largest in self.ranges.values()])
        maximum(ends_S2)
        self.ranges = {site: (-ends_2[0], ends_2[1]) for site, ends_2 in zip(self.ranges, ends_S2, strict=True)}

    def update(self, *, momentum: float) -> None:
        """Moves the range of each site towards the one seen: `m * range + (1 - m) * seen`, at both ends.

        Of learned scales, quantized passes move the lower end of asymmetric sites, and nothing else.
        """
        for (sites, index), (smallest, largest) in self.ranges.items():
            if self.quantize and sites.log_gain is not None:
                sites.move_start(index, smallest, momentum=momentum)
            else:
                sites.move_range(index, smallest, largest, momentum=momentum)
        self.ranges.clear()


class ActivationSites(nn.Module):
    """Static per-tensor quantization of a group of named activation sites: a scale s and a zero point z each.

    A code q stands for `(q - z) * s`. Symmetric sites have z = 0 and codes in [-127, 127] (8 bits). Asymmetric ones
    have codes in [-128, 127] and an integer z such that the range covers what the site sees, from below 0 to above.

    In hardware z is free: the table of the function before the site (GELU) holds codes with z in them, and the linear
    behind it takes it away in its bias: `sum_k w_k * (q_k - z) + b = sum_k w_k * q_k + b'` with
    `b' = b - z * sum_k w_k`, in integers and exact. Inputs that pad a row to the width of an array need weights of 0;
    then their codes do not matter, and those of value 0 need not be z.

    A learned scale leaves the lower end of an asymmetric range where it is, which follows what the site sees in any
    case: behind GELU that hardly moves, and z is an integer that no gradient could move by less than a code.

    Attributes:
        scale: (S,) for S sites, as measured.
        zero_point: (S,), rounded where it is used, so that a running range can move it by less than one code; in
            codes of `scale`, as it was measured.
        log_gain: (S,) learned logarithms of what `scale` is multiplied by; None where that is 1.
        asymmetric: which sites may have a zero point other than 0, S of them.
        limit: the largest code; the smallest is `-limit` at symmetric sites, one less at asymmetric ones.
    """

    scale: Tensor
    zero_point: Tensor
    log_gain: nn.Parameter | None

    def __init__(self, names: tuple[str, ...], *, bits: int, asymmetric: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.names = names
        self.asymmetric = tuple(name in asymmetric for name in names)
        self.limit = float(qmax(bits))
        self.register_buffer("scale", torch.ones(len(names)))
        self.register_buffer("zero_point", torch.zeros(len(names)))
        self.register_parameter("log_gain", None)

    def scales(self) -> dict[str, Tensor]:
        """The scale of each site by name."""
        return dict(zip(self.names, self._scale_in_use().unbind(), strict=True))

    def zero_points(self) -> dict[str, Tensor]:
        """The zero point of each site by name, whole numbers; 0 at symmetric sites."""
        return {name: self._zero_point_in_use(index) for index, name in enumerate(self.names)}

    def learn_scale(self) -> None:
        """Makes the scales learned, from what they are now."""
        self.log_gain = nn.Parameter(torch.zeros_like(self.scale))

    def _scale_in_use(self) -> Tensor:
        return self.scale if self.log_gain is None else self.scale * self.log_gain.exp()

    def _zero_point_in_use(self, index: int) -> Tensor:
        """The integer zero point of a site for the scale in use: the lower end of the range stays where it is."""
        zero_point = self.zero_point[index]
        if self.log_gain is not None and self.asymmetric[index]:
            lowest_code = -self.limit - 1
            codes_below = (zero_point - lowest_code) * (-self.log_gain[index].detach()).exp()
            zero_point = (lowest_code + codes_below).clamp(max=self.limit)
        return zero_point.round()

    @torch.no_grad()
    def move_start(self, index: int, smallest: Tensor, *, momentum: float) -> None:
        """Moves the lower end of an asymmetric site's range towards `smallest`, and leaves its scale."""
        start = self._moved_start(index, smallest, momentum)
        self.zero_point[index] = -self.limit - 1 - start / self.scale[index]

    def _moved_start(self, index: int, smallest: Tensor, momentum: float) -> Tensor:
        # 0 must have a code of its own, as values that GELU takes to 0 are frequent.
        start = (-self.limit - 1 - self.zero_point[index]) * self.scale[index]
        return start * momentum + smallest.clamp(max=0.0) * (1 - momentum)

    @torch.no_grad()
    def move_range(self, index: int, smallest: Tensor, largest: Tensor, *, momentum: float = 0.0) -> None:
        """Moves the range of a site towards [smallest, largest], by all of the way without `momentum`.

        A scale that is learned starts again at what was measured.
        """
        if self.log_gain is not None:
            self.log_gain[index] = 0.0
        scale = self.scale[index]
        if not self.asymmetric[index]:
            seen = torch.maximum(largest, -smallest).clamp(min=SMALLEST_SCALE) / self.limit
            scale.mul_(momentum).add_(seen, alpha=1 - momentum)
            return
        start = self._moved_start(index, smallest, momentum)
        reach = largest.clamp(min=0.0) - smallest.clamp(max=0.0)
        seen = reach.clamp(min=SMALLEST_SCALE) / (2 * self.limit + 1)
        scale.mul_(momentum).add_(seen, alpha=1 - momentum)
        self.zero_point[index] = -self.limit - 1 - start / scale

    def take(self, source: ActivationSites) -> None:
        """Copies the scales and the rounded zero points of another group of the same sites."""
        self.scale.copy_(source._scale_in_use())
        self.zero_point.copy_(torch.stack([source._zero_point_in_use(index) for index in range(len(self.names))]))

    def quantizer(self, observer: Observer | None) -> Quantizer:
        """A function `(site, x)` that gives `x` as the hardware would see it there; `observer` watches."""
        scales = self._scale_in_use()

        def quantize_at(site: str, x: Tensor) -> Tensor:
            index = self.names.index(site)
            if observer is not None:
                observer.record(self, index, x)
                if not observer.quantize:
                    return x
            if not self.asymmetric[index]:
                return fake_quantize(x, scales[index], self.limit)
            zero = self._zero_point_in_use(index)
            return fake_quantize(x, scales[index], self.limit - zero, -self.limit - 1 - zero)

        return quantize_at

    def coder(self, coded: Collection[str]) -> Quantizer:
        """As `quantizer`, but at the sites `coded` it gives codes, int8, with the zero point in them."""
        values, scales = self.quantizer(None), self.scales()
        zero_points = {name: zero.item() for name, zero in self.zero_points().items() if name in coded}

        def code_at(site: str, x: Tensor) -> Tensor:
            if site not in coded:
                return values(site, x)
            zero, lowest = zero_points[site], -self.limit - self.asymmetric[self.names.index(site)]
            codes = quantize(x, scales[site], self.limit - zero, lowest - zero)
            return (codes.add_(zero) if zero else codes).to(torch.int8)

        return code_at

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # Files from before there were zero points: all sites were symmetric.
        state_dict.setdefault(f"{prefix}zero_point", torch.zeros_like(self.scale))
        super()._load_from_state_dict(state_dict, prefix, *args)


class Mix(Protocol):
    """A token mixer on effective weights; see `attention`."""

    def __call__(
        self,
        x_BTD: Tensor,
        linears: dict[str, Linear],
        *,
        head_dim: int,
        quantizer: Quantizer,
        auxiliary: float = 0.0,
    ) -> Tensor:
        """The mixed tokens (B, T, D).

        Args:
            auxiliary: weight of what the operator adds in training alone, if it does; see `supernet.step`.
        """
        ...


ATTENTION_SITES = ("q", "k", "v", "mixed")
BLOCK_SITES = ("norm1", "norm2", "fc1", "gelu")
#: those of them with a zero point
ASYMMETRIC_SITES = ("gelu",)
STEM_SITES = ("image", "norm")


def embed_patches(x_BCHW: Tensor, patch: Linear, cls_D: Tensor, position_TD: Tensor, *, patch_size: int) -> Tensor:
    """Image to tokens (B, T, D): patches in row order after the class token, with position embeddings."""
    weight = patch.weight.reshape(patch.weight.shape[0], x_BCHW.shape[1], patch_size, patch_size)
    x_BTD = F.conv2d(x_BCHW, weight, patch.bias, stride=patch_size).flatten(2).transpose(1, 2)
    cls_B1D = cls_D.expand(x_BTD.shape[0], 1, -1)
    return torch.cat([cls_B1D, x_BTD], dim=1) + position_TD


def heads_of(
    x_BTD: Tensor, linears: dict[str, Linear], *, head_dim: int, quantizer: Quantizer
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v (B, H, T, N) at their sites; the rows of qkv are ordered (head, q|k|v, channel).

    So a prefix of the rows keeps whole heads.
    """
    batch, tokens, _ = x_BTD.shape
    qkv_BTH3N = linears["qkv"](x_BTD).reshape(batch, tokens, -1, 3, head_dim)
    q_BHTN, k_BHTN, v_BHTN = qkv_BTH3N.permute(3, 0, 2, 1, 4).unbind(0)
    return quantizer("q", q_BHTN), quantizer("k", k_BHTN), quantizer("v", v_BHTN)


def project(mixed_BHTN: Tensor, linears: dict[str, Linear], *, quantizer: Quantizer) -> Tensor:
    """The mixed values of all heads, quantized at their site, through the output projection: (B, T, D)."""
    return linears["proj"](quantizer("mixed", mixed_BHTN.transpose(1, 2).flatten(2)))


def attention(
    x_BTD: Tensor, linears: dict[str, Linear], *, head_dim: int, quantizer: Quantizer, auxiliary: float = 0.0
) -> Tensor:
    """Multi-head attention, which adds nothing in training.

    Written out on a CPU, where torch's fused kernel has a slow backward pass in bfloat16 and gains nothing in float32.
    """
    q_BHTN, k_BHTN, v_BHTN = heads_of(x_BTD, linears, head_dim=head_dim, quantizer=quantizer)
    if x_BTD.is_cuda:
        mixed_BHTN = F.scaled_dot_product_attention(q_BHTN, k_BHTN, v_BHTN)
    else:
        mixed_BHTN = (q_BHTN @ k_BHTN.transpose(-2, -1) * head_dim**-0.5).softmax(dim=-1) @ v_BHTN
    return project(mixed_BHTN, linears, quantizer=quantizer)


def feed_forward(x_BTD: Tensor, linears: dict[str, Linear], *, quantizer: Quantizer) -> Tensor:
    """Two linears with GELU between; the hidden units are quantized on both sides of it (a table in hardware)."""
    hidden_BTM = quantizer("fc1", linears["fc1"](x_BTD))
    return linears["fc2"](quantizer("gelu", F.gelu(hidden_BTM)))


def encoder_block(
    x_BTD: Tensor,
    *,
    norm1: Norm,
    norm2: Norm,
    scale1: Tensor | None,
    scale2: Tensor | None,
    mix: Mix,
    mixer: dict[str, Linear],
    mlp: dict[str, Linear],
    head_dim: int,
    mixer_quantizer: Quantizer,
    quantizer: Quantizer,
    auxiliary: float = 0.0,
) -> Tensor:
    """A pre-norm encoder block with layer scaling (`scale1`, `scale2`: (D,) or None); `auxiliary` as in `Mix`."""
    mixed_BTD = mix(
        quantizer("norm1", norm1(x_BTD)), mixer, head_dim=head_dim, quantizer=mixer_quantizer, auxiliary=auxiliary
    )
    x_BTD = x_BTD + (mixed_BTD if scale1 is None else mixed_BTD * scale1)
    out_BTD = feed_forward(quantizer("norm2", norm2(x_BTD)), mlp, quantizer=quantizer)
    return x_BTD + (out_BTD if scale2 is None else out_BTD * scale2)


def resize_images(x_BCHW: Tensor, image_size: int) -> Tensor:
    """Images at `image_size` pixels, bilinear with antialiasing; unchanged if they have that size."""
    if x_BCHW.shape[-1] == image_size and x_BCHW.shape[-2] == image_size:
        return x_BCHW
    return F.interpolate(x_BCHW, size=(image_size, image_size), mode="bilinear", antialias=True, align_corners=False)


def resize_position(position_TD: Tensor, grid: int) -> Tensor:
    """Position embeddings (1 + g*g, D) for a grid of `grid` x `grid` patches; the class token's stays."""
    size = round((position_TD.shape[0] - 1) ** 0.5)
    if size == grid:
        return position_TD
    square = position_TD[1:].T.reshape(1, -1, size, size)
    resized = F.interpolate(square, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([position_TD[:1], resized.flatten(2)[0].T], dim=0)
