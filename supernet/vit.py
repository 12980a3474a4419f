"""The weight-entangled, row-wise mixed-precision Vision Transformer supernet.

Every subnet uses prefixes of the same tensors: the first channels, the first heads, the first hidden units, the first
blocks; and of a linear's active rows, the first share at high precision (see `supernet.quantize`). The subnet is an
argument: `model(x, subnet)` is pure, and changes no state. What must change is changed explicitly: activation scales
by `Observer.update`, clip factors of low-precision rows by `refresh_clips`.

Scales are measured, from the weights as they are and by running ranges of activations, or after `learn_scales`
learned with the weights. Then each full row has one parameter that serves both precisions, as quantizers of several
widths are related in OQA (Shen et al. 2021, arXiv:2010.04354), and each activation site has one.

Supernet layer scaling (Quasar-ViT): the outputs of attention and MLP are multiplied by learned vectors that start
small, which lets deep and shallow subnets share weights. In hardware they fold into requantization.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from supernet import functional
from supernet.functional import ActivationSites, Linear, Norm, Observer
from supernet.operators.registry import operator
from supernet.plan import LinearPlan, attention_plan, head_plan, mlp_plan, patch_plan, pool_plan
from supernet.pooling import POOL_SITES, pool_tokens
from supernet.quantize import (
    Quantized,
    fake_quantize,
    qmax,
    quantize,
    round_bias,
    row_ranges,
    row_scales,
    search_clip,
    straight_through,
    value_and_slope,
)
from supernet.space import SearchSpace
from supernet.subnet import BlockChoice, Subnet, hidden_units


@functools.lru_cache(maxsize=4096)
def _is_high(rows: int, group: int, high: int, device: torch.device) -> Tensor:
    """True for the rows at high precision, (rows,); see `LinearPlan`. Cached, as a subnet asks for tens of them."""
    # An evaluation may be what asks first, and autograd takes no tensor that was made in inference mode.
    with torch.inference_mode(False):
        return torch.arange(rows, device=device) % group < high


class ElasticLinear(nn.Module):
    """A linear whose prefixes of rows and inputs are used, with rows at two precisions.

    Attributes:
        clip: (rows,) each row's clip factor for its low-precision scale (see `search_clip`).
        log_range: (rows,) learned logarithms of the magnitude of each row's largest code at high precision; None where
            that is the row's largest magnitude.
    """

    clip: Tensor
    log_range: nn.Parameter | None

    def __init__(self, rows: int, inputs: int, *, weight_bits: tuple[int, int]) -> None:
        super().__init__()
        self.low_bits, self.high_bits = weight_bits
        self.weight = nn.Parameter(torch.empty(rows, inputs))
        self.bias = nn.Parameter(torch.zeros(rows))
        nn.init.xavier_uniform_(self.weight)
        self.register_buffer("clip", torch.ones(rows))
        self.register_parameter("log_range", None)
        self.refresh_clip()

    def ranges(self, rows: int | None = None) -> Tensor:
        """Magnitudes of the largest codes at high precision of all rows, or of the first `rows`, (rows,)."""
        return row_ranges(self.weight[:rows]) if self.log_range is None else self.log_range.exp()[:rows]

    def scales(self, rows: int | None = None) -> tuple[Tensor, Tensor]:
        """Scales of all rows, or of the first `rows`, at high and at low precision, both (rows,)."""
        return row_scales(self.ranges(rows), self.clip[:rows], low_bits=self.low_bits, high_bits=self.high_bits)

    def refresh_clip(self) -> None:
        """Searches the clip factors again for the weights and ranges as they are now."""
        self.clip.copy_(search_clip(self.weight, self.ranges().detach(), low_bits=self.low_bits))

    def active(self, plan: LinearPlan, input_scale: Tensor) -> Linear:
        """The effective slice, for an input of that scale; gradients reach the full tensors.

        Quantizes no more than the slice: the cheapest way if the weights serve one subnet (see `QuantizedOnce`).
        """
        scale, limit = self._scale_and_limit(plan)
        weight = self.weight[: plan.rows, : plan.inputs]
        return Linear(
            fake_quantize(weight, scale[:, None], limit[:, None]),
            round_bias(self.bias[: plan.rows], scale, input_scale),
        )

    def codes(self, plan: LinearPlan) -> tuple[Tensor, Tensor]:
        """Integer codes (rows, inputs) as int8 and scales (rows,) of the active slice."""
        scale, limit = (tensor.detach() for tensor in self._scale_and_limit(plan))
        weight = self.weight.detach()[: plan.rows, : plan.inputs]
        return quantize(weight, scale[:, None], limit[:, None]).to(torch.int8), scale

    def stores(self) -> tuple[Tensor, Tensor]:
        """The two integer stores: all rows at high and all rows at low precision, int8 (rows, inputs)."""
        high, low = (
            quantize(self.weight.detach(), scale.detach()[:, None], float(qmax(bits))).to(torch.int8)
            for scale, bits in zip(self.scales(), (self.high_bits, self.low_bits), strict=True)
        )
        return high, low

    @torch.no_grad()
    def dequantized_stores(self) -> tuple[Quantized, Quantized, tuple[Tensor, Tensor]]:
        """All rows at high and all at low precision (rows, inputs), as `code * scale`, and both scales (rows,)."""
        scales = self.scales()
        high, low = (
            Quantized(fake_quantize(self.weight, scale[:, None], float(qmax(bits))), None)
            if self.log_range is None
            else value_and_slope(self.weight, scale[:, None], float(qmax(bits)))
            for scale, bits in zip(scales, (self.high_bits, self.low_bits), strict=True)
        )
        return high, low, scales

    def _scale_and_limit(self, plan: LinearPlan) -> tuple[Tensor, Tensor]:
        is_high = _is_high(plan.rows, plan.group, plan.high, self.weight.device)
        limit = torch.where(is_high, float(qmax(self.high_bits)), float(qmax(self.low_bits)))
        return torch.where(is_high, *self.scales(plan.rows)), limit


class Weights(Protocol):
    """Where a forward pass takes the effective weights of its linears from."""

    def __call__(self, linear: ElasticLinear, plan: LinearPlan, input_scale: Tensor) -> Linear:
        """The effective slice that `plan` names, for an input of scale `input_scale`."""
        ...


def quantized(linear: ElasticLinear, plan: LinearPlan, input_scale: Tensor) -> Linear:
    """Quantizes the slice when it is used."""
    return linear.active(plan, input_scale)


def unquantized(linear: ElasticLinear, plan: LinearPlan, input_scale: Tensor) -> Linear:
    """The float slice: for reference, and for phases of training without quantization."""
    return Linear(linear.weight[: plan.rows, : plan.inputs], linear.bias[: plan.rows])


class QuantizedOnce:
    """Quantizes each linear on its first use, at both precisions, and serves slices of that from then on.

    For the several subnets of one training step: make a new one when the weights have changed. Since a row's scale
    does not depend on the slice, the values are those of `quantized`, bit for bit. Each slice is a graph of its own,
    so the subnets of a step can be differentiated one after the other.
    """

    def __init__(self) -> None:
        self._stores: dict[ElasticLinear, tuple[Quantized, Quantized, tuple[Tensor, Tensor]]] = {}

    def __call__(self, linear: ElasticLinear, plan: LinearPlan, input_scale: Tensor) -> Linear:
        """See `Weights`."""
        if linear not in self._stores:
            self._stores[linear] = linear.dequantized_stores()
        high, low, scales = self._stores[linear]
        n, k = plan.rows, plan.inputs
        if linear.log_range is not None:
            scales = linear.scales(n)  # again: the subnets share values, but no graph
        scale = _rows(plan, *scales)
        # Contiguous, as the values of `quantized` are: products of strided matrices may be summed in another order.
        value = _rows(plan, high.value[:, :k], low.value[:, :k]).contiguous()
        slope = None
        if high.slope is not None and low.slope is not None:
            slope = _rows(plan, high.slope[:, :k], low.slope[:, :k])
        weight = straight_through(linear.weight[:n, :k], scale[:, None], Quantized(value, slope))
        return Linear(weight, round_bias(linear.bias[:n], scale, input_scale))


class CodesOnce:
    """As `QuantizedOnce`, but linears multiply codes; for subnets whose weights change no more.

    A linear's input has the codes of `ActivationSites.coder`, with the zero point of its site in them, which the bias
    takes away again.
    """

    def __init__(self) -> None:
        self._stores: dict[ElasticLinear, tuple[Tensor, Tensor, tuple[Tensor, Tensor]]] = {}

    def weights(self, zero_points: Mapping[str, Tensor]) -> Weights:
        """The weights of linears whose inputs have these zero points, by site."""

        def linear_of(linear: ElasticLinear, plan: LinearPlan, input_scale: Tensor) -> Linear:
            if linear not in self._stores:
                self._stores[linear] = (*linear.stores(), linear.scales())
            high, low, scales = self._stores[linear]
            codes = _rows(plan, high[:, : plan.inputs], low[:, : plan.inputs]).contiguous()
            scale = _rows(plan, *scales)
            bias = round_bias(linear.bias[: plan.rows], scale, input_scale)
            shift = zero_points[plan.site] * codes.sum(dim=1, dtype=torch.int32)
            return Linear(codes, bias - shift * (scale * input_scale), scale * input_scale)

        return linear_of


def _rows(plan: LinearPlan, high: Tensor, low: Tensor) -> Tensor:
    """The active rows, each from the tensor of its precision: (rows, ...) of two tensors with as many rows or more."""
    n = plan.rows
    if plan.rows_high in (0, n):
        return high[:n] if plan.high else low[:n]
    if plan.group == n:
        return torch.cat([high[: plan.high], low[plan.high : n]])
    is_high = _is_high(n, plan.group, plan.high, high.device)
    return torch.where(is_high if high.dim() == 1 else is_high[:, None], high[:n], low[:n])


class ElasticNorm(nn.Module):
    """A LayerNorm over a prefix of the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def active(self, width: int) -> Norm:
        """Weight and bias of the first `width` channels."""
        return Norm(self.weight[:width], self.bias[:width])


