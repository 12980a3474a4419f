"""A small space and data that the tests of several packages share."""

from pathlib import Path

import numpy as np
import pytest
import torch

from supernet.functional import Observer
from supernet.space import SearchSpace
from supernet.vit import SupernetViT

# The networks of the tests are tiny: on a busy machine several threads would mostly wait for each other.
torch.set_num_threads(1)


def small_space(**changes):
    settings = {
        "num_classes": 10,
        "in_chans": 1,
        "patch_size": 2,
        "head_dim": 4,
        "image_size": (6, 8),
        "embed_dim": (12, 16),
        "depth": (1, 2, 3),
        "num_heads": (1, 2, 3),
        "mlp_ratio": (1.5, 2),
        "high_precision_ratio": (0, 0.3, 1),
    }
    return SearchSpace(**(settings | changes))


def calibrated_supernet(space, *, layer_scale=0.5, seed=0):
    torch.manual_seed(seed)
    model = SupernetViT(space, layer_scale=layer_scale)
    observer = Observer(quantize=False)
    size = space.image_size[-1]
    with torch.no_grad():
        model(torch.randn(32, space.in_chans, size, size), space.largest(), observer)
    observer.update(momentum=0.0)
    return model


@pytest.fixture
def space():
    return small_space()


@pytest.fixture(scope="session")
def make_space():
    return small_space


@pytest.fixture
def supernet(space):
    return calibrated_supernet(space)


@pytest.fixture(scope="session")
def make_supernet():
    return calibrated_supernet


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def vivado_reports():
    """Writes the two reports of a design, in Vivado's layout, with these counts; gives their paths."""
    data = Path(__file__).parent / "hwmodel" / "data"

    def write(folder, name="design", *, lut=50000, ff=90000, dsp=560, tiles=60.5, period="5.000", slack="0.250"):
        counts = (data / "utilization.rpt").read_text()
        for old, new in (("50000", lut), ("90000", ff), (" 560 ", f" {dsp} "), ("60.5", tiles)):
            counts = counts.replace(old, str(new))
        times = (data / "timing.rpt").read_text().replace("5.000 ", f"{period} ").replace("0.250 ", f"{slack} ")
        paths = [folder / f"{name}_utilization.rpt", folder / f"{name}_timing.rpt"]
        for path, text in zip(paths, (counts, times), strict=True):
            path.write_text(text)
        return paths

    return write
