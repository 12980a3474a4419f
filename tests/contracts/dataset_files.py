"""Small data sets on disk, in the formats that Quasar reads."""

import io
import pickle
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat")


def random_image(rng: np.random.Generator, size: int = 12, *, channels: int = 3) -> Image.Image:
    shape = (size, size, channels) if channels == 3 else (size, size)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


def write_class_folders(root: Path, *, count: int = 10, classes: Sequence[str] = CLASSES, seed: int = 0) -> Path:
    """root/<class>/<number>.png"""
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            random_image(rng).save(root / name / f"{number}.png")
    return root


def write_cifar10(root: Path, *, count: int = 20) -> Path:
    """The six batches, `count` images in each."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        batch = {b"data": data, b"labels": [number % 10 for number in range(count)]}
        (root / name).write_bytes(pickle.dumps(batch, protocol=4))
    return root


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


def packed(prefix: str, streams: Sequence[bytes], labels: Sequence[int]) -> dict[str, np.ndarray]:
    """The arrays of one part of a packed JPEG archive."""
    return {
        f"{prefix}body": np.frombuffer(b"".join(streams), dtype=np.uint8),
        f"{prefix}offsets": np.cumsum([0, *map(len, streams)]).astype(np.uint32),
        f"{prefix}labels": np.array(labels, dtype=np.uint8),
    }


def message_of(error: type[Exception], call: Callable[[], object]) -> str | None:
    """What `call` complains about, if it does."""
    try:
        call()
    except error as caught:
        return str(caught)
    return None


def write_jpeg_npz(path: Path, *, prefixes: Sequence[str] = ("train_", "test_"), count: int = 30) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {"classes": np.array(CLASSES)}
    for prefix in prefixes:
        streams = [jpeg(random_image(rng)) for _ in range(count)]
        arrays |= packed(prefix, streams, [number % 3 for number in range(count)])
    np.savez(path, **arrays)
    return path


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    """Files in a tar archive as `webdataset.TarWriter` writes them: USTAR, no folders, two empty blocks at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w|", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o444
            tar.addfile(member, io.BytesIO(content))
    return path


def write_shards(root: Path, part: str, *, shards: int = 2, count: int = 24, seed: int = 0) -> Path:
    """root/<part>-<number>.tar, with `count` images in each, of the classes 0, 1, 2, 0, ..."""
    rng = np.random.default_rng(seed)
    for shard in range(shards):
        files = {}
        for number in range(shard * count, (shard + 1) * count):
            files |= {f"{number:06d}.cls": str(number % 3).encode(), f"{number:06d}.jpg": jpeg(random_image(rng))}
        write_tar(root / f"{part}-{shard:06d}.tar", files)
    return root
