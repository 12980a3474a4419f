"""The network of a pooling ViT (`supernet.pit_shape`), trainable by itself, with quantized rows as the supernet has.

Its blocks are those of the supernet, one subnet to a stage, so weights and activations are quantized as in
`supernet.quantize`: the share of rows at high precision that is asked for in the blocks, and all rows in the patch
embedding, the pooling and the heads. The residual stream is float.

Shape suffixes as in `supernet.functional`; K class tokens, G tokens along a side of the grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from timm.layers import trunc_normal_
from torch import Tensor, nn

from supernet import functional
from supernet.functional import ActivationSites, Observer
from supernet.pit_shape import PitShape
from supernet.plan import linear_plan
from supernet.pooling import group_tokens
from supernet.space import SearchSpace
from supernet.subnet import Subnet
from supernet.vit import ElasticBlock, ElasticLinear, ElasticNorm, Weights, quantized


class PitPool(nn.Module):
    """The step between two stages: fewer tokens, more channels."""

    def __init__(self, shape: PitShape, before: Subnet, after: Subnet) -> None:
        super().__init__()
        merge = shape.pooling == "merge"
        bits = (before.low_bits, before.high_bits)
        self.class_tokens = shape.class_tokens
        self.norm = ElasticNorm(before.embed_dim) if merge else None
        self.sites = ActivationSites(("pooled",), bits=before.act_bits)
        # The inputs of a row: its 2 x 2 neighbours channel by channel, or a 3 x 3 window of its only channel.
        self.patches = ElasticLinear(after.embed_dim, 4 * before.embed_dim if merge else 9, weight_bits=bits)
        self.class_token = ElasticLinear(after.embed_dim, before.embed_dim, weight_bits=bits)
        self.plans = {
            name: linear_plan(after, site="pooled", rows=after.embed_dim, inputs=linear.weight.shape[1], ratio=1.0)
            for name, linear in (("patches", self.patches), ("class_token", self.class_token))
        }

    def forward(self, x_BTD: Tensor, observer: Observer | None, *, weights: Weights) -> Tensor:
        """The residual stream (B, T', D') of the next stage."""
        scale = self.sites.scales()["pooled"]
        patches = weights(self.patches, self.plans["patches"], scale)
        class_token = weights(self.class_token, self.plans["class_token"], scale)
        if self.norm is not None:
            x_BTD = self.norm.active(x_BTD.shape[-1])(x_BTD)
        x_BTD = self.sites.quantizer(observer)("pooled", x_BTD)
        x_BKD, x_BPD = x_BTD[:, : self.class_tokens], x_BTD[:, self.class_tokens :]
        if self.norm is not None:
            pooled_BPD = patches(group_tokens(x_BPD))
        else:
            grid, width = round(x_BPD.shape[1] ** 0.5), x_BPD.shape[2]
            x_BDGG = x_BPD.transpose(1, 2).reshape(-1, width, grid, grid)
            kernel = patches.weight.reshape(-1, 1, 3, 3)
            pooled_BDGG = F.conv2d(x_BDGG, kernel, patches.bias, stride=2, padding=1, groups=width)
            pooled_BPD = pooled_BDGG.flatten(2).transpose(1, 2)
        return torch.cat([class_token(x_BKD), pooled_BPD], dim=1)


class PitViT(nn.Module):
    """A pooling ViT; see the module's docstring.

    Args:
        shape: its sizes.
        high_precision_ratio: share of rows at high precision in the four linears of each block.
        weight_bits: of the other rows, and of those.
        layer_scale: initial value of layer scaling, or None to leave it out, as the paper does.
    """

    def __init__(
        self,
        shape: PitShape,
        *,
        high_precision_ratio: float = 1.0,
        weight_bits: tuple[int, int] = (4, 8),
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.subnets = shape.stages(high_precision_ratio=high_precision_ratio, weight_bits=weight_bits)
        first, last = self.subnets[0], self.subnets[-1]
        pixels = shape.in_chans * shape.patch_size**2
        self.patch_embed = ElasticLinear(first.embed_dim, pixels, weight_bits=weight_bits)
        self.cls_token = nn.Parameter(torch.zeros(shape.class_tokens, first.embed_dim))
        self.position = nn.Parameter(torch.zeros(shape.grids[0] ** 2, first.embed_dim))
        for table in (self.cls_token, self.position):
            trunc_normal_(table, std=0.02)
        self.pools = nn.ModuleList(
            PitPool(shape, before, after) for before, after in zip(self.subnets, self.subnets[1:], strict=False)
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(ElasticBlock(SearchSpace.of(stage), layer_scale=layer_scale) for _ in stage.blocks)
            for stage in self.subnets
        )
        self.norm = ElasticNorm(last.embed_dim)
        self.heads = nn.ModuleList(
            ElasticLinear(shape.num_classes, last.embed_dim, weight_bits=weight_bits) for _ in range(shape.class_tokens)
        )
        self.sites = ActivationSites(functional.STEM_SITES, bits=first.act_bits)
        self.patch_plan = linear_plan(first, site="image", rows=first.embed_dim, inputs=pixels, ratio=1.0)
        self.head_plan = linear_plan(last, site="norm", rows=shape.num_classes, inputs=last.embed_dim, ratio=1.0)

    def forward(self, x_BCHW: Tensor, observer: Observer | None = None, *, weights: Weights = quantized) -> Tensor:
        """Logits (B, num_classes) for normalised images, which are resized to the shape's image size.

        With two class tokens they are the mean of both heads.

        Args:
            observer: collects the activation ranges of this pass.
            weights: gives the effective weights.
        """
        quantizer, scales = self.sites.quantizer(observer), self.sites.scales()
        x_BTD = self._embed(quantizer("image", functional.resize_images(x_BCHW, self.shape.image_size)), weights)
        for index, (stage, blocks) in enumerate(zip(self.subnets, self.stages, strict=True)):
            if index:
                x_BTD = self.pools[index - 1](x_BTD, observer, weights=weights)
            for module, block in zip(blocks, stage.blocks, strict=True):  # type: ignore[call-overload]
                x_BTD = module(x_BTD, stage, block, observer, weights=weights, drop_path_2B=None)
        x_BKD = quantizer("norm", self.norm.active(x_BTD.shape[-1])(x_BTD[:, : self.shape.class_tokens]))
        logits = [
            weights(head, self.head_plan, scales["norm"])(x_BD)  # type: ignore[arg-type]
            for head, x_BD in zip(self.heads, x_BKD.unbind(1), strict=True)
        ]
        return torch.stack(logits).mean(dim=0)

    def _embed(self, x_BCHW: Tensor, weights: Weights) -> Tensor:
        """Tokens (B, K + G * G, D) of quantized images; positions are added to patches alone."""
        patch = weights(self.patch_embed, self.patch_plan, self.sites.scales()["image"])
        kernel = patch.weight.reshape(patch.weight.shape[0], x_BCHW.shape[1], self.shape.patch_size, -1)
        x_BDGG = F.conv2d(x_BCHW, kernel, patch.bias, stride=self.shape.stride)
        x_BPD = x_BDGG.flatten(2).transpose(1, 2) + self.position
        return torch.cat([self.cls_token.expand(len(x_BPD), -1, -1), x_BPD], dim=1)

    def refresh_clips(self) -> None:
        """Searches the clip factors of all low-precision rows again; once an epoch is enough."""
        for module in self.modules():
            if isinstance(module, ElasticLinear):
                module.refresh_clip()


def build_pit(shape: PitShape, *, high_precision_ratio: float = 1.0, layer_scale: float | None = None) -> PitViT:
    """A pooling ViT with random weights, of 4 and 8 bits; its activation ranges are still to be set."""
    return PitViT(shape, high_precision_ratio=high_precision_ratio, layer_scale=layer_scale)
