import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodel.errors import UsageError
from supernet.data.samples import ArraySamples, Normalization, carve, default_normalization, fixed_order


def names(count: int) -> tuple[str, ...]:
    return tuple(f"class {number}" for number in range(count))


@given(
    counts=st.lists(st.integers(4, 30), min_size=2, max_size=6),
    fraction=st.floats(0.15, 0.85),
    seed=st.integers(0, 2**32 - 1),
)
def test_carve_is_a_stratified_partition(counts, fraction, seed):
    labels = np.random.RandomState(0).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int64)
    kept, carved = carve(labels, names(len(counts)), fraction=fraction, seed=seed, key="k")
    assert sorted([*kept, *carved]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        assert abs((labels[carved] == label).sum() - fraction * count) <= 0.5 + 1e-9
    again = carve(labels, names(len(counts)), fraction=fraction, seed=seed, key="k")
    np.testing.assert_array_equal(carved, again[1])


def test_carve_by_hand():
    labels = np.array([0] * 4 + [1] * 6)
    kept, carved = carve(labels, names(2), fraction=0.5, seed=1, key="k")
    assert np.bincount(labels[kept]).tolist() == [2, 3]
    assert np.bincount(labels[carved]).tolist() == [2, 3]
    # A prefix is a fair sample, and not the first class.
    assert len(set(labels[kept[:3]])) == 2


def test_the_seed_of_carve_matters():
    labels = np.repeat(np.arange(2), 50)
    first, second = (carve(labels, names(2), fraction=0.5, seed=seed, key="k")[1] for seed in (0, 1))
    assert set(first) != set(second)


@pytest.mark.parametrize(("counts", "fraction"), [([10, 3], 0.1), ([10, 0], 0.5), ([10, 3], 0.9), ([10, 1], 0.5)])
def test_carve_refuses_to_leave_a_class_out(counts, fraction):
    labels = np.repeat(np.arange(2), counts)
    with pytest.raises(UsageError, match=r"data\.val_fraction: .* of class 'class 1'"):
        carve(labels, names(2), fraction=fraction, seed=0, key="data.val_fraction")


def test_shares_of_all_images_take_no_account_of_classes():
    labels = np.arange(10)
    kept, carved = carve(labels, names(10), fraction=0.35, seed=0, key="k", stratify=False)
    assert (len(kept), len(carved)) == (6, 4)
    assert sorted([*kept, *carved]) == list(range(10))
    assert set(carved) != set(carve(labels, names(10), fraction=0.35, seed=1, key="k", stratify=False)[1])


@pytest.mark.parametrize("fraction", [0.1, 0.9])
def test_neither_part_may_be_empty(fraction):
    with pytest.raises(UsageError, match=r"^data\.val_fraction: 0\.\d of 3 images is [03] of them; neither part"):
        carve(np.arange(3), names(3), fraction=fraction, seed=0, key="data.val_fraction", stratify=False)


def test_the_fixed_order_never_changes():
    assert fixed_order(8).tolist() == [6, 2, 1, 7, 3, 0, 5, 4]


def test_default_normalization():
    assert default_normalization(3).mean == (0.485, 0.456, 0.406)
    assert default_normalization(1) == ((0.449,), (0.226,))


@pytest.mark.parametrize(
    "change",
    [
        {"images": np.zeros((2, 1, 4, 4), np.float32)},
        {"images": np.zeros((2, 4, 4), np.uint8)},
        {"labels": np.zeros(3, np.int64)},
        {"labels": np.array([0, 2])},
        {"labels": np.array([-1, 0])},
        {"labels": np.zeros(2, np.float32)},
        {"normalization": Normalization((0.5,) * 3, (0.5,) * 3)},
    ],
)
def test_a_plug_in_hears_of_samples_that_do_not_fit(change):
    good = {
        "images": np.zeros((2, 1, 4, 4), np.uint8),
        "labels": np.array([0, 1]),
        "classes": names(2),
        "normalization": Normalization((0.5,), (0.5,)),
    }
    assert ArraySamples(**good).in_chans == 1
    with pytest.raises(ValueError, match=r"images|labels|normalization"):
        ArraySamples(**(good | change))
