"""An extracted subnet: a module of its own, with integer weight codes, that gives the supernet's outputs bit for bit.

It holds what an exporter needs and nothing else: for each linear the int8 codes, one scale per row and the bias; the
norms; the static activation scales and integer zero points. `subnet` alone determines all shapes, so a state dict
loads into `SubnetViT(subnet, ...)` without the supernet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from hwmodel.errors import DamagedInputError
from supernet import functional
from supernet.functional import ActivationSites, Linear, Norm, Observer
from supernet.operators.registry import operator
from supernet.plan import LinearPlan, head_plan, mlp_plan, patch_plan, pool_plan
from supernet.pooling import POOL_SITES, pool_tokens
from supernet.subnet import BlockChoice, Subnet
from supernet.vit import ElasticBlock, ElasticLinear, ElasticNorm, ElasticPool, SupernetViT


class QuantLinear(nn.Module):
    """A linear with integer codes (rows, inputs), a scale for each row, and a bias in units of the accumulator."""

    codes: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, plan: LinearPlan) -> None:
        super().__init__()
        self.plan = plan
        self.register_buffer("codes", torch.zeros(plan.rows, plan.inputs, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(plan.rows))
        self.register_buffer("bias", torch.zeros(plan.rows))

    def active(self) -> Linear:
        """The effective weight and bias."""
        return Linear(self.codes.to(self.scale.dtype) * self.scale[:, None], self.bias)

    def take(self, source: ElasticLinear, scales: dict[str, Tensor]) -> None:
        """Copies the slice that the plan names; `scales` are those of the activation sites."""
        codes, scale = source.codes(self.plan)
        self.codes.copy_(codes)
        self.scale.copy_(scale)
        self.bias.copy_(source.active(self.plan, scales[self.plan.site]).bias)


class LayerNorm(nn.Module):
    """Weight and bias of a LayerNorm."""

    weight: Tensor
    bias: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))

    def active(self) -> Norm:
        """Both, as the forward pass takes them."""
        return Norm(self.weight, self.bias)

    def take(self, source: ElasticNorm) -> None:
        """Copies the channels in use."""
        width = self.weight.shape[0]
        self.weight.copy_(source.weight.detach()[:width])
        self.bias.copy_(source.bias.detach()[:width])


class SubnetBlock(nn.Module):
    """One encoder block of an extracted subnet."""

    scale1: Tensor | None
    scale2: Tensor | None

    def __init__(self, subnet: Subnet, block: BlockChoice, *, layer_scale: bool) -> None:
        super().__init__()
        width = subnet.embed_dim
        mixer = operator(block.operator).load_module()
        self.mix: functional.Mix = mixer.mix
        self.head_dim = subnet.head_dim
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.mixer = nn.ModuleDict({k: QuantLinear(plan) for k, plan in mixer.plan(subnet, block).items()})
        self.mlp = nn.ModuleDict({k: QuantLinear(plan) for k, plan in mlp_plan(subnet, block).items()})
        self.mixer_sites = ActivationSites(mixer.site_names, bits=subnet.act_bits)
        self.sites = ActivationSites(
            functional.BLOCK_SITES, bits=subnet.act_bits, asymmetric=functional.ASYMMETRIC_SITES
        )
        self.register_buffer("scale1", torch.ones(width) if layer_scale else None)
        self.register_buffer("scale2", torch.ones(width) if layer_scale else None)

    def forward(self, x_BTD: Tensor, observer: Observer | None) -> Tensor:
        """The residual stream (B, T, D) after the block."""
        return functional.encoder_block(
            x_BTD,
            norm1=self.norm1.active(),
            norm2=self.norm2.active(),
            scale1=self.scale1,
            scale2=self.scale2,
            mix=self.mix,
            mixer=_active(self.mixer),
            mlp=_active(self.mlp),
            head_dim=self.head_dim,
            mixer_quantizer=self.mixer_sites.quantizer(observer),
            quantizer=self.sites.quantizer(observer),
        )

    def take(self, source: ElasticBlock, block: BlockChoice) -> None:
        """Copies the slices that the block uses."""
        width = self.norm1.weight.shape[0]
        self.norm1.take(source.norm1)
        self.norm2.take(source.norm2)
        mixer = source.mixers[block.operator]
        sites = cast(ActivationSites, mixer.sites)
        scales = source.sites.scales() | sites.scales()
        for linears, elastic in ((self.mixer, mixer), (self.mlp, source.mlp)):
            for name, linear in linears.items():
                cast(QuantLinear, linear).take(cast(ElasticLinear, elastic.get_submodule(name)), scales)
        self.mixer_sites.take(sites)
        self.sites.take(source.sites)
        for ours, theirs in ((self.scale1, source.scale1), (self.scale2, source.scale2)):
            if ours is not None and theirs is not None:
                ours.copy_(theirs.detach()[:width])


class SubnetPool(nn.Module):
    """What makes one patch of 2 x 2 in an extracted subnet."""

    def __init__(self, subnet: Subnet) -> None:
        super().__init__()
        self.norm = LayerNorm(subnet.embed_dim)
        self.merge = QuantLinear(pool_plan(subnet))
        self.sites = ActivationSites(POOL_SITES, bits=subnet.act_bits)

    def forward(self, x_BTD: Tensor, observer: Observer | None) -> Tensor:
        """The residual stream (B, T', D) with a quarter of the patches."""
        return pool_tokens(
            x_BTD, norm=self.norm.active(), merge=self.merge.active(), quantizer=self.sites.quantizer(observer)
        )

    def take(self, source: ElasticPool) -> None:
        """Copies the slices that the subnet uses."""
        self.norm.take(source.norm)
        self.merge.take(source.merge, source.sites.scales())
        self.sites.take(source.sites)


def _active(linears: nn.ModuleDict) -> dict[str, Linear]:
    return {name: cast(QuantLinear, linear).active() for name, linear in linears.items()}


class SubnetViT(nn.Module):
    """A quantized Vision Transformer of fixed shape; see the module's docstring.

    Args:
        subnet: its architecture and row precisions.
        layer_scale: whether the supernet had layer scaling.
    """

    cls_token: Tensor
    position: Tensor

    def __init__(self, subnet: Subnet, *, layer_scale: bool) -> None:
        super().__init__()
        self.subnet = subnet
        self.patch_embed = QuantLinear(patch_plan(subnet))
        self.register_buffer("cls_token", torch.zeros(subnet.embed_dim))
        self.register_buffer("position", torch.zeros(subnet.tokens, subnet.embed_dim))
        self.blocks = nn.ModuleList(SubnetBlock(subnet, block, layer_scale=layer_scale) for block in subnet.blocks)
        self.norm = LayerNorm(subnet.embed_dim)
        self.head = QuantLinear(head_plan(subnet))
        self.sites = ActivationSites(functional.STEM_SITES, bits=subnet.act_bits)
        self.pools = nn.ModuleDict({str(place): SubnetPool(subnet) for place in subnet.pooling})

    def forward(self, x_BCHW: Tensor, observer: Observer | None = None) -> Tensor:
        """Logits (B, num_classes) for normalised images, which are resized to the subnet's image size."""
        x_BTD = self.encode(x_BCHW, observer)
        x_BD = self.sites.quantizer(observer)("norm", self.norm.active()(x_BTD[:, 0]))
        return self.head.active()(x_BD)

    def encode(self, x_BCHW: Tensor, observer: Observer | None = None) -> Tensor:
        """The residual stream (B, T, D) after the last block, for the same images."""
        x_BTD = functional.embed_patches(
            self.sites.quantizer(observer)("image", functional.resize_images(x_BCHW, self.subnet.image_size)),
            self.patch_embed.active(),
            self.cls_token,
            self.position,
            patch_size=self.subnet.patch_size,
        )
        for index, block in enumerate(self.blocks):
            if index in self.subnet.pooling:
                x_BTD = self.pools[str(index)](x_BTD, observer)
            x_BTD = block(x_BTD, observer)
        return x_BTD

    def load(self, state: Mapping[str, Tensor], *, source: str) -> None:
        """Loads a state dict, strictly; raises `DamagedInputError` naming `source` and the first wrong tensor."""
        own = self.state_dict()
        # Files from before there were zero points: all sites were symmetric.
        state = {name: torch.zeros_like(own[name]) for name in own if name.endswith("zero_point")} | dict(state)
        for name in sorted(own.keys() | state.keys()):
            if name not in state:
                raise DamagedInputError(f"{source}: tensor '{name}' is missing")
            if name not in own:
                raise DamagedInputError(f"{source}: tensor '{name}' does not belong to this subnet")
            if own[name].shape != state[name].shape or own[name].dtype != state[name].dtype:
                raise DamagedInputError(
                    f"{source}: tensor '{name}' is {state[name].dtype} {tuple(state[name].shape)}, "
                    f"the subnet needs {own[name].dtype} {tuple(own[name].shape)}"
                )
        self.load_state_dict(state)


@torch.no_grad()
def extract(supernet: SupernetViT, subnet: Subnet) -> SubnetViT:
    """The standalone module of one subnet, on the supernet's device.

    Raises:
        UsageError: the subnet is outside the supernet's space.
    """
    supernet.space.encode(subnet)
    first = cast(ElasticBlock, supernet.blocks[0])
    module = SubnetViT(subnet, layer_scale=first.scale1 is not None).to(supernet.cls_token.device)
    width = subnet.embed_dim
    scales = supernet.sites.scales()
    module.patch_embed.take(supernet.patch_embed, scales)
    module.head.take(supernet.head, scales)
    module.norm.take(supernet.norm)
    module.sites.take(supernet.sites)
    module.cls_token.copy_(supernet.cls_token[:width])
    grid = subnet.image_size // subnet.patch_size
    module.position.copy_(functional.resize_position(supernet.position, grid)[:, :width])
    for ours, theirs, block in zip(module.blocks, supernet.blocks, subnet.blocks, strict=False):
        cast(SubnetBlock, ours).take(cast(ElasticBlock, theirs), block)
    for place in subnet.pooling:
        cast(SubnetPool, module.pools[str(place)]).take(supernet.pool(place))
    return module.eval()
