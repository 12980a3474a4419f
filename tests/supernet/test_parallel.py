"""What each of several workers takes; that they come to the same result is tested in tests/quasar/test_workers.py."""

import pytest
import torch

from hwmodel.errors import UsageError
from supernet.data.config import DataConfig
from supernet.data.splits import open_train
from supernet.functional import Observer
from supernet.parallel import ALONE, Workers


def test_shares_by_hand():
    assert [Workers(rank, 2).places(8).tolist() for rank in range(2)] == [[0, 1, 6, 7], [2, 3, 4, 5]]
    assert ALONE.places(8) is None


@pytest.mark.parametrize("count", [2, 3, 4])
def test_shares_divide_a_batch_and_keep_what_mixup_mixes_together(count):
    shares = [Workers(rank, count).places(24) for rank in range(count)]
    assert sorted(torch.cat(shares).tolist()) == list(range(24))
    for share in shares:
        assert torch.equal(share + share.flip(0), torch.full((24 // count,), 23))


def test_a_batch_that_does_not_divide():
    Workers(0, 2).check(12, 3)
    ALONE.check(7, 1)
    with pytest.raises(UsageError, match=r"batch_size 64 .* for 3 workers; choose a multiple of 6"):
        Workers(0, 3).check(64, 1)
    with pytest.raises(UsageError, match=r"for 2 workers and 3 parts each \(train\.accumulate\); .* of 12"):
        Workers(0, 2).check(6, 3)


def test_a_split_gives_the_places_of_its_batches():
    train, _ = open_train(DataConfig(name="digits", crop_padding=1), image_size=8, seed=0)
    places = Workers(1, 2).places(64)
    for (x, y), (share_x, share_y) in zip(
        train.batches(64, epoch=3), train.batches(64, epoch=3, places=places), strict=True
    ):
        assert torch.equal(x[places], share_x)
        assert torch.equal(y[places], share_y)
    with pytest.raises(ValueError, match="only an epoch has places"):
        train.batches(64, places=places)


def test_ranges_of_two_observers_become_those_of_one(supernet, space):
    images = torch.randn(8, 1, 8, 8)
    whole, *parts = (Observer() for _ in range(3))
    for observer, x in ((whole, images), (parts[0], images[:4]), (parts[1], images[4:])):
        supernet(x, space.largest(), observer)
    ends = [torch.stack([torch.stack([-a, b]) for a, b in part.ranges.values()]) for part in parts]
    parts[0].unite(lambda tensor: tensor.copy_(torch.maximum(*ends)))
    assert whole.ranges.keys() == parts[0].ranges.keys()
    for ours, theirs in zip(parts[0].ranges.values(), whole.ranges.values(), strict=True):
        torch.testing.assert_close(ours, theirs)
