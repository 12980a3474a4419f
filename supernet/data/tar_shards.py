"""Images in tar shards, in the layout of the `webdataset` package. A sample is two files of one shard:

    <key>.jpg, .jpeg, .png or .webp    the image
    <key>.cls                          its class, an ASCII number from 0
    <key>.json                         or instead of that an object with the number as `label`

A key ends at the first dot after the last slash; other files are left alone. Shards belong to the part that their name
has between -, _ or . (`train-000000.tar`, `imagenet1k-validation-00.tar`), or their sub-folder (`train/000000.tar`).
`classes.txt` beside them may hold the names of the classes, one a line; without it they are called by their numbers.

Nothing is streamed: a stratified validation split needs all labels, and an epoch that repeats, as a resumed training
does, needs the image at a given place. So the headers of all shards are read once, for the offsets of the images. The
result is kept beside the shards as `.quasar-index-<part>.npz`, or in the user's cache where that folder cannot be
written, for as long as names, sizes and times of the shards stay the same. It takes one CPU core about a minute for the
1.3 million images of ImageNet, and the disk a seek for each.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hwmodel.errors import DamagedInputError, QuasarError, UsageError
from hwmodel.files import write_atomic
from supernet.data.config import DataConfig
from supernet.data.registry import Part
from supernet.data.samples import FileSamples, default_normalization

_LAYOUT = "a folder with tar shards of images called train-*.tar and val-*.tar"
_TESTS = ("val", "validation", "test")
_IMAGES = ("jpg", "jpeg", "png", "webp")
_COMPRESSED_NAMES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_COMPRESSED_STARTS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")

#: changes with the meaning of an index file
_FORMAT = 1
#: seconds between lines of progress
_LINE_INTERVAL_S = 5.0
#: digits of a label, at most
_DIGITS = 9


class _Index(NamedTuple):
    """The samples of a part, in the order of the shards and of the images in them; all arrays are (N,).

    shard: int64, in the list of the part's shards.
    member: the image's name in its shard, UTF-8.
    offset, size: int64, where the image is in its shard, in bytes.
    label: int64.
    """

    shard: NDArray[np.int64]
    member: NDArray[np.bytes_]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    label: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ShardSource:
    """The images of `index`, in `shards` relative to `root`.

    A shard is opened for each image: that costs much less than to decode one, and there may be more shards than a
    process may keep open.
    """

    root: Path
    shards: tuple[str, ...]
    index: _Index

    def read(self, index: int) -> Image.Image:
        """Decodes one image."""
        size = int(self.index.size[index])
        with (self.root / self._shard(index)).open("rb") as file:
            file.seek(int(self.index.offset[index]))
            data = file.read(size)
        if len(data) < size:
            raise EOFError("the shard is shorter than when it was opened")
        image = Image.open(io.BytesIO(data))
        image.load()
        return image

    def name(self, index: int) -> str:
        """The path of the shard and the name in it."""
        return f"{self.root / self._shard(index)}:{self._member(index)}"

    def identity(self, index: int) -> str:
        """The shard, the name in it, and the size in bytes."""
        return f"{self._shard(index)}:{self._member(index)} {self.index.size[index]}"

    def _shard(self, index: int) -> str:
        return self.shards[int(self.index.shard[index])]

    def _member(self, index: int) -> str:
        member: bytes = self.index.member[index].item()
        return member.decode(errors="surrogateescape")


def load(config: DataConfig, part: Part) -> FileSamples:
    """Reads the index, or makes it; no image is decoded."""
    config.refuse_unused("dataset", "download", because="its images lie under data.root")
    config.refuse_unused("test_fraction", because="its test part is in shards of its own")
    root = config.existing_root(_LAYOUT)
    if not root.is_dir():
        raise UsageError(f"data.root: {root} is a file; give {_LAYOUT}")
    # Both, whichever is asked for: their classes must agree.
    sources = {
        of: ShardSource(root=root, shards=shards, index=_indexed(root, name, shards))
        for of, (name, shards) in _part_shards(root, config.test_split).items()
    }
    classes = _classes(root, sources["train"].index.label)
    for source in sources.values():
        beyond = np.flatnonzero(source.index.label >= len(classes))
        if len(beyond):
            raise DamagedInputError(
                f"{source.name(beyond[0])}: its label {source.index.label[beyond[0]]} is out of range: there are "
                f"{len(classes)} classes, by {'classes.txt' if _names_file(root).exists() else 'the training samples'}"
            )
    in_chans = 1 if config.grey else 3
    return FileSamples(
        source=sources[part],
        labels=sources[part].index.label,
        classes=classes,
        in_chans=in_chans,
        normalization=default_normalization(in_chans),
    )


def _part_shards(root: Path, test_split: str | None) -> dict[Part, tuple[str, tuple[str, ...]]]:
    """Name and shards, relative to `root`, of each part."""
    train, *tests = ("train", *_TESTS) if test_split is None else ("train", test_split)
    found = {name: _shards_called(root, name) for name in (train, *tests)}
    if not found[train]:
        raise UsageError(f"data.root: {root} has no shards of the train part; give {_LAYOUT}")
    there = [name for name in tests if found[name]]
    if len(there) != 1:
        if test_split is not None:
            raise UsageError(f"data.test_split: {root} has no shards called '{test_split}'; remove the key or add them")
        there_are = f"shards called {', '.join(there)}" if there else "no test shards (called val, validation or test)"
        remedy = "choose with data.test_split" if there else "add them, such as val-000000.tar"
        raise UsageError(f"data.root: beside those of the train part {root} has {there_are}; {remedy}")
    test = there[0]
    if both := set(found[train]) & set(found[test]):
        raise UsageError(
            f"data.root: the name of {root / min(both)} has '{train}' and '{test}' in it; "
            "move the shards to a folder for each part"
        )
    return {"train": (train, found[train]), "test": (test, found[test])}


def _shards_called(root: Path, name: str) -> tuple[str, ...]:
    pattern = re.compile(rf"(?:^|[-_.]){re.escape(name)}(?:[-_.\d]|$)")
    paths = [path for path in root.glob("[!.]*") if pattern.search(path.name)]
    paths += (root / name).glob("[!.]*")
    for path in paths:
        if path.name.endswith(_COMPRESSED_NAMES):
            raise _compressed(path)
    return tuple(sorted(path.relative_to(root).as_posix() for path in paths if path.suffix == ".tar"))


def _compressed(path: Path) -> UsageError:
    return UsageError(f"data.root: {path} is compressed, so an image in it cannot be found by its place; unpack it")


def _names_file(root: Path) -> Path:
    return root / "classes.txt"


def _classes(root: Path, train_labels: NDArray[np.int64]) -> tuple[str, ...]:
    if not len(train_labels):
        raise UsageError(f"data.root: the shards of the train part in {root} hold no images; give {_LAYOUT}")
    path = _names_file(root)
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        there = np.unique(train_labels)
        absent = np.flatnonzero(there != np.arange(len(there)))
        if len(absent):
            raise UsageError(
                f"data.root: no training sample under {root} has the label {absent[0]}, but one has {there[-1]}; "
                f"number the classes from 0, or name all of them in {path}"
            ) from None
        return tuple(str(label) for label in there)
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedInputError(f"{path}: cannot be read as names of classes ({error})") from error
    if not all(name.strip() for name in names):
        raise DamagedInputError(f"{path}: has an empty line; give each class its name, in the order of the labels")
    return tuple(name.strip() for name in names)


def _indexed(root: Path, part: str, shards: tuple[str, ...]) -> _Index:
    """The index of a part, from a file if there is one that fits."""
    try:
        stats = [(shard, (root / shard).stat()) for shard in shards]
    except OSError as error:
        raise DamagedInputError(f"data.root: a shard cannot be read: {error}") from error
    about = [_FORMAT, [(shard, stat.st_size, stat.st_mtime_ns) for shard, stat in stats]]
    stamp = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    places = _index_files(root, part)
    for place in places:
        if (index := _kept(place, stamp)) is not None:
            return index
    index = _read_all(root, part, shards)
    buffer = io.BytesIO()
    np.savez(buffer, stamp=np.array(stamp), **index._asdict())
    for place in places:
        try:
            write_atomic(place, buffer.getvalue())
            return index
        except QuasarError as error:
            refused = error
    print(f"warning: the index will be made again next time: {refused}", file=sys.stderr)
    return index


def _index_files(root: Path, part: str) -> tuple[Path, Path]:
    """Beside the shards, and in the user's cache."""
    name = re.sub(r"\W", "-", part)
    of_root = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return root / f".quasar-index-{name}.npz", cache / "quasar" / f"index-{of_root}-{name}.npz"


