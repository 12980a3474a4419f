"""Bundles of one small supernet, as an export writes them."""

import numpy as np
import pytest
import torch

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from quasar.export.bundle import load_bundle
from quasar.export.source import BundleInfo
from quasar.export.write import write_bundle
from quasar.runtime.runtime import Runtime
from supernet.data.config import DataConfig
from supernet.lowering import lower
from supernet.standalone import extract

ACCELERATOR = AcceleratorConfig(
    array_rows=8,
    array_inputs=16,
    backend="dual",
    clock_mhz=150,
    weight_stream_bits=64,
    activation_stream_bits=64,
    output_stream_bits=64,
    activations="onchip",
    activation_buffer_bytes=65536,
    max_tokens=256,
    vector_lanes=4,
)


def _write(module, folder, **changes):
    """The bundle of a module at a folder, without any form for other programs."""
    subnet = module.subnet
    values = {
        "latency_ms": None,
        "fps": None,
        "device": "zcu102",
        "cost": FpgaCostModel(load_device("zcu102"), ACCELERATOR).estimate(lower(subnet)),
        "accelerator": ACCELERATOR,
        "data": DataConfig(name="digits"),
        "mean": (0.3,) * subnet.in_chans,
        "std": (0.4,) * subnet.in_chans,
        "classes": tuple(f"class {label}" for label in range(subnet.num_classes)),
        "training_image_size": 8,
        "checkpoint_digest": "0123456789abcdef",
        "data_digests": {},
        "val_accuracy": 0.75,
        "test_accuracy": 0.5,
    }
    images = torch.randn(8, subnet.in_chans, subnet.image_size, subnet.image_size)
    write_bundle(module, folder, info=BundleInfo(**(values | changes)), images=images, formats=())
    return load_bundle(folder)


@pytest.fixture(scope="session")
def write():
    return _write


@pytest.fixture(scope="session")
def shared_supernet(make_space, make_supernet):
    return make_supernet(make_space())


@pytest.fixture(scope="session")
def subnets(make_space):
    """The smallest, the largest, and random ones: all depths, both image sizes, all ratios."""
    space = make_space()
    drawn = [space.decode(genotype) for genotype in space.sample(np.random.default_rng(2), 3)]
    return [space.smallest(), *drawn, space.largest()]


@pytest.fixture(scope="session")
def bundles(shared_supernet, subnets, tmp_path_factory):
    """Bundles "s0", "s1", ... of `subnets`, each more accurate than the one before."""
    folder = tmp_path_factory.mktemp("bundles")
    return [
        _write(extract(shared_supernet, subnet), folder / f"s{index}", val_accuracy=0.5 + 0.01 * index)
        for index, subnet in enumerate(subnets)
    ]


@pytest.fixture
def runtime(bundles):
    return Runtime(bundles)
