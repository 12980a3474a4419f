"""Any data set with random access that `timm.data.create_dataset` opens: torch/<name> and hfds/<id>.

What torchvision holds in arrays (CIFAR, MNIST and their kin) stays in memory; the rest is decoded as it is read.
Streams (tfds/, wds/, hfids/) are refused: a split by class needs all labels at hand. What wds/ reads as a stream, the
data set `tar-shards` opens for random access.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_dataset

from hwmodel.errors import UsageError
from supernet.data.config import DataConfig
from supernet.data.files import PathSource
from supernet.data.registry import Part
from supernet.data.samples import ArraySamples, FileSamples, ImageSource, Samples, default_normalization


@dataclass(frozen=True, kw_only=True, slots=True)
class _ReaderSource:
    """The images of a timm reader, which gives (file object, label)."""

    dataset: str
    reader: Any

    def read(self, index: int) -> Image.Image:
        # Not through timm's data set, which puts the next image in the place of one that it cannot read.
        with self.reader[index][0] as file:
            image = Image.open(file)
            image.load()
        return image

    def name(self, index: int) -> str:
        return f"{self.dataset}[{index}]"

    def identity(self, index: int) -> str:
        return self.name(index)  # a reader has no sizes; the digest covers name, order and labels


def load(config: DataConfig, part: Part) -> Samples:
    """Opens one part."""
    config.refuse_unused("test_fraction", because="data.test_split names its test part")
    opened = _open(config, part)
    root = Path(config.root or ".").expanduser()
    names = getattr(opened, "classes", None) or getattr(getattr(opened, "reader", None), "class_to_idx", None)
    try:
        if hasattr(opened, "data"):
            pixels, labels = np.asarray(opened.data), _labels(opened.targets)
            return ArraySamples(
                images=pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2),
                labels=labels,
                classes=_class_names(names, labels),
                normalization=default_normalization(1 if pixels.ndim == 3 else 3),
            )
        source: ImageSource
        if hasattr(opened, "imgs"):
            paths = tuple(os.path.relpath(path, root) for path, _ in opened.imgs)
            source, labels = PathSource(root=root, paths=paths), _labels([label for _, label in opened.imgs])
        elif hasattr(getattr(opened, "reader", None), "iter_targets"):
            source = _ReaderSource(dataset=f"{config.dataset}:{part}", reader=opened.reader)
            labels = _labels(list(opened.reader.iter_targets()))
        else:
            raise ValueError("it has no list of its labels")
        in_chans = 1 if config.grey else 3
        return FileSamples(
            source=source,
            labels=labels,
            classes=_class_names(names, labels),
            in_chans=in_chans,
            normalization=default_normalization(in_chans),
        )
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"data.dataset: the {part} part of '{config.dataset}' cannot be used: {error}; "
            "give one label to each image, or store the images as a folder"
        ) from error


def _labels(values: Any) -> NDArray[np.int64]:
    return np.asarray(values).astype(np.int64, casting="same_kind")


def _class_names(names: Any, labels: NDArray[np.int64]) -> tuple[str, ...]:
    """ImageNet gives a tuple of synonyms for each class; some data sets give no names at all."""
    if not names:
        return tuple(str(number) for number in range(int(labels.max(initial=-1)) + 1))
    return tuple(name if isinstance(name, str) else ", ".join(name) for name in names)


def _open(config: DataConfig, part: Part) -> Any:
    dataset = config.dataset or ""
    library, _, name = dataset.partition("/")
    if library == "wds":
        raise UsageError(
            f"data.dataset: '{config.dataset}' is a stream, without random access; use data.name=tar-shards, with "
            "data.root as the folder of the shards"
        )
    if library not in ("torch", "hfds"):
        raise UsageError(
            f"data.dataset: need torch/<name> or hfds/<id>, which give random access, not '{config.dataset}'"
        )
    if library == "torch" and name in ("folder", "image_folder"):
        # Without a folder for the part, timm takes all images for both.
        raise UsageError(f"data.dataset: '{config.dataset}' does not keep the test part apart; use data.name=folder")
    if library == "torch" and (config.root is None or not config.download):
        config.existing_root(f"the folder of {config.dataset}, or set data.download")
    test_split = config.test_split or "validation"
    if test_split.startswith("train"):  # "training" and "train[:10%]" too would be training images
        raise UsageError(f"data.test_split: '{test_split}' is of the train part; name another one")
    try:
        # timm and the libraries under it print to stdout, where a program may be expected to print JSON.
        with contextlib.redirect_stdout(sys.stderr):
            return create_dataset(
                dataset,
                root=config.root and str(Path(config.root).expanduser()),
                split="train" if part == "train" else test_split,
                download=config.download,
            )
    except ImportError as error:
        package = "datasets" if library == "hfds" else error.name
        raise UsageError(f"data.dataset: '{config.dataset}' needs another package; pip install {package}") from error
    except Exception as error:  # every library behind timm raises its own
        text = " ".join(str(error).split()).replace("download=True", "data.download=true")
        raise UsageError(
            f"data.dataset: '{config.dataset}' cannot be opened: {type(error).__name__}: {text}"
        ) from error