def _kept(path: Path, stamp: str) -> _Index | None:
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return _Index(*(arrays[name] for name in _Index._fields)) if arrays["stamp"] == stamp else None
    except Exception:  # there is none, or it is damaged in any way: then it is made again
        return None


def _read_all(root: Path, part: str, shards: tuple[str, ...]) -> _Index:
    started = shown = time.monotonic()
    print(f"index of the {part} shards in {root}: started", file=sys.stderr, flush=True)
    rows: list[tuple[int, bytes, int, int, int]] = []
    for number, shard in enumerate(shards):
        rows += ((number, *sample) for sample in _read_shard(root / shard))
        now, last = time.monotonic(), number == len(shards) - 1
        if last or now - shown >= _LINE_INTERVAL_S:
            shown = now
            text = f"{number + 1}/{len(shards)} shards  {now - started:.0f} s  {len(rows):,} images"
            print(f"index of the {part} shards: {text}", file=sys.stderr, flush=True)
    shard_numbers, members, offsets, sizes, labels = zip(*rows, strict=True) if rows else ((),) * 5
    return _Index(
        shard=np.array(shard_numbers, dtype=np.int64),
        member=np.array(members, dtype=np.bytes_),
        offset=np.array(offsets, dtype=np.int64),
        size=np.array(sizes, dtype=np.int64),
        label=np.array(labels, dtype=np.int64),
    )


