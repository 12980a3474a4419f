"""The subnets of a supernet whose weights change no more, none of which quantizes anything again.

Every linear is quantized once, at both precisions, when a subnet first needs it; what a subnet has of it are slices of
these two stores. They hold `code * scale`, since that is what a product reads: stores of codes would be a quarter as
large, and would be multiplied by their scales again for every subnet. So they take twice the memory of the weights. A
slice with all inputs whose rows have one precision is a view; others are copied, since products of strided matrices may
be summed in another order. Outputs are those of `supernet.standalone.extract`, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from supernet import functional
from supernet.plan import head_plan, patch_plan
from supernet.subnet import Subnet
from supernet.vit import ElasticBlock, QuantizedOnce, SupernetViT

#: logits (B, num_classes) of normalised images (B, C, H, W)
Network = Callable[[Tensor], Tensor]


class Stores:
    """Serves the subnets of `supernet`, whose weights and scales must stay as they are from now on."""

    def __init__(self, supernet: SupernetViT) -> None:
        self._supernet = supernet
        self._quantized = QuantizedOnce()

    @property
    def device(self) -> torch.device:
        """Where images are to be."""
        return self._supernet.cls_token.device

    @torch.inference_mode()
    def network(self, subnet: Subnet) -> Network:
        """The network of one subnet, to be run in inference mode; raises `UsageError` if it is outside the space."""
        supernet, weights, width = self._supernet, self._quantized, subnet.embed_dim
        supernet.space.encode(subnet)
        stem, scales = supernet.sites.quantizer(None), supernet.sites.scales()
        patch_embed = weights(supernet.patch_embed, patch_plan(subnet), scales["image"])
        position = functional.resize_position(supernet.position, subnet.image_size // subnet.patch_size)[:, :width]
        blocks = [
            cast(ElasticBlock, module).of(subnet, block, None, weights=weights, drop_path_2B=None)
            for module, block in zip(supernet.blocks, subnet.blocks, strict=False)
        ]
        norm = supernet.norm.active(width)
        head = weights(supernet.head, head_plan(subnet), scales["norm"])

        def logits(x_BCHW: Tensor) -> Tensor:
            x_BTD = functional.embed_patches(
                stem("image", functional.resize_images(x_BCHW, subnet.image_size)),
                patch_embed,
                supernet.cls_token[:width],
                position,
                patch_size=subnet.patch_size,
            )
            for block in blocks:
                x_BTD = block(x_BTD)
            return head(stem("norm", norm(x_BTD[:, 0])))

        return logits
