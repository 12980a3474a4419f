"""What every data set has to do. For one of your own, subclass `DatasetContract` and say how it is opened:

class TestMine(DatasetContract):
    @pytest.fixture
    def config(self, tmp_path):
        return DataConfig(name="my-set", root=str(tmp_path))
"""

import dataclasses
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import write_cifar10, write_class_folders, write_jpeg_npz, write_shards

from supernet.data.config import DataConfig
from supernet.data.registry import DATASETS
from supernet.data.samples import ArraySamples, FileSamples
from supernet.data.splits import open_test, open_train

SIZE = 8


def keys(samples: ArraySamples | FileSamples) -> list[object]:
    """What tells the images of a part apart."""
    if isinstance(samples, ArraySamples):
        return [image.tobytes() for image in samples.images]
    return [samples.source.name(index) for index in range(len(samples.labels))]


class DatasetContract:
    @pytest.fixture
    def config(self, tmp_path: Path) -> DataConfig:
        raise NotImplementedError

    def test_parts_agree_and_share_no_image(self, config):
        load = DATASETS.get(config.name)
        train, test = load(config, "train"), load(config, "test")
        assert train.classes == test.classes
        assert train.in_chans == test.in_chans
        assert train.normalization == test.normalization
        assert not set(keys(train)) & set(keys(test))

    def test_loading_is_repeatable(self, config):
        load = DATASETS.get(config.name)
        first, second = load(config, "train"), load(config, "train")
        assert keys(first) == keys(second)
        np.testing.assert_array_equal(first.labels, second.labels)

    def test_every_class_is_in_training_and_validation(self, config):
        for split in open_train(config, image_size=SIZE, seed=0):
            labels = torch.cat([labels for _, labels in split.batches(64)])
            assert len(labels) == len(split)
            assert set(labels.tolist()) == set(range(split.num_classes))

    def test_batches(self, config):
        train, val = open_train(config, image_size=SIZE, seed=0)
        test = open_test(config, image_size=SIZE)
        streams = (train.batches(2, epoch=0), train.batches(2), val.batches(2), test.batches(2))
        for images, labels in map(next, streams):
            assert images.shape == (2, train.in_chans, SIZE, SIZE)
            assert images.dtype == torch.float32
            assert images.isfinite().all()
            assert labels.shape == (2,)
            assert labels.dtype == torch.int64
        assert train.digest != val.digest != test.digest

    def test_epochs_repeat_and_differ(self, config):
        config = dataclasses.replace(config, horizontal_flip=True)
        (first, _), (again, _) = (open_train(config, image_size=SIZE, seed=0) for _ in range(2))
        images, labels = next(first.batches(8, epoch=3))
        same_images, same_labels = next(again.batches(8, epoch=3))
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
        assert not torch.equal(images, next(first.batches(8, epoch=4))[0])

    def test_global_generators_are_left_alone(self, config):
        def state():
            return random.getstate(), pickle.dumps(np.random.get_state()), torch.random.get_rng_state().tolist()

        before = state()
        train, val = open_train(config, image_size=SIZE, seed=0)
        list(train.batches(8, epoch=0))
        list(val.batches(8))
        assert state() == before

    def test_samples_survive_pickling(self, config):
        samples = DATASETS.get(config.name)(config, "test")
        assert keys(pickle.loads(pickle.dumps(samples))) == keys(samples)


class TestDigits(DatasetContract):
    @pytest.fixture
    def config(self):
        return DataConfig(name="digits", crop_padding=1)


class TestDigitsWithPolicy(DatasetContract):
    @pytest.fixture
    def config(self):
        return DataConfig(name="digits", auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25)


class TestCifar10(DatasetContract):
    @pytest.fixture
    def config(self, tmp_path):
        return DataConfig(name="cifar10", root=str(write_cifar10(tmp_path / "cifar")), crop_padding=2)


class TestFolder(DatasetContract):
    @pytest.fixture
    def config(self, tmp_path):
        return DataConfig(name="folder", root=str(write_class_folders(tmp_path, count=15)))


class TestFolderWithParts(DatasetContract):
    @pytest.fixture
    def config(self, tmp_path):
        write_class_folders(tmp_path / "train", count=15)
        write_class_folders(tmp_path / "val", count=4, seed=1)
        return DataConfig(
            name="folder", root=str(tmp_path), auto_augment="rand-m9-mstd0.5", random_erasing=0.25, grey=True
        )


class TestTarShards(DatasetContract):
    @pytest.fixture
    def config(self, tmp_path):
        write_shards(tmp_path, "train")
        write_shards(tmp_path, "val", shards=1, seed=1)
        return DataConfig(name="tar-shards", root=str(tmp_path), random_erasing=0.25)


class TestJpegNpz(DatasetContract):
    @pytest.fixture(params=[("train_", "test_"), ("",)], ids=["parts", "whole"])
    def config(self, request, tmp_path):
        path = write_jpeg_npz(tmp_path / "packed.npz", prefixes=request.param, count=60)
        return DataConfig(name="jpeg-npz", root=str(path))