def _read_shard(path: Path) -> Iterator[tuple[bytes, int, int, int]]:
    """Name, offset, size and label of each image of a shard.

    Raises:
        UsageError: a compressed shard.
        DamagedInputError: no tar, one that was cut short, or samples that lack something or have it twice.
    """
    images: dict[str, tuple[str, int, int]] = {}
    classes: dict[str, int] = {}
    objects: dict[str, int | None] = {}
    try:
        for member, extension, content in _members(path):
            key = member.name[: -len(extension) - 1]
            if key in (classes if extension == "cls" else objects if extension == "json" else images):
                raise DamagedInputError(f"{path}: holds '{key}' twice ({member.name}); give each sample its own key")
            if extension == "cls":
                if not re.fullmatch(rb"\s*\d{1,%d}\s*" % _DIGITS, content):
                    raise DamagedInputError(f"{path}:{member.name}: is not the number of a class: {content[:20]!r}")
                classes[key] = int(content)
            elif extension == "json":
                objects[key] = _label_in(content)
            else:
                images[key] = (member.name, member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise DamagedInputError(f"{path}: cannot be read as a tar archive ({error}); copy it again") from error
    if alone := (classes.keys() | objects.keys()) - images.keys():
        raise DamagedInputError(f"{path}: the sample '{min(alone)}' has no image ({', '.join(_IMAGES)})")
    for key, (name, offset, size) in images.items():
        label = classes.get(key, objects.get(key))
        if label is None:
            raise DamagedInputError(
                f"{path}:{name}: has no label; add {key}.cls with a number, or {key}.json with a number as 'label'"
            )
        yield name.encode(errors="surrogateescape"), offset, size, label


def _members(path: Path) -> Iterator[tuple[tarfile.TarInfo, str, bytes]]:
    """The images and labels of a shard, with the extension in lower case, and the content if it is a label."""
    with path.open("rb") as file:
        if file.read(6).startswith(_COMPRESSED_STARTS):
            raise _compressed(path)
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it keeps every member otherwise
                extension = member.name.rpartition("/")[2].partition(".")[2].lower()
                if not member.isreg():
                    continue
                if extension in _IMAGES:
                    yield member, extension, b""
                elif extension in ("cls", "json"):
                    file.seek(member.offset_data)
                    content = file.read(member.size)
                    if len(content) < member.size:
                        raise tarfile.ReadError(f"{member.name} ends after {len(content)} bytes")
                    yield member, extension, content
            # tarfile takes a header that it cannot read for the end, and so a file that was cut between two members.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"neither a header nor the end at byte {tar.offset}")


def _label_in(content: bytes) -> int | None:
    """The label in a JSON object, None where there is none or it is no class number."""
    try:
        label = json.loads(content)["label"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return label if type(label) is int and 0 <= label < 10**_DIGITS else None
