import dataclasses
import gzip
import io
import json
import pickle
import shutil
import tarfile
import time

import numpy as np
import pytest
import torch
from dataset_files import jpeg, message_of, random_image, write_shards, write_tar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hwmodel.errors import DamagedInputError, UsageError
from supernet.data import tar_shards
from supernet.data.config import DataConfig
from supernet.data.splits import open_test, open_train
from supernet.data.tar_shards import load


def config(root, **keys) -> DataConfig:
    return DataConfig(name="tar-shards", root=str(root), **keys)


def image_bytes(value: int, kind: str = "PNG") -> bytes:
    image = random_image(np.random.default_rng(0), 10)
    image.paste((value,) * 3, (0, 0, 10, 10))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def shards(tmp_path):
    write_shards(tmp_path, "train")
    return write_shards(tmp_path, "val", shards=1, count=6, seed=1)


def with_train(root, files):
    """The shard of the train part, of an otherwise good data set, that holds `files`."""
    write_shards(root, "val", shards=1, count=6)
    return write_tar(root / "train-0.tar", files)


def names(samples) -> list[str]:
    return [samples.source.name(index) for index in range(len(samples.labels))]


def test_samples_are_found_by_their_offsets(tmp_path):
    """Labels of both kinds, before and after the image, capital letters, folders, dots, and files of no concern."""
    path = with_train(
        tmp_path,
        {
            "n01/a.cls": b"0\n",
            "n01/a.JPEG": image_bytes(0, "JPEG"),
            "n01/a.txt": b"an ant",
            "b.seg.png": b"no image",
            "b.webp": image_bytes(100, "WEBP"),
            "b.json": json.dumps({"label": 1, "width": 10}).encode(),
            "v1.0/c.png": image_bytes(200),
            "v1.0/c.json": b"not read where there is a .cls",
            "v1.0/c.cls": b"2",
            "README": b"",
        },
    )
    samples = load(config(tmp_path), "train")
    assert names(samples) == [f"{path}:n01/a.JPEG", f"{path}:b.webp", f"{path}:v1.0/c.png"]
    assert samples.labels.tolist() == [0, 1, 2]
    assert samples.classes == ("0", "1", "2")
    for index in range(3):
        assert np.asarray(samples.source.read(index)).mean() == pytest.approx(100 * index, abs=2)
    assert samples.source.identity(2) == f"train-0.tar:v1.0/c.png {len(image_bytes(200))}"


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path, tar_format):
    write_shards(tmp_path, "val", shards=1)
    key = f"{'folder/' * 20}käfer"
    with tarfile.open(tmp_path / "train-0.tar", "w", format=tar_format) as tar:
        for label in range(3):
            for name, content in (
                (f"{key}{label}.jpg", jpeg(random_image(np.random.default_rng(label)))),
                (f"{key}{label}.cls", str(label).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    for _ in range(2):  # found, and kept
        samples = load(config(tmp_path), "train")
        assert names(samples)[2] == f"{tmp_path / 'train-0.tar'}:{key}2.jpg"
        samples.source.read(2)


@pytest.mark.parametrize(
    ("train", "test", "test_split"),
    [
        ("train-000000", "val-000000", None),
        ("imagenet1k-train-0000", "imagenet1k-validation-00", None),
        ("train0", "test_0", None),
        ("train/000", "validation/train-000", None),
        ("train/000", "val/000", None),
        ("train-000000", "exam-000000", "exam"),
        ("my.train", "exam/0", "exam"),
    ],
)
def test_parts_by_name_and_by_folder(tmp_path, train, test, test_split):
    write_shards(tmp_path, "part", shards=1)
    for name in (train, test):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "part-000000.tar", tmp_path / f"{name}.tar")
    for part, name in (("train", train), ("test", test)):
        samples = load(config(tmp_path, test_split=test_split), part)
        assert names(samples)[5] == f"{tmp_path / name}.tar:000005.jpg"
        assert len(samples.labels) == 24


def test_parts_that_are_missing_or_ambiguous(tmp_path):
    with pytest.raises(UsageError, match=r"data\.root: .* has no shards of the train part"):
        load(config(tmp_path), "train")
    write_shards(tmp_path, "train", shards=1)
    with pytest.raises(UsageError, match="has no test shards"):
        load(config(tmp_path), "train")
    write_shards(tmp_path, "val", shards=1)
    write_shards(tmp_path, "test", shards=1)
    with pytest.raises(UsageError, match=r"shards called val, test; choose with data\.test_split"):
        load(config(tmp_path), "test")
    assert "test-000000.tar" in names(load(config(tmp_path, test_split="test"), "test"))[0]
    with pytest.raises(UsageError, match=r"data\.test_split: .* no shards called 'exam'"):
        load(config(tmp_path, test_split="exam"), "test")
    (tmp_path / "test-000000.tar").unlink()
    (tmp_path / "val-000000.tar").rename(tmp_path / "train-val-000000.tar")
    with pytest.raises(UsageError, match=r"train-val-000000\.tar has 'train' and 'val' in it"):
        load(config(tmp_path), "train")
    with pytest.raises(UsageError, match="is a file"):
        load(config(tmp_path / "train-000000.tar"), "train")
    with pytest.raises(UsageError, match=r"data\.dataset has no effect"):
        load(config(tmp_path, dataset="wds/x"), "train")


def test_names_of_the_classes(shards):
    file = shards / "classes.txt"
    file.write_text("ant\nbee\ncat\n")
    assert load(config(shards), "test").classes == ("ant", "bee", "cat")
    file.write_text("ant\nbee\n")
    with pytest.raises(DamagedInputError, match=r"train-000000\.tar:000002\.jpg: its label 2 is out of range: .* 2 cl"):
        load(config(shards), "train")
    file.write_text("ant\n\nbee\n")
    with pytest.raises(DamagedInputError, match=r"classes\.txt: has an empty line"):
        load(config(shards), "train")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(DamagedInputError, match=r"classes\.txt: cannot be read"):
        load(config(shards), "train")


def test_labels_that_are_no_classes(tmp_path):
    image = image_bytes(0)
    with_train(tmp_path, {"a.png": image, "a.cls": b"1", "b.png": image, "b.cls": b"2"})
    with pytest.raises(UsageError, match=r"no training sample .* has the label 0, but one has 2; number"):
        load(config(tmp_path), "train")
    with_train(tmp_path, {"a.png": image, "a.cls": b"1", "b.png": image, "b.cls": b"0"})
    with pytest.raises(DamagedInputError, match=r"val-000000\.tar:000002\.jpg: its label 2 is out of range"):
        load(config(tmp_path), "train")
    with_train(tmp_path, {})
    with pytest.raises(UsageError, match=r"the train part in .* hold no images"):
        load(config(tmp_path), "test")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jpg": b""}, r"train-0\.tar:a\.jpg: has no label; add a\.cls"),
        ({"a.jpg": b"", "a.json": b"{}"}, r"a\.jpg: has no label"),
        ({"a.jpg": b"", "a.json": b"[1]"}, r"a\.jpg: has no label"),
        ({"a.jpg": b"", "a.json": b"{"}, r"a\.jpg: has no label"),
        ({"a.jpg": b"", "a.json": b'{"label": true}'}, r"a\.jpg: has no label"),
        ({"a.jpg": b"", "a.json": b'{"label": -1}'}, r"a\.jpg: has no label"),
        ({"a.jpg": b"", "a.json": b'{"label": 1e3}'}, r"a\.jpg: has no label"),
        ({"a.jpg": b"", "a.cls": b"-1"}, r"train-0\.tar:a\.cls: is not the number of a class: b'-1'"),
        ({"a.jpg": b"", "a.cls": b"ant"}, r"a\.cls: is not the number of a class: b'ant'"),
        ({"a.jpg": b"", "a.cls": b""}, r"a\.cls: is not the number of a class"),
        ({"a.jpg": b"", "a.cls": b"9" * 5000}, r"a\.cls: is not the number of a class"),
        ({"a.cls": b"1", "a.tif": b""}, r"train-0\.tar: the sample 'a' has no image"),
        ({"a.jpg": b"", "a.png": b"", "a.cls": b"1"}, r"train-0\.tar: holds 'a' twice \(a\.png\)"),
        ({"x/a.cls": b"1", "x/a.CLS": b"1"}, r"holds 'x/a' twice"),
    ],
)
def test_samples_that_are_incomplete_or_double(tmp_path, files, message):
    with_train(tmp_path, files)
    with pytest.raises(DamagedInputError, match=message):
        load(config(tmp_path), "train")


