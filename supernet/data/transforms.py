"""What happens to one image: timm's transforms and policies, and random erasing.

Shapes: C channels, height H, width W.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import Compose
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from hwmodel.errors import UsageError
from supernet.data.config import DataConfig
from supernet.data.samples import Normalization


def file_transform(
    config: DataConfig, *, image_size: int, normalization: Normalization, train: bool
) -> Callable[[Image.Image], Tensor]:
    """From an image of any size to uint8 (C, image_size, image_size).

    In training: random resized crop, mirroring, policy, erasing. Otherwise: resize and centre crop.

    Raises:
        UsageError: a policy that timm does not know.
    """
    steps = [_from_timm(config, image_size=image_size, in_chans=len(normalization.mean), train=train)]
    if train and config.random_erasing:
        steps.append(_erasing(config, normalization))
    return _sequence(steps)


def memory_transform(
    config: DataConfig, *, image_size: int, normalization: Normalization
) -> Callable[[Tensor], Tensor] | None:
    """From uint8 (C, image_size, image_size) to the same, by policy and erasing; None where neither is wanted.

    Raises:
        UsageError: a policy that timm does not know, or one for images that are neither grey nor RGB.
    """
    steps: list[Callable[[Any], Any]] = []
    if config.auto_augment is not None:
        in_chans = len(normalization.mean)
        if in_chans not in (1, 3):
            raise UsageError(f"data.auto_augment: timm's policies need 1 or 3 channels, not {in_chans}; remove the key")
        # The parts are: crop and mirror, which has been done; the policy; to a tensor.
        _, policy, _ = _from_timm(config, image_size=image_size, in_chans=in_chans, train=True, separate=True)
        steps += [to_pil_image, policy, pil_to_tensor]
    if config.random_erasing:
        steps.append(_erasing(config, normalization))
    return _sequence(steps) if steps else None


def _sequence(steps: list[Callable[[Any], Any]]) -> Callable[[Any], Tensor]:
    sequence: Callable[[Any], Tensor] = Compose(steps)
    return sequence


def _from_timm(config: DataConfig, *, image_size: int, in_chans: int, train: bool, separate: bool = False) -> Any:
    """timm's transform, to uint8; with `separate` its three parts."""
    scale = None if config.min_crop_scale is None else (config.min_crop_scale, 1.0)
    try:
        made = create_transform(
            (in_chans, image_size, image_size),
            is_training=train,
            scale=scale,
            hflip=0.5 if config.horizontal_flip else 0.0,
            color_jitter=0.0,
            auto_augment=config.auto_augment,
            interpolation="bicubic",
            mean=(0.5,) * in_chans,  # the colour that auto_augment fills holes with
            normalize=False,  # on the device, from a quarter of the bytes
            separate=separate,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise UsageError(f"data.auto_augment: timm knows no policy '{config.auto_augment}' ({error})") from error
    for step in chain(*(part.transforms for part in (made if separate else [made]))):
        # What a RandAugment or AugMix draws from, and the sub-policies of an AutoAugment.
        for operation in (*getattr(step, "ops", ()), *chain(*getattr(step, "policy", ()))):
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = _posterize
    return made


def _posterize(image: Image.Image, bits_to_keep: int, **_: object) -> Image.Image:
    """timm's, also for 0 bits and less, which noise on the magnitude leads to: Pillow 13 refuses what was black."""
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    posterized: Image.Image = auto_augment.posterize(image, bits_to_keep)  # type: ignore[no-untyped-call]
    return posterized


def _erasing(config: DataConfig, normalization: Normalization) -> _Erase:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in normalization)
    erase = RandomErasing(config.random_erasing, mode="pixel", device="cpu")  # type: ignore[no-untyped-call]
    return _Erase(erase, mean, std)


@dataclass(frozen=True, slots=True)
class _Erase:
    """timm's random erasing of a normalized image by normal noise, for uint8 (C, H, W): noise is cut to 0..255."""

    erase: Callable[[Tensor], Tensor]
    mean: Tensor  # (C, 1, 1), as is std
    std: Tensor

    def __call__(self, image_CHW: Tensor) -> Tensor:
        erased_CHW = self.erase((image_CHW / 255 - self.mean) / self.std)
        return ((erased_CHW * self.std + self.mean) * 255).round().clamp(0, 255).byte()
