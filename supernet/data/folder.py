"""Image files in one folder for each class.

Either root/train/<class>/... with a test part beside it (val, validation or test, or as `data.test_split` says), or
root/<class>/..., of which a fixed stratified fifth, or `data.test_fraction`, is the test part. Images may lie in
sub-folders of their class.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from hwmodel.errors import UsageError
from supernet.data.config import DataConfig
from supernet.data.files import PathSource
from supernet.data.registry import Part
from supernet.data.samples import FileSamples, carve_test, default_normalization

_LAYOUT = "a folder with one sub-folder of images for each class"
_TEST_FOLDERS = ("val", "validation", "test")


def load(config: DataConfig, part: Part) -> FileSamples:
    """Lists the files of one part; none of them is opened."""
    config.refuse_unused("dataset", "download", because="its images lie under data.root")
    root = config.existing_root(_LAYOUT)
    if not root.is_dir():
        raise UsageError(f"data.root: {root} is a file; give {_LAYOUT}")
    folders = _part_folders(root, config.test_split)
    if folders:
        config.refuse_unused("test_fraction", because=f"{folders['test']} is its test part")
    folder = folders[part] if folders else root
    try:
        classes, labels_by_class = find_classes(folder)
        samples = make_dataset(folder, labels_by_class, IMG_EXTENSIONS)
    except FileNotFoundError as error:  # no class, or a class without images: the message says which
        raise UsageError(f"data.root: {error}") from None
    if folders:
        other = find_classes(folders["test" if part == "train" else "train"])[0]
        if odd := set(classes) ^ set(other):
            raise UsageError(
                f"data.root: the class '{min(odd)}' is in only one of {folders['train']} and {folders['test']}"
            )
    labels = np.array([label for _, label in samples], dtype=np.int64)
    chosen = np.arange(len(samples)) if folders else carve_test(labels, tuple(classes), config, part)
    in_chans = 1 if config.grey else 3
    return FileSamples(
        source=PathSource(root=folder, paths=tuple(str(Path(samples[i][0]).relative_to(folder)) for i in chosen)),
        labels=labels[chosen],
        classes=tuple(classes),
        in_chans=in_chans,
        normalization=default_normalization(in_chans),
    )


def _part_folders(root: Path, test_split: str | None) -> dict[Part, Path] | None:
    """The folders of the parts, or None where `root` holds the class folders themselves."""
    if test_split is not None:
        for name in ("train", test_split):
            if not (root / name).is_dir():
                raise UsageError(f"data.test_split: {root} has no folder '{name}'; remove the key or add the folder")
        return {"train": root / "train", "test": root / test_split}
    # A class may be called "train" too, but then it holds images and not folders.
    if not (root / "train").is_dir() or not any(entry.is_dir() for entry in (root / "train").iterdir()):
        return None
    tests = [name for name in _TEST_FOLDERS if (root / name).is_dir()]
    if len(tests) != 1:
        there_is = f"there are {', '.join(tests)}" if tests else "there is none of val, validation and test"
        remedy = (
            "choose with data.test_split" if tests else f"add {root / 'test'}, or give {root / 'train'} to split it"
        )
        raise UsageError(f"data.root: beside {root / 'train'} {there_is}; {remedy}")
    return {"train": root / "train", "test": root / tests[0]}
