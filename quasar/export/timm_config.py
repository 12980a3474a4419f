"""What timm has to know of a bundle's images: `pretrained_cfg`, in its own words. Imports without timm."""

from __future__ import annotations

from typing import Any

from supernet.data.config import DataConfig
from supernet.subnet import Subnet

#: the name under which timm knows the network, see `quasar.timm_model`
ARCHITECTURE = "quasar_vit"
#: data sets that are resized as a whole; all others are decoded from files and cropped, see `supernet.data.transforms`
_IN_MEMORY = ("digits", "cifar10")


def timm_config(
    subnet: Subnet, *, data: DataConfig, mean: tuple[float, ...], std: tuple[float, ...], training_image_size: int
) -> dict[str, Any]:
    """`pretrained_cfg` for a network: timm's transforms by it give the pixels that `Split.batches` gives.

    Images are prepared at `training_image_size`; the network resizes them to its own size.

    Args:
        mean, std: normalization of pixels in [0, 1], per channel.
    """
    in_memory = data.name in _IN_MEMORY
    return {
        "num_classes": subnet.num_classes,
        "input_size": (subnet.in_chans, training_image_size, training_image_size),
        "fixed_input_size": True,
        "mean": mean,
        "std": std,
        "interpolation": "bilinear" if in_memory else "bicubic",
        "crop_pct": 1.0 if in_memory else 0.875,
    }
