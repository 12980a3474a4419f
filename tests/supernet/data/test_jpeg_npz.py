import io

import numpy as np
import pytest
from dataset_files import CLASSES, jpeg, message_of, packed, random_image, write_jpeg_npz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hwmodel.errors import DamagedInputError, QuasarError, UsageError
from supernet.data.config import DataConfig
from supernet.data.jpeg_npz import load


def config(path, **keys) -> DataConfig:
    return DataConfig(name="jpeg-npz", root=str(path), **keys)


def test_images_are_those_of_the_streams(tmp_path):
    rng = np.random.default_rng(0)
    streams = [jpeg(random_image(rng)) for _ in range(4)]
    path = tmp_path / "some.npz"
    np.savez(path, **packed("train_", streams, [0, 1, 2, 1]))
    samples = load(config(path), "train")
    expected = [np.asarray(Image.open(io.BytesIO(stream))).transpose(2, 0, 1) for stream in streams]
    np.testing.assert_array_equal(samples.images, expected)
    assert samples.labels.tolist() == [0, 1, 2, 1]
    assert samples.classes == ("0", "1", "2")
    assert load(config(path, grey=True), "train").images.shape == (4, 1, 12, 12)
    with pytest.raises(UsageError, match="has no test part"):
        load(config(path), "test")


def test_a_common_header_is_put_before_streams_without_one(tmp_path):
    rng = np.random.default_rng(0)
    streams = [jpeg(random_image(rng)) for _ in range(3)]
    header = streams[0][:400]
    assert all(stream.startswith(header) for stream in streams)
    path, whole = tmp_path / "some.npz", tmp_path / "whole.npz"
    # The last one is complete by itself.
    shortened = [*(stream[400:] for stream in streams[:2]), streams[2]]
    np.savez(path, header=np.frombuffer(header, np.uint8), **packed("test_", shortened, [0, 1, 2]))
    np.savez(whole, **packed("test_", streams, [0, 1, 2]))
    np.testing.assert_array_equal(load(config(path), "test").images, load(config(whole), "test").images)


def test_an_archive_without_parts_is_divided_for_good(tmp_path):
    path = write_jpeg_npz(tmp_path / "some.npz", prefixes=[""], count=30)
    train, test = (load(config(path, split_seed=7), part) for part in ("train", "test"))
    assert np.bincount(test.labels).tolist() == [2, 2, 2]
    assert len(train.labels) == 24
    assert train.classes == CLASSES
    np.testing.assert_array_equal(load(config(path, split_seed=8), "test").images, test.images)


def test_the_share_of_the_test_part_can_be_chosen(tmp_path):
    path = write_jpeg_npz(tmp_path / "some.npz", prefixes=[""], count=30)
    train, test = (load(config(path, test_fraction=0.6), part) for part in ("train", "test"))
    assert np.bincount(train.labels).tolist() == [4, 4, 4]
    assert np.bincount(test.labels).tolist() == [6, 6, 6]
    with pytest.raises(UsageError, match=r"data\.test_fraction has no effect .*: the archive has a test part"):
        load(config(write_jpeg_npz(tmp_path / "parts.npz"), test_fraction=0.6), "train")


def test_one_image_of_each_class_is_divided_without_regard_to_classes_only(tmp_path):
    path = write_jpeg_npz(tmp_path / "some.npz", prefixes=[""], count=3)
    with pytest.raises(UsageError, match=r"data\.test_fraction: 0\.2 of the 1 images of class 'ant'.*stratify=false"):
        load(config(path), "train")
    train, test = (load(config(path, test_fraction=0.4, stratify=False), part) for part in ("train", "test"))
    assert sorted([*train.labels, *test.labels]) == [0, 1, 2]
    assert len(test.labels) == 1
    assert train.classes == test.classes == CLASSES


def test_roots_that_are_no_archive(tmp_path):
    with pytest.raises(UsageError, match="is a folder"):
        load(config(tmp_path), "train")
    with pytest.raises(UsageError, match="does not exist"):
        load(config(tmp_path / "nowhere.npz"), "train")


def test_images_of_several_sizes_point_to_the_folder_data_set(tmp_path):
    rng = np.random.default_rng(0)
    streams = [jpeg(random_image(rng, size)) for size in (8, 9)]
    np.savez(tmp_path / "some.npz", **packed("train_", streams, [0, 1]))
    with pytest.raises(UsageError, match="2 sizes; use the data set 'folder'"):
        load(config(tmp_path / "some.npz"), "train")


@pytest.mark.parametrize(
    "change",
    [
        {"train_labels": np.zeros(29, np.uint8)},
        {"train_offsets": np.arange(31)[::-1]},
        {"train_offsets": np.arange(31) * 10**6},
        {"train_labels": np.full(30, 3, np.uint8)},
        {"train_body": np.zeros(10**5, np.uint8)},
        {"train_labels": np.array([None] * 30)},
    ],
)
def test_arrays_that_do_not_fit(tmp_path, change):
    path = write_jpeg_npz(tmp_path / "some.npz")
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **(arrays | change))
    with pytest.raises(DamagedInputError, match=r"some\.npz: not a packed JPEG archive"):
        load(config(path), "train")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_reported_as_such(tmp_path, data):
    path = write_jpeg_npz(tmp_path / "some.npz", count=6)
    whole = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:place])
    else:
        whole[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(whole)
    # A usage error if it is a name of an array that changed: the part is not there.
    message = message_of(QuasarError, lambda: load(config(path), "train"))
    assert message is None or str(path) in message
