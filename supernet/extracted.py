"""The network of an extracted subnet whose weights change no more, in pieces: what its first block reads, its blocks
one by one, and its head.

With products of `int8` linears multiply codes, as those of `supernet.stores` do, whose docstring says what that is;
here the codes are those that the module has. In `float32` outputs are those of the module, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from supernet import functional
from supernet.functional import Linear
from supernet.standalone import QuantLinear, SubnetBlock, SubnetViT
from supernet.stores import Precision

#: the residual stream (B, T, D) after a block, of that before it
Block = Callable[[Tensor], Tensor]


class ExtractedNetwork:
    """Logits (B, num_classes) of normalised images (B, C, H, W), to be run in inference mode."""

    def __init__(self, module: SubnetViT, *, precision: Precision) -> None:
        self._module = module
        self.blocks: list[Block] = []  # each with the pooling before it, if there is any
        for index, block in enumerate(module.blocks):
            function = _block(cast(SubnetBlock, block), precision)
            if index in module.subnet.pooling:
                function = _after(partial(module.pools[str(index)], observer=None), function)
            self.blocks.append(function)

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """The logits."""
        x_BTD = self.stem(x_BCHW)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(x_BTD)

    def stem(self, x_BCHW: Tensor) -> Tensor:
        """What the first block reads, (B, T, D)."""
        module, subnet = self._module, self._module.subnet
        pixels = functional.resize_images(x_BCHW, subnet.image_size)
        return functional.embed_patches(
            module.sites.quantizer(None)("image", pixels),
            module.patch_embed.active(),
            module.cls_token,
            module.position,
            patch_size=subnet.patch_size,
        )

    def head(self, x_BTD: Tensor) -> Tensor:
        """Logits of what the last block gives."""
        module = self._module
        return module.head.active()(module.sites.quantizer(None)("norm", module.norm.active()(x_BTD[:, 0])))


def _after(first: Block, second: Block) -> Block:
    return lambda x_BTD: second(first(x_BTD))


def _block(block: SubnetBlock, precision: Precision) -> Block:
    if precision == "float32":
        return partial(block, observer=None)
    zero_points = block.sites.zero_points() | block.mixer_sites.zero_points()
    scales = block.sites.scales() | block.mixer_sites.scales()

    def coded(linears: nn.ModuleDict) -> dict[str, Linear]:
        result = {}
        for name, module in linears.items():
            linear = cast(QuantLinear, module)
            step = linear.scale * scales[linear.plan.site]
            shift = zero_points[linear.plan.site] * linear.codes.sum(dim=1, dtype=torch.int32)
            result[name] = Linear(linear.codes, linear.bias - shift * step, step)
        return result

    linears = [cast(QuantLinear, module) for group in (block.mixer, block.mlp) for module in group.values()]
    sites = {linear.plan.site for linear in linears}
    return partial(
        functional.encoder_block,
        norm1=block.norm1.active(),
        norm2=block.norm2.active(),
        scale1=block.scale1,
        scale2=block.scale2,
        mix=block.mix,
        mixer=coded(block.mixer),
        mlp=coded(block.mlp),
        head_dim=block.head_dim,
        mixer_quantizer=block.mixer_sites.coder(sites),
        quantizer=block.sites.coder(sites),
    )
