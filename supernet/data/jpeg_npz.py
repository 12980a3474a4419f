"""Packed JPEG archive: many small JPEG images of one size in one .npz file, decoded into memory when opened.

With test part:    {train,test}_body uint8, {train,test}_offsets (N + 1), {train,test}_labels (N)
Without:           body, offsets, labels; a fixed stratified fifth, or `data.test_fraction`, is the test part
Optional in both:  header uint8, classes (K strings; by default the numbers up to the largest label)

Image i is the JPEG `body[offsets[i]:offsets[i + 1]]`, preceded by `header` unless it begins a JPEG by itself
(FF D8): files of one encoder share their tables, which are most of a small image. Other keys are left alone.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hwmodel.errors import DamagedInputError, QuasarError, UsageError
from supernet.data.config import DataConfig
from supernet.data.registry import Part
from supernet.data.samples import ArraySamples, carve_test, default_normalization

_START_OF_IMAGE = b"\xff\xd8"


def load(config: DataConfig, part: Part) -> ArraySamples:
    """Decodes one part."""
    config.refuse_unused("dataset", "download", "test_split", because="the archive holds all there is")
    path = config.existing_root("a packed JPEG archive (.npz)")
    if path.is_dir():
        raise UsageError(f"data.root: {path} is a folder; give the path of a packed JPEG archive (.npz)")
    try:
        with path.open("rb") as file, np.load(file) as archive:
            return _load(archive, config, part)
    except QuasarError:
        raise
    except Exception as error:  # a damaged archive can raise anything
        raise DamagedInputError(
            f"{path}: not a packed JPEG archive ({type(error).__name__}: {error}); make or copy it again"
        ) from error


def _load(archive: np.lib.npyio.NpzFile, config: DataConfig, part: Part) -> ArraySamples:
    has_parts = "train_body" in archive or "test_body" in archive
    prefix = f"{part}_" if has_parts else ""
    if f"{prefix}body" not in archive:
        raise UsageError(f"data.root: {config.root} has no {prefix}body, so it has no {part} part; use another archive")
    if has_parts:
        config.refuse_unused("test_fraction", because="the archive has a test part")
    labels = archive[f"{prefix}labels"].astype(np.int64)
    offsets = archive[f"{prefix}offsets"].astype(np.int64)
    body = archive[f"{prefix}body"].tobytes()
    header = archive["header"].tobytes() if "header" in archive else b""
    if offsets.shape != (len(labels) + 1,) or (np.diff(offsets) < 1).any() or offsets[0] < 0 or offsets[-1] > len(body):
        raise ValueError(f"its {prefix}offsets do not fit {len(labels)} labels and {len(body)} bytes")
    if "classes" in archive:
        classes = tuple(str(name) for name in archive["classes"])
    else:
        classes = tuple(str(number) for number in range(_label_count(archive)))
    chosen = np.arange(len(labels)) if has_parts else carve_test(labels, classes, config, part)
    images = [_decode(header, body[offsets[i] : offsets[i + 1]], grey=config.grey) for i in chosen]
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise UsageError(f"data.root: {config.root} holds images of {len(sizes)} sizes; use the data set 'folder'")
    return ArraySamples(
        images=np.stack(images),
        labels=labels[chosen],
        classes=classes,
        normalization=default_normalization(1 if config.grey else 3),
    )


def _label_count(archive: np.lib.npyio.NpzFile) -> int:
    return 1 + max(int(archive[key].max()) for key in archive if key.endswith("labels"))


def _decode(header: bytes, data: bytes, *, grey: bool) -> NDArray[np.uint8]:
    """One image as (C, H, W)."""
    stream = data if data.startswith(_START_OF_IMAGE) else header + data
    with Image.open(io.BytesIO(stream)) as image:
        pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return pixels[None] if grey else pixels.transpose(2, 0, 1)
