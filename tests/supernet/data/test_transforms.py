import numpy as np
import pytest
import torch
from dataset_files import random_image
from PIL import Image

from hwmodel.errors import UsageError
from supernet.data.config import DataConfig
from supernet.data.randomness import seeded
from supernet.data.samples import Normalization, default_normalization
from supernet.data.transforms import file_transform, memory_transform


def in_memory(in_chans: int = 3, size: int = 16, **keys):
    config = DataConfig(name="digits", **keys)
    return memory_transform(config, image_size=size, normalization=default_normalization(in_chans))


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("policy", ["rand-m10-mstd3-inc1", "augmix-m5-w2", "v0", "original", "3a"])
def test_policies_keep_shape_and_type(policy, in_chans):
    """Also with much noise on the magnitude, which asks for 0 bits."""
    transform = in_memory(in_chans, auto_augment=policy)
    image = torch.randint(0, 256, (in_chans, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with seeded(0):
        outputs = [transform(image) for _ in range(300)]
    assert {(out.shape, out.dtype) for out in outputs} == {(image.shape, torch.uint8)}
    assert len({out.numpy().tobytes() for out in outputs}) > 20


def test_no_bit_left_is_black():
    # One operation of the largest magnitude: PosterizeIncreasing then keeps 0 bits, and no other one gives black.
    transform = file_transform(
        DataConfig(name="folder", auto_augment="rand-m10-n1-p1.0-inc1"),
        image_size=12,
        normalization=default_normalization(3),
        train=True,
    )
    image = random_image(np.random.default_rng(0))
    with seeded(0):
        assert any(transform(image).max() == 0 for _ in range(100))


def test_nothing_to_do_is_no_transform():
    assert in_memory() is None
    assert in_memory(horizontal_flip=True, crop_padding=2) is None


def test_erasing_covers_a_rectangle_with_noise():
    normalization = Normalization((0.5,) * 3, (0.1,) * 3)
    config = DataConfig(name="digits", random_erasing=1.0)
    transform = memory_transform(config, image_size=32, normalization=normalization)
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    for seed in range(20):
        with seeded(seed):
            covered = transform(image).ne(0).any(dim=0)
        rows, columns = covered.any(dim=1).sum(), covered.any(dim=0).sum()
        assert covered.sum() == rows * columns  # noise of this mean is not black
        assert 0.015 < covered.float().mean() < 0.35


def test_erasing_has_the_mean_and_spread_of_the_data():
    config = DataConfig(name="digits", random_erasing=1.0)
    transform = memory_transform(config, image_size=64, normalization=Normalization((0.5,), (0.1,)))
    with seeded(0):
        noise = torch.cat(
            [out[out > 0] for out in (transform(torch.zeros(1, 64, 64).byte()) for _ in range(20))]
        ).float()
    assert noise.mean() == pytest.approx(127.5, abs=1)
    assert noise.std() == pytest.approx(25.5, abs=1)


def test_what_is_not_erased_stays_as_it_is():
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, 16, 16)
    transform = in_memory(random_erasing=1e-12)
    assert torch.equal(transform(values), values)


def test_files_are_erased_in_training_only():
    config = DataConfig(name="folder", random_erasing=1.0, min_crop_scale=1.0)
    image = Image.new("RGB", (16, 16))
    for train in (True, False):
        transform = file_transform(config, image_size=16, normalization=default_normalization(3), train=train)
        assert bool(transform(image).any()) == train


def test_policies_need_colours_that_pillow_has():
    with pytest.raises(UsageError, match=r"data\.auto_augment: .* 1 or 3 channels, not 2"):
        in_memory(2, auto_augment="rand-m9")
    assert in_memory(2, random_erasing=0.5) is not None
