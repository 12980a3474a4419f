"""Plain Vision Transformers of timm as subnets, PiT as shapes, so that a device's cost can be estimated by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from hwmodel.errors import UsageError
from hwmodel.registry import unknown_name
from hwmodel.workload import Workload
from supernet.lowering import lower
from supernet.pit_shape import PitShape, lower_pit
from supernet.subnet import BlockChoice, Subnet

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


def workload_of_timm(name: str, *, high_precision_ratio: float = 1.0) -> Workload:
    """The workload of a timm ViT or PiT, with the same share of 8-bit rows in the linears of all blocks.

    Raises:
        UsageError: see `subnet_of_timm` and `pit_of_timm`.
    """
    if name.startswith("pit_"):
        return lower_pit(pit_of_timm(name), high_precision_ratio=high_precision_ratio)
    return lower(subnet_of_timm(name, high_precision_ratio=high_precision_ratio))


def plain_vit(name: str) -> VisionTransformer:
    """A timm Vision Transformer, built without memory for its weights; nothing is downloaded.

    Raises:
        UsageError: timm has no such model, or it is no plain ViT (one class token, one width, global attention).
    """
    from timm.models.vision_transformer import VisionTransformer

    model = _weightless(name, "*[vd]*it_*")
    if type(model) is not VisionTransformer or model.num_prefix_tokens != 1 or model.global_pool != "token":
        raise UsageError(
            f"'{name}' is not a plain Vision Transformer with one class token, such as deit_tiny_patch16_224; "
            "of other families, only PiT has a hardware cost, such as pit_ti_224"
        )
    return model


def _weightless(name: str, alike: str) -> Any:
    """A model of timm without memory for its weights; of unknown names the nearest of those `alike` is told."""
    import timm
    import torch

    if not timm.is_model(name):
        raise unknown_name("timm model", name, timm.list_models(alike))
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False)


def pit_of_timm(name: str) -> PitShape:
    """The shape of a timm PiT, which pools by depthwise convolutions.

    Raises:
        UsageError: timm has no such model, or it is no PiT.
    """
    from timm.models.pit import PoolingVisionTransformer

    model = _weightless(name, "pit_*")
    if type(model) is not PoolingVisionTransformer:
        raise UsageError(f"'{name}' is not a PiT of timm, such as pit_ti_224")
    convolution = model.patch_embed.conv
    stages = cast(Iterable[Any], model.transformers)
    blocks = [stage.blocks for stage in stages]
    first = blocks[0][0]
    return PitShape(
        image_size=model.patch_embed.img_size[0],
        patch_size=convolution.kernel_size[0],
        stride=convolution.stride[0],
        in_chans=convolution.in_channels,
        num_classes=model.num_classes,
        widths=tuple(stage[0].mlp.fc1.in_features for stage in blocks),
        depths=tuple(map(len, blocks)),
        heads=tuple(stage[0].attn.num_heads for stage in blocks),
        mlp_ratio=first.mlp.fc1.out_features / first.mlp.fc1.in_features,
        pooling="depthwise",
        class_tokens=model.num_tokens,
    )


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