def test_the_same_key_in_two_shards_is_two_samples(tmp_path):
    write_shards(tmp_path, "val", shards=1)
    for number in range(2):
        shutil.copy(tmp_path / "val-000000.tar", tmp_path / f"train-{number}.tar")
    assert len(set(names(load(config(tmp_path), "train")))) == 48


@pytest.mark.parametrize("keep", [0, 100, 512, 700, 1024, 2000, -1024, -1500])
def test_a_truncated_shard_is_named(shards, keep):
    """Also where it ends between two members, which `tarfile` takes for the end."""
    path = shards / "train-000001.tar"
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1]
    whole = path.read_bytes()[: end.offset_data + 1024 + 512 * (-(-end.size // 512))]
    path.write_bytes(whole[:keep])
    with pytest.raises(DamagedInputError, match=r"train-000001\.tar: cannot be read as a tar archive"):
        load(config(shards), "train")


def test_compressed_shards_are_refused(shards):
    path = shards / "train-000001.tar"
    packed = gzip.compress(path.read_bytes())
    path.write_bytes(packed)
    with pytest.raises(UsageError, match=r"train-000001\.tar is compressed"):
        load(config(shards), "train")
    path.rename(shards / "train-000001.tar.gz")
    with pytest.raises(UsageError, match=r"train-000001\.tar\.gz is compressed"):
        load(config(shards), "train")


def times_read(monkeypatch) -> list[str]:
    read = []
    original = tar_shards._read_shard
    monkeypatch.setattr(tar_shards, "_read_shard", lambda path: read.append(path.name) or original(path))
    return read


def test_the_headers_are_read_once(shards, monkeypatch, capsys):
    read = times_read(monkeypatch)
    first = load(config(shards), "train")
    assert read == ["train-000000.tar", "train-000001.tar", "val-000000.tar"]
    told = capsys.readouterr()
    assert told.out == ""
    assert "index of the train shards" in told.err
    second = load(config(shards), "train")
    assert len(read) == 3
    assert capsys.readouterr().err == ""
    for ours, theirs in zip(first.source.index, second.source.index, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert sorted(path.name for path in shards.iterdir() if path.suffix != ".tar") == [
        ".quasar-index-train.npz",
        ".quasar-index-val.npz",
    ]


def test_a_changed_shard_is_read_again(shards, monkeypatch):
    load(config(shards), "train")
    read = times_read(monkeypatch)
    time.sleep(0.02)
    write_shards(shards, "val", shards=1, count=9, seed=2)
    assert len(load(config(shards), "test").labels) == 9
    assert read == ["val-000000.tar"]
    for damage in (b"", b"PK", (shards / ".quasar-index-train.npz").read_bytes()[:-300]):
        (shards / ".quasar-index-train.npz").write_bytes(damage)
        read.clear()
        assert len(load(config(shards), "train").labels) == 48
        assert read == ["train-000000.tar", "train-000001.tar"]


def test_where_the_folder_cannot_be_written_the_index_is_in_the_cache(shards, cache, monkeypatch, capsys):
    allowed = [cache]

    def write(path, data):
        if not any(path.is_relative_to(folder) for folder in allowed):
            raise tar_shards.QuasarError(f"{path}: cannot be written: Read-only file system")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    monkeypatch.setattr(tar_shards, "write_atomic", write)
    load(config(shards), "train")
    assert len(list((cache / "quasar").iterdir())) == 2
    read = times_read(monkeypatch)
    load(config(shards), "train")
    assert read == []
    shutil.rmtree(cache / "quasar")
    allowed.clear()
    capsys.readouterr()
    assert len(load(config(shards), "train").labels) == 48
    assert "warning: the index will be made again next time: " in capsys.readouterr().err


def test_digest_depends_on_the_content_not_on_the_place(shards, tmp_path_factory):
    def digest(root):
        return open_test(config(root), image_size=8).digest

    copy = tmp_path_factory.mktemp("other") / "copy"
    shutil.copytree(shards, copy)
    before = digest(shards)
    assert digest(copy) == before
    (copy / "val-000000.tar").rename(copy / "val-1.tar")
    assert digest(copy) != before


def everything(split, **keys):
    images, labels = zip(*split.batches(5, **keys), strict=True)
    return torch.cat(images), torch.cat(labels)


def test_images_do_not_depend_on_the_workers(shards):
    alone = config(shards, auto_augment="rand-m9-mstd0.5-inc1", horizontal_flip=True)
    crowd = dataclasses.replace(alone, workers=2)
    expected, found = (everything(open_train(c, image_size=8, seed=0)[0], epoch=2) for c in (alone, crowd))
    assert all(map(torch.equal, expected, found))


def test_unreadable_images_are_named_and_may_be_skipped(shards, capsys):
    path = shards / "val-000000.tar"
    with tarfile.open(path) as tar:
        members = [member for member in tar.getmembers() if member.name.endswith(".jpg")]
    with path.open("r+b") as file:
        file.seek(members[2].offset_data)
        file.write(bytes(members[2].size))
    with pytest.raises(DamagedInputError, match=r"val-000000\.tar:000002\.jpg: cannot be read as an image"):
        everything(open_test(config(shards), image_size=8))
    assert len(everything(open_test(config(shards, max_unreadable=1), image_size=8))[1]) == 5
    split = open_test(config(shards, max_unreadable=5), image_size=8)
    path.write_bytes(path.read_bytes()[: members[4].offset_data + 10])
    assert len(everything(split)[1]) == 3
    assert "000004.jpg: cannot be read as an image (EOFError: the shard is shorter than" in capsys.readouterr().err


def test_the_source_pickles(shards):
    source = load(config(shards), "train").source
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read(7).tobytes() == source.read(7).tobytes()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_damage_is_reported_as_such(tmp_path, place, change):
    if not (tmp_path / "val-000000.tar").exists():
        with_train(
            tmp_path,
            {
                f"{number}.{kind}": value
                for number in range(3)
                for kind, value in (("jpg", b"pixels"), ("cls", str(number).encode()))
            },
        )
        (tmp_path / "whole").write_bytes((tmp_path / "train-0.tar").read_bytes())
    data = bytearray((tmp_path / "whole").read_bytes())
    data[int(place * 7 * 512)] ^= change
    path = tmp_path / "train-0.tar"
    path.write_bytes(data)
    message = message_of((DamagedInputError, UsageError), lambda: list(load(config(tmp_path), "train").labels))
    assert message is None or str(tmp_path) in message
