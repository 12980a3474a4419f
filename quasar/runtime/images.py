"""Raw images as the networks of a bundle take them: what evaluation does to the images of the same data set.

Images that a data set holds in memory (digits, cifar10, jpeg-npz) are resized whole. Those that it decodes from files
are resized and cropped at the centre. timm's sets and those of plug-ins may be of either kind, and a bundle does not
say which: there, an image that has the size already is left as it is, and any other counts as a file.

Shapes: B images, C channels, height H, width W, S pixels of the images that the network was trained on.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from hwmodel.errors import UsageError
from quasar.export.manifest import BundleConfig
from supernet.data.memory import resize
from supernet.data.samples import Normalization
from supernet.data.transforms import file_transform

_WHOLE = ("digits", "cifar10", "jpeg-npz")
_CROPPED = ("folder", "tar-shards")


class Preprocessing:
    """From pixels to the normalised images of a bundle."""

    def __init__(self, config: BundleConfig) -> None:
        self.in_chans = config.subnet.in_chans
        self._size = config.training_image_size
        self._data = config.data.name
        normalization = Normalization(config.mean, config.std)
        self._mean, self._std = (torch.tensor(values).view(-1, 1, 1) for values in normalization)
        self._crop = file_transform(config.data, image_size=self._size, normalization=normalization, train=False)

    def image(self, image: Image.Image) -> Tensor:
        """One image of any size, of mode L or RGB, as float32 (C, S, S); raises `UsageError` for other channels."""
        channels = len(image.getbands())
        if channels != self.in_chans:
            raise UsageError(f"the image has {channels} channels ({image.mode}), the network takes {self.in_chans}")
        exact = image.size == (self._size, self._size)
        if self._data in _WHOLE or (exact and self._data not in _CROPPED):
            pixels_CHW = resize(pil_to_tensor(image)[None], self._size)[0]
        else:
            pixels_CHW = self._crop(image)
        return pixels_CHW.float().div_(255).sub_(self._mean).div_(self._std)

    def pixels(self, pixels: NDArray[np.uint8]) -> Tensor:
        """uint8 (H, W, C) or (B, H, W, C) as float32 (B, C, S, S); raises `UsageError` for any other shape."""
        batch = pixels[None] if pixels.ndim == 3 else pixels
        if batch.ndim != 4 or 0 in batch.shape or batch.shape[3] not in (1, 3):
            raise UsageError(
                f"images of uint8 must be (H, W, C) or (B, H, W, C) with 1 or 3 channels, not {pixels.shape}"
            )
        # PIL has no images of one channel in an axis of its own.
        images = [Image.fromarray(image[..., 0] if image.shape[2] == 1 else image) for image in batch]
        return torch.stack([self.image(image) for image in images])
