"""Small calibrated subnets to export, and what a bundle tells about them."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from quasar.export.bundle import load_bundle
from quasar.export.manifest import FileRecord, read_manifest
from quasar.export.source import BundleInfo
from supernet.data.config import DataConfig
from supernet.functional import Observer
from supernet.lowering import lower
from supernet.space import SearchSpace
from supernet.standalone import extract
from supernet.vit import SupernetViT

# head_dim 8 so that head_dim^-1/2 is no power of two; odd sizes so that nothing fits by chance.
SPACE = SearchSpace(
    num_classes=10,
    in_chans=3,
    patch_size=4,
    head_dim=8,
    image_size=(16, 24),
    embed_dim=(24, 40),
    depth=(1, 2, 3),
    num_heads=(2, 3, 5),
    mlp_ratio=(2.0, 3.3),
    high_precision_ratio=(0.0, 0.3, 0.5, 1.0),
)


@torch.no_grad()
def _make_module(subnet, *, space=SPACE, seed=0, layer_scale=0.1, images=128):
    """An extracted subnet with random weights of every kind, and the images (N, C, S, S) that calibrated it."""
    torch.manual_seed(seed)
    supernet = SupernetViT(space, layer_scale=layer_scale)
    for name, parameter in supernet.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.add_(torch.rand_like(parameter))
        elif name.endswith("bias"):
            parameter.copy_(0.2 * torch.randn_like(parameter))
        elif name.endswith(("scale1", "scale2")):
            parameter.mul_(5 * torch.randn_like(parameter))  # of either sign
    supernet.refresh_clips()
    x = torch.randn(images, space.in_chans, subnet.image_size, subnet.image_size)
    observer = Observer(quantize=False)
    supernet(x, subnet, observer)
    observer.update(momentum=0.0)
    return extract(supernet, subnet), x


@torch.no_grad()
def _round_biases(module):
    """Rounds biases as `extract` does, for modules whose scales were changed after it."""
    fed = [(module.patch_embed, module.sites, "image"), (module.head, module.sites, "norm")]
    for block in module.blocks:
        fed += [
            (block.mixer["qkv"], block.sites, "norm1"),
            (block.mixer["proj"], block.mixer_sites, "mixed"),
            (block.mlp["fc1"], block.sites, "norm2"),
            (block.mlp["fc2"], block.sites, "gelu"),
        ]
    for linear, sites, site in fed:
        unit = linear.scale.double() * sites.scale[sites.names.index(site)].double()
        linear.bias.copy_((linear.bias.double() / unit).round() * unit)
    return module


@pytest.fixture(autouse=True)
def one_thread():
    """On a busy machine the threads of such small operations mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def space():
    return SPACE


@pytest.fixture(scope="session")
def subnets():
    """Random subnets of both image sizes and all depths."""
    return [SPACE.decode(genotype) for genotype in SPACE.sample(np.random.default_rng(5), 6)]


@pytest.fixture(scope="session")
def make_module():
    return _make_module


@pytest.fixture(scope="session")
def round_biases():
    return _round_biases


@pytest.fixture(scope="session")
def make_info():
    device = load_device("zcu102")
    accelerator = AcceleratorConfig(
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

    def make(subnet, **changes):
        values = {
            "latency_ms": 5,
            "fps": None,
            "device": device.name,
            "cost": FpgaCostModel(device, accelerator).estimate(lower(subnet)),
            "accelerator": accelerator,
            "data": DataConfig(name="digits"),
            "mean": (0.5,) * subnet.in_chans,
            "std": (0.25,) * subnet.in_chans,
            "classes": tuple(f"class {label}" for label in range(subnet.num_classes)),
            "training_image_size": 24,
            "checkpoint_digest": "0123456789abcdef",
            "data_digests": {"train": "a", "val": "b", "test": "c"},
            "val_accuracy": 0.75,
            "test_accuracy": 0.5,
        }
        return BundleInfo(**(values | changes))

    return make


def _signed(folder):
    """The bundle in a folder whose files were changed, with a manifest as if it had been exported so."""
    manifest = read_manifest(folder / "manifest.json")
    records = {
        name: FileRecord(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name in manifest.files
        for content in [(folder / name).read_bytes()]
    }
    (folder / "manifest.json").write_text(dataclasses.replace(manifest, files=records).to_text(), encoding="utf-8")
    return load_bundle(folder)


@pytest.fixture(scope="session")
def signed():
    return _signed


@pytest.fixture
def deit_tiny():
    """A space whose only shape is DeiT-tiny's, with a quarter of the rows at 8 bits."""
    return SearchSpace(
        num_classes=1000,
        in_chans=3,
        patch_size=16,
        head_dim=64,
        image_size=(224,),
        embed_dim=(192,),
        depth=(12,),
        num_heads=(3,),
        mlp_ratio=(4.0,),
        high_precision_ratio=(0.25,),
    )
