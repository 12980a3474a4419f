"""Plain Vision Transformers of timm as subnets, so that their cost on a device can be estimated by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from hwmodel.errors import UsageError
from hwmodel.registry import unknown_name
from supernet.subnet import BlockChoice, Subnet

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


def plain_vit(name: str) -> VisionTransformer:
    """A timm Vision Transformer, built without memory for its weights; nothing is downloaded.

    Raises:
        UsageError: timm has no such model, or it is no plain ViT (one class token, one width, global attention).
    """
    import timm
    import torch
    from timm.models.vision_transformer import VisionTransformer

    if not timm.is_model(name):
        raise unknown_name("timm model", name, timm.list_models("*[vd]*it_*"))
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    if type(model) is not VisionTransformer or model.num_prefix_tokens != 1 or model.global_pool != "token":
        raise UsageError(
            f"'{name}' is not a plain Vision Transformer with one class token, such as deit_tiny_patch16_224; "
            "other families are not supported yet"
        )
    return model


def subnet_of_timm(name: str, *, high_precision_ratio: float = 1.0) -> Subnet:
    """The shape of a timm Vision Transformer, with the same share of 8-bit rows in all linears.

    Raises:
        UsageError: see `plain_vit`; or images or patches are not square.
    """
    model = plain_vit(name)
    height, width = model.patch_embed.img_size
    patch_size = model.patch_embed.patch_size
    if height != width or patch_size[0] != patch_size[1]:
        raise UsageError(f"'{name}' takes images of {height} x {width}; only square images and patches are modelled")
    blocks = []
    for block in cast(Iterable[Any], model.blocks):
        num_heads = block.attn.num_heads
        blocks.append(
            BlockChoice(
                num_heads=num_heads,
                mlp_ratio=block.mlp.fc1.out_features / model.embed_dim,
                operator="attention",
                qkv_ratio=high_precision_ratio,
                proj_ratio=high_precision_ratio,
                fc1_ratio=high_precision_ratio,
                fc2_ratio=high_precision_ratio,
            )
        )
    return Subnet(
        image_size=height,
        patch_size=patch_size[0],
        in_chans=model.patch_embed.proj.in_channels,
        num_classes=model.num_classes,
        embed_dim=model.embed_dim,
        head_dim=model.embed_dim // blocks[0].num_heads,
        blocks=tuple(blocks),
    )
