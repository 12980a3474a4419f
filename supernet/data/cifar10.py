"""CIFAR-10 in its python batches: pickles of `data` (10000, 3072) and `labels`, in planes of 32 x 32.

Source of the format and of the files: https://www.cs.toronto.edu/~kriz/cifar.html. The pickles are read without
trusting them: nothing but NumPy arrays and plain containers can be built.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import DamagedInputError, UsageError
from supernet.data.config import DataConfig
from supernet.data.registry import Part
from supernet.data.samples import ArraySamples, Normalization

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar-10-batches-py"

# Of the 50,000 training images.
_NORMALIZATION = Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}

# All that a pickled array of numbers refers to; NumPy 2 renamed the private module.
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no CIFAR-10 file does")
        return super().find_class(module, name)


def load(config: DataConfig, part: Part) -> ArraySamples:
    """The five training batches or the test batch."""
    config.refuse_unused(
        "dataset", "download", "test_split", "test_fraction", "grey", because="its files and colours are given"
    )
    folder = config.existing_root(f"the folder {FOLDER}")
    if (folder / FOLDER).is_dir():
        folder = folder / FOLDER
    batches = [_read_batch(folder / name) for name in _BATCHES[part]]
    return ArraySamples(
        images=np.concatenate([images for images, _ in batches]),
        labels=np.concatenate([labels for _, labels in batches]),
        classes=CLASSES,
        normalization=_NORMALIZATION,
    )


def _read_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        with path.open("rb") as file:
            # The original files were pickled by Python 2, whose strings are bytes.
            batch = _ArrayUnpickler(file, encoding="bytes").load()
        pixels, labels = batch[b"data"], np.asarray(batch[b"labels"], dtype=np.int64)
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3072):
            raise ValueError(f"its data is {pixels.dtype} {pixels.shape} for {len(labels)} labels")
        if not 0 <= labels.min() <= labels.max() < len(CLASSES):
            raise ValueError("a label is not in 0..9")
    except FileNotFoundError:
        raise UsageError(f"data.root: {path} is missing; give the folder {FOLDER} with all six batches") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise DamagedInputError(
            f"{path}: not a CIFAR-10 batch ({type(error).__name__}: {error}); fetch the archive again"
        ) from error
    return pixels.reshape(-1, 3, 32, 32), labels
