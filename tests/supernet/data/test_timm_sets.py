import io
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from dataset_files import CLASSES, jpeg, random_image, write_class_folders
from timm.data.dataset import ImageDataset

from hwmodel.errors import DamagedInputError, UsageError
from supernet.data import timm_sets
from supernet.data.config import DataConfig
from supernet.data.samples import ArraySamples, FileSamples
from supernet.data.splits import open_test, open_train


def config(dataset, root=None, **keys) -> DataConfig:
    return DataConfig(name="timm", dataset=dataset, root=None if root is None else str(root), **keys)


def write_mnist(root, *, count=40):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("train", "t10k"):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, count, 28, 28) + images.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())


def test_torch_sets_of_arrays_stay_in_memory(tmp_path):
    write_mnist(tmp_path)
    mnist = config("torch/mnist", tmp_path, val_fraction=0.25, crop_padding=2)
    samples = timm_sets.load(mnist, "test")
    assert isinstance(samples, ArraySamples)
    assert samples.images.shape == (40, 1, 28, 28)
    assert samples.classes[3] == "3 - three"
    train, val = open_train(mnist, image_size=28, seed=0)
    assert (len(train), len(val), train.in_chans) == (30, 10, 1)


class Reader:
    """A timm reader of JPEG streams, as that of Hugging Face's data sets is."""

    class_to_idx = {"ant": 0, "bee": 1}

    def __init__(self, labels=(0, 1) * 10):
        rng = np.random.default_rng(0)
        self.streams = [jpeg(random_image(rng, 10)) for _ in labels]
        self.labels = labels

    def __getitem__(self, index):
        return io.BytesIO(self.streams[index]), self.labels[index]

    def __len__(self):
        return len(self.streams)

    def iter_targets(self):
        return iter(self.labels)


@pytest.fixture
def reader(monkeypatch):
    reader = Reader()
    asked = []

    def create_dataset(name, *, root, split, download):
        asked.append((name, root, split, download))
        print("noise")
        return ImageDataset(root, reader=reader)

    monkeypatch.setattr(timm_sets, "create_dataset", create_dataset)
    reader.asked = asked
    return reader


def test_sets_with_a_reader_are_decoded_later(reader, capsys):
    samples = timm_sets.load(config("hfds/some/set", test_split="exam"), "test")
    assert isinstance(samples, FileSamples)
    assert samples.classes == ("ant", "bee")
    assert reader.asked == [("hfds/some/set", None, "exam", False)]
    assert capsys.readouterr().out == ""
    images, labels = next(open_test(config("hfds/some/set"), image_size=8).batches(20))
    assert images.shape == (20, 3, 8, 8)
    assert labels.sum() == 10


def test_no_other_image_takes_the_place_of_an_unreadable_one(reader):
    reader.streams[3] = b"nothing"
    split = open_test(config("hfds/some/set"), image_size=8)
    with pytest.raises(DamagedInputError, match=r"hfds/some/set:test\[3\]: cannot be read"):
        list(split.batches(5))


@pytest.mark.parametrize("labels", [[-1] * 20, [[0, 1]] * 20, [0.5] * 20, ["ant"] * 20, [None] * 20])
def test_labels_must_be_classes(reader, labels):
    reader.labels = labels
    with pytest.raises(UsageError, match=r"data\.dataset: the test part of 'hfds/some/set' cannot be used"):
        timm_sets.load(config("hfds/some/set"), "test")


def test_torch_sets_of_files_are_decoded_later(tmp_path, monkeypatch):
    """As torchvision's ImageNet: paths with labels, and synonyms for each class."""
    write_class_folders(tmp_path / "val", count=2)
    imgs = [(str(path), label) for label in range(3) for path in sorted((tmp_path / "val" / CLASSES[label]).iterdir())]
    opened = SimpleNamespace(imgs=imgs, classes=[("ant", "emmet"), ("bee",), ("cat",)])
    monkeypatch.setattr(timm_sets, "create_dataset", lambda *args, **keys: opened)
    samples = timm_sets.load(config("torch/imagenet", tmp_path, grey=True), "test")
    assert samples.classes == ("ant, emmet", "bee", "cat")
    assert samples.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert samples.source.identity(5).startswith("val/cat/1.png ")
    assert samples.in_chans == 1


@pytest.mark.parametrize("test_split", ["training", "train[:10%]"])
def test_the_test_part_is_not_of_the_train_part(test_split):
    with pytest.raises(UsageError, match=r"data\.test_split"):
        timm_sets.load(config("hfds/some/set", test_split=test_split), "train")


@pytest.mark.parametrize("dataset", [None, "cifar10", "tfds/mnist", "wds/some", "hfids/some", "torch/image_folder"])
def test_sets_without_random_access_or_parts_are_refused(dataset):
    with pytest.raises(UsageError, match=r"data\.dataset: "):
        timm_sets.load(config(dataset), "train")


def test_streams_of_shards_have_a_data_set_of_their_own():
    with pytest.raises(UsageError, match=r"'wds/imagenet' is a stream.*data\.name=tar-shards"):
        timm_sets.load(config("wds/imagenet"), "train")


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"data\.root is missing"):
        timm_sets.load(config("torch/mnist"), "train")
    with pytest.raises(UsageError, match=r"data\.root: .*nowhere does not exist; .*or set data\.download"):
        timm_sets.load(config("torch/mnist", tmp_path / "nowhere"), "train")
    with pytest.raises(UsageError, match=r"'torch/mnist' cannot be opened: .*data\.download=true"):
        timm_sets.load(config("torch/mnist", tmp_path), "train")
    with pytest.raises(UsageError, match=r"'torch/nist' cannot be opened: .*Unknown torchvision dataset"):
        timm_sets.load(config("torch/nist", tmp_path), "train")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match="pip install datasets"):
        timm_sets.load(config("hfds/some/set"), "train")