class ElasticAttention(nn.Module):
    """Elastic multi-head attention: the torch side of the operator "attention".

    A token mixer is a module of `ElasticLinear`s with an attribute `sites` and, independent of any instance,
    `site_names`, `plan` (which slices a block uses) and `mix` (the operator on effective weights). An extracted
    block needs only those: it runs `mix` on its own linears. What `mix` gives a linear is what the quantizer gave it at
    the site of that linear, in another shape at most: both may be codes.
    """

    site_names = functional.ATTENTION_SITES
    plan = staticmethod(attention_plan)
    mix = staticmethod(functional.attention)

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        inner, width = space.max_heads * space.head_dim, space.embed_dim[-1]
        self.qkv = ElasticLinear(3 * inner, width, weight_bits=space.weight_bits)
        self.proj = ElasticLinear(width, inner, weight_bits=space.weight_bits)
        self.sites = ActivationSites(self.site_names, bits=space.act_bits)


class ElasticMlp(nn.Module):
    """The MLP of a block with an elastic number of hidden units."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        width = space.embed_dim[-1]
        hidden = int(hidden_units(space.mlp_ratio[-1], width))
        self.fc1 = ElasticLinear(hidden, width, weight_bits=space.weight_bits)
        self.fc2 = ElasticLinear(width, hidden, weight_bits=space.weight_bits)


def active_linears(
    module: nn.Module, plans: dict[str, LinearPlan], scales: dict[str, Tensor], weights: Weights
) -> dict[str, Linear]:
    """The effective linears of `module` that `plans` names; `scales` are those of the activation sites."""
    return {
        name: weights(cast(ElasticLinear, module.get_submodule(name)), plan, scales[plan.site])
        for name, plan in plans.items()
    }


class ElasticBlock(nn.Module):
    """A pre-norm encoder block with one mixer module for each operator of the space."""

    def __init__(self, space: SearchSpace, *, layer_scale: float | None) -> None:
        super().__init__()
        width = space.embed_dim[-1]
        self.norm1, self.norm2 = ElasticNorm(width), ElasticNorm(width)
        self.mixers = nn.ModuleDict({name: operator(name).load_module()(space) for name in space.operator})
        self.mlp = ElasticMlp(space)
        self.sites = ActivationSites(
            functional.BLOCK_SITES, bits=space.act_bits, asymmetric=functional.ASYMMETRIC_SITES
        )
        self.scale1 = nn.Parameter(torch.full((width,), layer_scale)) if layer_scale else None
        self.scale2 = nn.Parameter(torch.full((width,), layer_scale)) if layer_scale else None

    def forward(
        self,
        x_BTD: Tensor,
        subnet: Subnet,
        block: BlockChoice,
        observer: Observer | None,
        *,
        weights: Weights,
        drop_path_2B: Tensor | None,
        auxiliary: float = 0.0,
    ) -> Tensor:
        """The residual stream (B, T, D) after the block; see `SupernetViT.forward`."""
        return self.of(subnet, block, observer, weights=weights, drop_path_2B=drop_path_2B)(x_BTD, auxiliary=auxiliary)

    def of(
        self,
        subnet: Subnet,
        block: BlockChoice,
        observer: Observer | None,
        *,
        weights: Weights,
        drop_path_2B: Tensor | None,
    ) -> functools.partial[Tensor]:
        """The block as it is in a subnet: a function of the residual stream that has its weights already."""
        width = subnet.embed_dim
        mixer = cast(ElasticAttention, self.mixers[block.operator])
        scales = self.sites.scales() | mixer.sites.scales()
        return functools.partial(
            functional.encoder_block,
            norm1=self.norm1.active(width),
            norm2=self.norm2.active(width),
            scale1=_branch_scale(self.scale1, width, None if drop_path_2B is None else drop_path_2B[0]),
            scale2=_branch_scale(self.scale2, width, None if drop_path_2B is None else drop_path_2B[1]),
            mix=mixer.mix,
            mixer=active_linears(mixer, mixer.plan(subnet, block), scales, weights),
            mlp=active_linears(self.mlp, mlp_plan(subnet, block), scales, weights),
            head_dim=subnet.head_dim,
            mixer_quantizer=mixer.sites.quantizer(observer),
            quantizer=self.sites.quantizer(observer),
        )


def _branch_scale(layer_scale: Tensor | None, width: int, drop_path_B: Tensor | None) -> Tensor | None:
    """What a residual branch is multiplied by: (D,), or with a factor for each image (B, 1, D) or (B, 1, 1)."""
    scale_D = None if layer_scale is None else layer_scale[:width]
    if drop_path_B is None:
        return scale_D
    drop_path_B11 = drop_path_B[:, None, None]
    return drop_path_B11 if scale_D is None else drop_path_B11 * scale_D


class ElasticPool(nn.Module):
    """What makes one patch of 2 x 2. Inputs are ordered by channel, so those of a narrower subnet are a prefix."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        width = space.embed_dim[-1]
        self.norm = ElasticNorm(width)
        self.merge = ElasticLinear(width, 4 * width, weight_bits=space.weight_bits)
        self.sites = ActivationSites(POOL_SITES, bits=space.act_bits)

    def of(self, subnet: Subnet, observer: Observer | None, *, weights: Weights) -> functools.partial[Tensor]:
        """The pooling as it is in a subnet: a function of the residual stream that has its weights already."""
        return functools.partial(
            pool_tokens,
            norm=self.norm.active(subnet.embed_dim),
            merge=weights(self.merge, pool_plan(subnet), self.sites.scales()["pooled"]),
            quantizer=self.sites.quantizer(observer),
        )


