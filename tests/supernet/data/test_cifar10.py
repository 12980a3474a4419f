import io
import pickle
import struct

import numpy as np
import pytest
from dataset_files import message_of, write_cifar10
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hwmodel.errors import DamagedInputError, UsageError
from supernet.data.cifar10 import CLASSES, load
from supernet.data.config import DataConfig


@pytest.fixture
def root(tmp_path):
    return write_cifar10(tmp_path / "cifar-10-batches-py")


def config(root, **keys) -> DataConfig:
    return DataConfig(name="cifar10", root=str(root), **keys)


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, which is how the original files are."""

    def save_bytes(self, value):
        if len(value) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(value)]) + value)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch = pickle._Pickler.dispatch | {bytes: save_bytes}


def test_planes_and_labels(root):
    data = np.zeros((10, 3072), np.uint8)
    data[1, 1024 + 32] = 7  # green, second row, first column
    (root / "test_batch").write_bytes(pickle.dumps({b"data": data, b"labels": list(range(10))}, protocol=4))
    samples = load(config(root), "test")
    assert samples.images.shape == (10, 3, 32, 32)
    assert samples.images[1, 1, 1, 0] == samples.images.sum() == 7
    assert samples.labels.tolist() == list(range(10))
    assert samples.classes == CLASSES


def test_training_batches_follow_each_other(root):
    samples = load(config(root), "train")
    assert len(samples.images) == 100
    fifth = pickle.loads((root / "data_batch_5").read_bytes())
    np.testing.assert_array_equal(samples.images[80:].reshape(20, -1), fifth[b"data"])


def test_the_parent_folder_will_do(root):
    np.testing.assert_array_equal(load(config(root.parent), "test").images, load(config(root), "test").images)


def test_files_of_python_2(root):
    batch = {b"data": np.arange(6144).astype(np.uint8).reshape(2, 3072), b"labels": [3, 1], b"batch_label": b"1 of 1"}
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(batch)
    old = buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (root / "test_batch").write_bytes(old)
    samples = load(config(root), "test")
    np.testing.assert_array_equal(samples.images.reshape(2, 3072), batch[b"data"])


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_runs_no_code(root, tmp_path):
    bait = tmp_path / "bait"
    (root / "test_batch").write_bytes(pickle.dumps({b"data": Malicious(bait)}))
    with pytest.raises(DamagedInputError, match=r"test_batch: .*io\.open"):
        load(config(root), "test")
    assert not bait.exists()


def test_missing_root_and_batch(root, tmp_path):
    with pytest.raises(UsageError, match=r"data\.root is missing"):
        load(DataConfig(name="cifar10"), "train")
    with pytest.raises(UsageError, match=r"data\.root: .*nowhere does not exist"):
        load(config(tmp_path / "nowhere"), "train")
    (root / "data_batch_3").unlink()
    with pytest.raises(UsageError, match="data_batch_3 is missing"):
        load(config(root), "train")


@pytest.mark.parametrize(
    "batch",
    [
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]},
        {b"data": np.zeros((2, 3072), np.float32), b"labels": [0, 1]},
        {b"data": np.zeros((2, 1024), np.uint8), b"labels": [0, 1]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]},
        {b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [0, 1]},
        {b"data": b"text", b"labels": [0]},
        ["neither"],
    ],
)
def test_pickles_of_something_else(root, batch):
    (root / "test_batch").write_bytes(pickle.dumps(batch, protocol=4))
    with pytest.raises(DamagedInputError, match="test_batch: not a CIFAR-10 batch"):
        load(config(root), "test")


# CPython complains of its own buffer, besides raising, where a byte becomes the opcode BYTEARRAY8.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_reported_as_such(root, data):
    """Cut or changed anywhere, a batch loads (a changed pixel) or is reported with its name."""
    path = root / "test_batch"
    whole = bytearray(pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}, protocol=4))
    # Most bytes are pixels; the structure is at the ends.
    place = data.draw(st.one_of(st.integers(0, 250), st.integers(len(whole) - 40, len(whole) - 1)))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:place])
    else:
        whole[place] = data.draw(st.integers(0, 255))
        path.write_bytes(whole)
    message = message_of(DamagedInputError, lambda: load(config(root), "test"))
    assert message is None or str(path) in message
