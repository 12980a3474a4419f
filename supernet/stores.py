"""The subnets of a supernet whose weights change no more, none of which quantizes anything again.

Every linear is quantized once, at both precisions, when a subnet first needs it; what a subnet has of it are slices of
these two stores. A batch is run in pieces whose activations a CPU finds in its cache again.

In `float32` the stores hold `code * scale`, since that is what a product reads. So they take twice the memory of the
weights. A slice with all inputs whose rows have one precision is a view; others are copied, since products of strided
matrices may be summed in another order. Outputs are those of `supernet.standalone.extract`, bit for bit, as long as the
matrix products of a machine do not depend on how many rows they have.

With products of `int8` the stores hold codes, and activations are codes where a block's linears read them:

    y = s_x * s_w * (sum_k w_k q_k - z * sum_k w_k) + b      w, q: int8; z: the zero point; s_w, b: of the row

The sums are exact, as they are in hardware. Only the order in which scales are multiplied differs from float32, so here
and there a value comes to lie on the other side of a rounding. It takes a quarter of the time of the products on CPUs
that have instructions for it. The patches' convolution, pooling, attention's products and the head stay in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor

from hwmodel.errors import UsageError
from supernet import functional
from supernet.plan import head_plan, mlp_plan, patch_plan
from supernet.subnet import BlockChoice, Subnet, hidden_units
from supernet.vit import CodesOnce, ElasticAttention, ElasticBlock, QuantizedOnce, SupernetViT

#: logits (B, num_classes) of normalised images (B, C, H, W)
Network = Callable[[Tensor], Tensor]
#: values in the largest activation of a piece of a batch: 2 MB of float32
_PIECE = 1 << 19
#: what a CPU needs for products of int8 to be fast, and exact: older instructions saturate sums of 16 bits
_INT8_INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8")


#: how linears multiply
Precision = Literal["float32", "int8"]


def fastest_precision(device: torch.device) -> Precision:
    """The precision with which subnets take the least time on the device."""
    return "int8" if _multiplies_int8(device) else "float32"


def _multiplies_int8(device: torch.device) -> bool:
    return device.type == "cpu" and any(torch.cpu.get_capabilities().get(name) for name in _INT8_INSTRUCTIONS)


class Stores:
    """Serves the subnets of `supernet`, whose weights and scales must stay as they are from now on.

    Raises:
        UsageError: the device does not multiply int8 fast and exactly.
    """

    def __init__(self, supernet: SupernetViT, *, precision: Precision = "float32") -> None:
        self._supernet = supernet
        self._quantized = QuantizedOnce()
        self._codes = CodesOnce() if precision == "int8" else None
        if self._codes and not _multiplies_int8(self.device):
            raise UsageError(
                f"products of int8 need a CPU with one of {', '.join(_INT8_INSTRUCTIONS)}, and subnets are evaluated "
                f"on {'one without' if self.device.type == 'cpu' else self.device}; choose float32 or auto"
            )

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
        blocks: list[Callable[[Tensor], Tensor]] = []
        for index, (module, block) in enumerate(zip(supernet.blocks, subnet.blocks, strict=False)):
            if index in subnet.pooling:
                blocks.append(supernet.pool(index).of(subnet, None, weights=weights))
            blocks.append(self._block(cast(ElasticBlock, module), subnet, block))
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

        if self.device.type != "cpu":
            return logits
        images = _images_in_piece(subnet)
        return lambda x_BCHW: torch.cat([logits(piece) for piece in torch.split(x_BCHW, images)])

    def _block(self, module: ElasticBlock, subnet: Subnet, block: BlockChoice) -> Callable[[Tensor], Tensor]:
        if self._codes is None:
            return module.of(subnet, block, None, weights=self._quantized, drop_path_2B=None)
        mixer = cast(ElasticAttention, module.mixers[block.operator])
        weights = self._codes.weights(module.sites.zero_points() | mixer.sites.zero_points())
        coded = {plan.site for plans in (mixer.plan(subnet, block), mlp_plan(subnet, block)) for plan in plans.values()}
        return partial(
            module.of(subnet, block, None, weights=weights, drop_path_2B=None),
            quantizer=module.sites.coder(coded),
            mixer_quantizer=mixer.sites.coder(coded),
        )


def _images_in_piece(subnet: Subnet) -> int:
    widest = max(
        max(int(hidden_units(block.mlp_ratio, subnet.embed_dim)), 3 * block.num_heads * subnet.head_dim)
        for block in subnet.blocks
    )
    return max(1, _PIECE // (subnet.tokens * widest))