class SupernetViT(nn.Module):
    """The supernet of a search space; `model(x, subnet)` gives the logits of one subnet.

    Args:
        space: what the subnets may be; tensors are as large as its largest choices.
        layer_scale: initial value of supernet layer scaling, or None to leave it out.
    """

    def __init__(self, space: SearchSpace, *, layer_scale: float | None) -> None:
        super().__init__()
        self.space = space
        width = space.embed_dim[-1]
        grid = space.image_size[-1] // space.patch_size
        self.patch_embed = ElasticLinear(width, space.in_chans * space.patch_size**2, weight_bits=space.weight_bits)
        self.cls_token = nn.Parameter(torch.randn(width) * 0.02)
        self.position = nn.Parameter(torch.randn(grid**2 + 1, width) * 0.02)
        self.blocks = nn.ModuleList(ElasticBlock(space, layer_scale=layer_scale) for _ in range(space.max_depth))
        self.norm = ElasticNorm(width)
        self.head = ElasticLinear(space.num_classes, width, weight_bits=space.weight_bits)
        self.sites = ActivationSites(functional.STEM_SITES, bits=space.act_bits)
        places = sorted({place for choice in space.pooling for place in choice})
        self.pools = nn.ModuleDict({str(place): ElasticPool(space) for place in places})

    def forward(
        self,
        x_BCHW: Tensor,
        subnet: Subnet,
        observer: Observer | None = None,
        *,
        weights: Weights = quantized,
        drop_path_L2B: Tensor | None = None,
        auxiliary: float = 0.0,
    ) -> Tensor:
        """Logits (B, num_classes) of `subnet` for normalised images, which are resized to its image size.

        Args:
            observer: collects the activation ranges of this pass (training and calibration).
            weights: gives the effective weights.
            drop_path_L2B: factors of the two residual branches of each block, for each image: stochastic depth.
            auxiliary: weight of what operators add in training alone; 0 leaves it out.

        Raises:
            UsageError: the subnet is outside the space.
        """
        self.space.encode(subnet)  # raises if the subnet is outside the space
        width = subnet.embed_dim
        quantizer, scales = self.sites.quantizer(observer), self.sites.scales()
        x_BTD = functional.embed_patches(
            quantizer("image", functional.resize_images(x_BCHW, subnet.image_size)),
            weights(self.patch_embed, patch_plan(subnet), scales["image"]),
            self.cls_token[:width],
            functional.resize_position(self.position, subnet.image_size // subnet.patch_size)[:, :width],
            patch_size=subnet.patch_size,
        )
        for index, (module, block) in enumerate(zip(self.blocks, subnet.blocks, strict=False)):
            if index in subnet.pooling:
                x_BTD = self.pool(index).of(subnet, observer, weights=weights)(x_BTD)
            drop_path_2B = None if drop_path_L2B is None else drop_path_L2B[index]
            x_BTD = module(
                x_BTD, subnet, block, observer, weights=weights, drop_path_2B=drop_path_2B, auxiliary=auxiliary
            )
        x_BD = quantizer("norm", self.norm.active(width)(x_BTD[:, 0]))
        return weights(self.head, head_plan(subnet), scales["norm"])(x_BD)

    def pool(self, block: int) -> ElasticPool:
        """What pools before a block."""
        return cast(ElasticPool, self.pools[str(block)])

    def refresh_clips(self) -> None:
        """Searches the clip factors of all low-precision rows again; once an epoch is enough."""
        for linear in self._linears():
            linear.refresh_clip()

    def learn_scales(self) -> None:
        """Makes the scales of rows and activations parameters, which start as those measured now.

        To be called once, before there is an optimizer. Vectors, which weight decay leaves alone as it does biases.
        """
        for linear in self._linears():
            linear.log_range = nn.Parameter(linear.ranges().log())
        for module in self.modules():
            if isinstance(module, ActivationSites):
                module.learn_scale()

    @torch.no_grad()
    def measure_rows(self) -> None:
        """Sets learned scales of rows to those of the weights as they are; does nothing where they are measured."""
        for linear in self._linears():
            if linear.log_range is not None:
                linear.log_range.copy_(row_ranges(linear.weight).log())

    def _linears(self) -> Iterator[ElasticLinear]:
        return (module for module in self.modules() if isinstance(module, ElasticLinear))
