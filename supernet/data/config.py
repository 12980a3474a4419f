"""The `data` section of a configuration: which images, how they are split, and how training varies them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hwmodel.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """A data set and its use.

    Images come either in memory (digits, cifar10, jpeg-npz, small torch/ sets), where `crop_padding` augments, or
    from files (folder, tar-shards, the other timm sets), where `min_crop_scale` does. Keys of the other kind are
    refused when the data set is opened, and so is a key that a data set has no use for.

    Args:
        name: registered name: digits, folder, tar-shards, cifar10, jpeg-npz, timm or a plug-in's.
        root: the folder or file with the data, for the sets that need one.
        dataset: for `timm`, the name given to `timm.data.create_dataset`, such as torch/cifar100 or hfds/<id>.
        download: for `timm`, fetch what is missing under `root`.
        test_split: the test part's name: a sub-folder for `folder`, a sub-folder or a part of the shards' names for
            `tar-shards` (by default the only one of val, validation and test), a split for `timm` (by default
            validation).
        val_fraction: share of each class's training images that is held out for validation.
        split_seed: seed of that choice.
        test_fraction: share of each class's images that are the test part, for sets that come without one (by default
            a fifth). The choice is fixed, whatever the seed.
        stratify: take these shares of each class, which must then be in all splits. If false, they are shares of all
            images, so that sets with an image or two of a class can be split: for networks that are not trained here.
        grey: read images of files and archives as one grey channel instead of RGB.
        mean, std: of pixels in [0, 1], per channel, for normalization; by default the data set's own.
        crop_padding: pixels of zeros around each image before a random crop to its size.
        horizontal_flip: mirror half of the training images.
        min_crop_scale: smallest share of an image's area in a random resized crop (timm's default is 0.08).
        auto_augment: a policy of timm's, such as rand-m9-mstd0.5-inc1. Images in memory then leave the device for it;
            `supernet.data.memory` says at what price.
        random_erasing: probability that noise covers a rectangle of a training image, of 2 % to 33 % of its area.
        max_unreadable: how many different files that cannot be decoded are skipped; one more ends the program. Each
            process counts its own from its start, and those of the test part apart. In training another image of the
            class takes the place of a skipped one. An accuracy is that of the images that could be read.
        workers: processes that decode files, and for images in memory apply `auto_augment` and `random_erasing`. The
            images do not depend on their number.

    Raises:
        UsageError: a value out of range.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    root: str | None = None
    dataset: str | None = None
    download: bool = False
    test_split: str | None = None
    val_fraction: float = 0.1
    split_seed: int = 0
    test_fraction: float | None = None
    stratify: bool = True
    grey: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_padding: int = 0
    horizontal_flip: bool = False
    min_crop_scale: float | None = None
    auto_augment: str | None = None
    random_erasing: float = 0.0
    max_unreadable: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        for key in ("val_fraction", "test_fraction"):
            fraction = getattr(self, key)
            if fraction is not None and not 0 < fraction < 1:
                raise UsageError(f"{key} must lie between 0 and 1, not {fraction}")
        if not 0 <= self.split_seed < 2**32:
            raise UsageError(f"split_seed must lie in 0..2^32-1, not {self.split_seed}")
        for key in ("crop_padding", "max_unreadable", "workers"):
            if getattr(self, key) < 0:
                raise UsageError(f"{key} must not be negative, not {getattr(self, key)}")
        if self.test_split == "train":
            raise UsageError("test_split must not be the train part")
        if self.min_crop_scale is not None and not 0 < self.min_crop_scale <= 1:
            raise UsageError(f"min_crop_scale must lie in (0, 1], not {self.min_crop_scale}")
        if not 0 <= self.random_erasing <= 1:
            raise UsageError(f"random_erasing must lie in [0, 1], not {self.random_erasing}")
        if (self.mean is None) != (self.std is None):
            raise UsageError("mean and std must be given together")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise UsageError(f"std must be positive, not {list(self.std)}")

    def existing_root(self, holds: str) -> Path:
        """The path `root`, which `holds` the data; raises `UsageError` where it is not given or does not exist."""
        if self.root is None:
            raise UsageError(f"data.root is missing: the data set '{self.name}' needs the path of {holds}")
        path = Path(self.root).expanduser()
        if not path.exists():
            raise UsageError(f"data.root: {path} does not exist; give the path of {holds}")
        return path

    def refuse_unused(self, *keys: str, because: str) -> None:
        """Raises `UsageError` where one of `keys` is set, as it would have no effect."""
        for key in keys:
            if getattr(self, key) not in (None, False, 0):
                raise UsageError(f"data.{key} has no effect for the data set '{self.name}': {because}; remove the key")
