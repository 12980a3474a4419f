"""Splits, mostly of a small data set in memory, whose images can be told from each other."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.errors import UsageError
from supernet.data.config import DataConfig
from supernet.data.memory import crop_and_flip, resize
from supernet.data.registry import DATASETS
from supernet.data.samples import ArraySamples, Normalization
from supernet.data.splits import open_test, open_train

UNIT = Normalization((0.0,), (1.0,))


def constant_images(values, size: int = 4) -> np.ndarray:
    """Grey images, each of one value."""
    return np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], (len(values), 1, size, size)).copy()


@pytest.fixture
def register(monkeypatch):
    """Registers samples under "mine" for one test; the image with value v has label v % 2."""

    def add(train: int = 100, test: int = 20, **changes):
        def load(config, part):
            values = np.arange(train) if part == "train" else np.arange(200, 200 + test)
            given = {
                "images": constant_images(values),
                "labels": values % 2,
                "classes": ("even", "odd"),
                "normalization": UNIT,
            }
            return ArraySamples(**(given | changes))

        monkeypatch.setitem(DATASETS._entries, "mine", load)

    return add


def open_mine(*, image_size: int = 4, seed: int = 0, **keys):
    return open_train(DataConfig(name="mine", **keys), image_size=image_size, seed=seed)


def values(batches) -> list[int]:
    """The values of constant images, in order."""
    return [round(float(image.max()) * 255) for images, _ in batches for image in images]


def test_training_and_validation_divide_the_train_part(register):
    register()
    train, val = open_mine(val_fraction=0.2)
    assert (len(train), len(val)) == (80, 20)
    train_values, val_values = values(train.batches(7)), values(val.batches(7))
    assert sorted(train_values + val_values) == list(range(100))
    assert sum(value % 2 for value in val_values) == 10
    assert train_values != sorted(train_values)


def test_a_set_with_one_image_of_each_class_is_split_without_regard_to_classes(register):
    register(train=10, labels=np.arange(10), classes=tuple("abcdefghij"))
    with pytest.raises(UsageError, match=r"data\.val_fraction: .*data\.stratify=false"):
        open_mine(val_fraction=0.4)
    train, val = open_mine(val_fraction=0.4, stratify=False)
    assert (len(train), len(val)) == (6, 4)
    assert sorted(values(train.batches(7)) + values(val.batches(7))) == list(range(10))


def test_labels_belong_to_their_images(register):
    register()
    train, _ = open_mine(horizontal_flip=True)
    for epoch in (None, 0):
        for images, labels in train.batches(16, epoch=epoch):
            assert ((images[:, 0, 0, 0] * 255).round().long() % 2).equal(labels)


def test_split_seed_alone_decides_the_split(register):
    register()
    _, val = open_mine(seed=0)
    _, same = open_mine(seed=1)
    _, other = open_mine(split_seed=1)
    assert values(val.batches(100)) == values(same.batches(100))
    assert set(values(val.batches(100))) != set(values(other.batches(100)))
    assert val.digest == same.digest != other.digest


def test_the_test_split_depends_on_no_seed(register):
    register()
    orders = [values(open_test(DataConfig(name="mine", split_seed=seed), image_size=4).batches(100)) for seed in (0, 1)]
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == list(range(200, 220))


def test_digest_covers_pixels_labels_and_classes(register):
    register()
    digests = {open_mine()[0].digest}
    pixels = constant_images(np.arange(100))
    pixels[:, 0, 3, 3] ^= 1
    for change in ({"images": pixels}, {"labels": 1 - np.arange(100) % 2}, {"classes": ("a", "b")}):
        register(**change)
        digests.add(open_mine()[0].digest)
    assert len(digests) == 4
    register()
    assert open_mine(image_size=8)[0].digest in digests


def test_without_an_epoch_the_last_batch_is_partial(register):
    register()
    train, _ = open_mine()
    assert [len(labels) for _, labels in train.batches(40)] == [40, 40, 10]
    assert [len(labels) for _, labels in train.batches(1000)] == [90]


def test_epochs_have_full_batches_of_distinct_images(register):
    register()
    train, _ = open_mine(crop_padding=1)
    batches = list(train.batches(40, epoch=0))
    assert [len(labels) for _, labels in batches] == [40, 40]
    assert len(set(values(batches))) == 80


def test_limit_is_a_prefix_of_the_fixed_order(register):
    register()
    train, _ = open_mine()
    everything = values(train.batches(100))
    assert values(train.batches(8, limit=20)) == everything[:20]
    assert sorted(values(train.batches(5, epoch=3, limit=20))) == sorted(everything[:20])
    assert len(values(train.batches(8, limit=10**6))) == 90


@cache
def augmented_digits():
    return open_train(DataConfig(name="digits", crop_padding=2, horizontal_flip=True), image_size=8, seed=5)[0]


@settings(deadline=None, max_examples=40)
@given(epoch=st.integers(0, 10**6), batch_size=st.integers(1, 90))
def test_an_epoch_depends_on_seed_and_number_alone(epoch, batch_size):
    train = augmented_digits()
    whole, _ = next(train.batches(180, epoch=epoch, limit=180))
    parts = torch.cat([images for images, _ in train.batches(batch_size, epoch=epoch, limit=180)])
    assert torch.equal(parts, whole[: len(parts)])


def test_seeds_and_epochs_give_other_orders(register):
    register()
    orders = {tuple(values(open_mine(seed=seed)[0].batches(90, epoch=epoch))) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_only_the_training_split_has_epochs(register):
    register()
    _, val = open_mine()
    for split in (val, open_test(DataConfig(name="mine"), image_size=4)):
        with pytest.raises(ValueError, match="only the training split"):
            split.batches(2, epoch=0)


@pytest.mark.parametrize("keys", [{"batch_size": 91}, {"batch_size": 11, "limit": 10}])
def test_a_batch_larger_than_the_training_split_is_refused_at_once(register, keys):
    register()
    with pytest.raises(UsageError, match="larger than the training split"):
        open_mine()[0].batches(epoch=0, **keys)


@pytest.mark.parametrize("keys", [{"batch_size": 0}, {"batch_size": 1, "limit": 0}, {"batch_size": 1, "epoch": -1}])
def test_sizes_out_of_range(register, keys):
    register()
    with pytest.raises(ValueError, match="out of range"):
        open_mine()[0].batches(**keys)


def test_normalization(register):
    register(normalization=Normalization((0.25,), (0.5,)))
    train, _ = open_mine()
    assert train.normalization == ((0.25,), (0.5,))
    images, _ = next(train.batches(90))
    raw = values(open_mine(mean=(0.0,), std=(1.0,))[0].batches(90))
    torch.testing.assert_close(images[:, 0, 0, 0], (torch.tensor(raw) / 255 - 0.25) / 0.5)


def test_batches_may_be_changed_in_place(register):
    register()
    train, _ = open_mine()
    for epoch in (None, 0):
        before = next(train.batches(90, epoch=epoch))
        for images, labels in train.batches(90, epoch=epoch):
            images.zero_()
            labels.zero_()
        after = next(train.batches(90, epoch=epoch))
        assert all(map(torch.equal, before, after))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mean": (0.5,) * 3, "std": (0.5,) * 3}, r"data\.mean: 3 values for images of 1 channels"),
        ({"val_fraction": 0.001}, r"data\.val_fraction: .* of class 'even' is 0"),
        ({"val_fraction": 0.999}, r"data\.val_fraction: .* of class 'even' is 50"),
        ({"auto_augment": "rand-x9"}, r"data\.auto_augment: .*rand-x9"),
        ({"max_unreadable": 1}, r"data\.max_unreadable has no effect"),
        ({"min_crop_scale": 0.5}, r"data\.min_crop_scale has no effect"),
    ],
)
def test_keys_that_do_not_fit_the_data(register, keys, message):
    register()
    with pytest.raises(UsageError, match=message):
        open_mine(**keys)


def test_data_sets_that_cannot_be_classified(register):
    register(classes=("only",), labels=np.zeros(100, np.int64))
    with pytest.raises(UsageError, match="has 1 class"):
        open_mine()
    register(classes=("even", "odd", "neither"))
    with pytest.raises(UsageError, match="0 images of class 'neither'"):
        open_mine()
    register(train=0)
    with pytest.raises(UsageError, match="no images"):
        open_mine()


def test_grey_is_refused_where_it_has_no_effect(register):
    register(images=np.zeros((100, 3, 4, 4), np.uint8), normalization=Normalization((0.5,) * 3, (0.5,) * 3))
    with pytest.raises(UsageError, match=r"data\.grey"):
        open_mine(grey=True)


def test_crop_and_flip_by_hand():
    image = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).expand(4, 1, 2, 2)
    offsets = torch.tensor([[1, 1], [0, 1], [1, 2], [2, 0]])
    flip = torch.tensor([False, False, False, True])
    out = crop_and_flip(image, 1, offsets, flip)[:, 0]
    # As it was; one row of padding above; one column of it to the right; below and to the left, mirrored.
    assert out.tolist() == [[[1, 2], [3, 4]], [[0, 0], [1, 2]], [[2, 0], [4, 0]], [[3, 0], [0, 0]]]


def test_augmentation_reaches_every_offset_and_both_sides():
    train, _ = open_train(DataConfig(name="digits", crop_padding=1, horizontal_flip=True), image_size=8, seed=0)
    still, _ = open_train(DataConfig(name="digits"), image_size=8, seed=0)
    plain = {image.numpy().tobytes() for images, _ in still.batches(500) for image in images}
    seen = [image.numpy().tobytes() for images, _ in train.batches(100, epoch=0) for image in images]
    unchanged = sum(image in plain for image in seen) / len(seen)
    assert 0.02 < unchanged < 0.12  # one of 9 offsets and one of 2 sides: 0.056


VARIED = {"auto_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.25}


@cache
def varied_digits(**keys):
    config = DataConfig(name="digits", crop_padding=2, horizontal_flip=True, **(VARIED | keys))
    return open_train(config, image_size=8, seed=5)[0]


@settings(deadline=None, max_examples=20)
@given(epoch=st.integers(0, 10**6), batch_size=st.integers(1, 30), data=st.data())
def test_a_varied_epoch_depends_on_seed_and_number_alone(epoch, batch_size, data):
    train = varied_digits()
    whole, labels = next(train.batches(60, epoch=epoch, limit=60))
    parts = torch.cat([images for images, _ in train.batches(batch_size, epoch=epoch, limit=60)])
    assert torch.equal(parts, whole[: len(parts)])
    places = torch.tensor(data.draw(st.lists(st.integers(0, 59), min_size=1, max_size=5, unique=True)))
    share, share_labels = next(train.batches(60, epoch=epoch, limit=60, places=places))
    assert torch.equal(share, whole[places])
    assert torch.equal(share_labels, labels[places])


def test_varied_images_do_not_depend_on_the_workers():
    streams = (varied_digits(workers=workers).batches(30, epoch=1, limit=90) for workers in (0, 2))
    for ours, theirs in zip(*streams, strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_varied_images_differ_by_epoch_and_image(register):
    register(images=constant_images([100] * 100, size=16))
    train, val = open_mine(image_size=16, **VARIED)
    seen = [
        image.numpy().tobytes() for epoch in (0, 1) for images, _ in train.batches(90, epoch=epoch) for image in images
    ]
    assert len(set(seen)) > 60  # erasing alone makes about 45 of 180 images different
    for images, _ in (*train.batches(90), *val.batches(90)):
        assert (images * 255).round().eq(100).all()


def test_varied_images_have_their_labels(register):
    register()
    train, _ = open_mine(auto_augment="rand-m0-n1-p0.0")
    images, labels = next(train.batches(90, epoch=0))
    assert ((images[:, 0, 0, 0] * 255).round().long() % 2).equal(labels)


def test_resize_is_the_identity_at_the_same_size_and_keeps_constants():
    images = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert resize(images, 4) is images
    assert resize(torch.full((2, 3, 5, 7), 9, dtype=torch.uint8), 8).eq(9).all()
    # Halving averages with the weights 1, 3, 3, 1 of antialiased bilinear filtering; at the edge 3, 3, 1.
    row = torch.tensor([0, 0, 210, 210], dtype=torch.uint8).expand(1, 1, 4, 4)
    assert resize(row, 2)[0, 0, 0].tolist() == [30, 180]


def test_stored_images_are_resized_once(register):
    register()
    train, _ = open_mine(image_size=8)
    images, _ = next(train.batches(90, epoch=0))
    assert images.shape == (90, 1, 8, 8)
    assert sorted(values(train.batches(90))) == sorted(values(open_mine()[0].batches(90)))


def test_digits_normalization_is_that_of_the_train_part():
    samples = DATASETS.get("digits")(DataConfig(name="digits"), "train")
    pixels = samples.images / 255
    assert samples.normalization == ((round(pixels.mean(), 4),), (round(pixels.std(), 4),))
    assert samples.images.max() == 255
