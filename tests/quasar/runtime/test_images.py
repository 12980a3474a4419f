"""Image files: what becomes of good ones, and why bad ones are refused."""

import io
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from quasar.runtime.images import Preprocessing
from quasar.runtime.upload import ImageRefusedError, decode
from supernet.data.config import DataConfig
from supernet.data.splits import open_test


def file_of(image, kind="PNG", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def png_of_size(width, height):
    """A small PNG whose header claims another size."""
    data = bytearray(file_of(Image.new("L", (4, 4))))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def preprocessing(data, *, in_chans, size, normalization):
    """Of a configuration with what matters here."""
    subnet = SimpleNamespace(in_chans=in_chans)
    mean, std = normalization
    return Preprocessing(SimpleNamespace(subnet=subnet, training_image_size=size, data=data, mean=mean, std=std))


@pytest.mark.parametrize(
    ("mode", "kind", "becomes"),
    [
        ("L", "PNG", "L"),
        ("1", "PNG", "L"),
        ("RGB", "PNG", "RGB"),
        ("P", "PNG", "RGB"),
        ("RGBA", "PNG", "RGBA"),
        ("L", "JPEG", "L"),
        ("RGB", "JPEG", "RGB"),
        ("CMYK", "JPEG", "CMYK"),
    ],
)
def test_modes(mode, kind, becomes):
    assert decode(file_of(Image.new(mode, (5, 3)), kind), max_pixels=15).mode == becomes


def test_a_palette_with_transparency_has_four_channels():
    assert decode(file_of(Image.new("P", (4, 4)), transparency=0), max_pixels=16).mode == "RGBA"


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (b"", 415, "neither PNG nor JPEG"),
        (b"GIF89a" + bytes(100), 415, "neither PNG nor JPEG"),
        (file_of(Image.new("L", (4, 4)), "BMP"), 415, "neither PNG nor JPEG"),
        (b"\x89PNG\r\n\x1a\n", 400, "the PNG file is damaged"),
        (b"\xff\xd8\xff" + bytes(50), 400, "the JPEG file is damaged"),
        (file_of(Image.effect_noise((64, 64), 50))[:-60], 400, "the PNG file is damaged"),
        (file_of(Image.effect_noise((64, 64), 50), "JPEG")[:600], 400, "the JPEG file is damaged"),
        (png_of_size(101, 100), 413, "has 101 x 100 pixels; at most 10,000 are taken"),
        (png_of_size(12_000, 12_000), 413, "more than 10,000 pixels|has 12000 x 12000 pixels"),
        (png_of_size(40_000, 40_000), 413, "more than 10,000 pixels"),
        (png_of_size(0, 4), 400, "damaged"),
        (png_of_size(2000, 2), 422, "one side may be 20 times the other"),
        (file_of(Image.new("I;16", (4, 4))), 422, "more than 8 bits a channel"),
    ],
)
def test_bad_files_are_refused_with_a_reason(data, status, message):
    with pytest.raises(ImageRefusedError, match=message) as error:
        decode(data, max_pixels=10_000)
    assert error.value.status == status


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_other_channels_than_the_networks_are_refused(mode):
    prepare = preprocessing(DataConfig(name="digits"), in_chans=1, size=8, normalization=((0.5,), (0.5,)))
    with pytest.raises(ValueError, match=rf"channels \({mode}\), the network takes 1"):
        prepare.image(Image.new(mode, (8, 8)))


def test_images_of_a_set_in_memory_become_what_its_evaluation_sees():
    raw = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    for size in (8, 12):
        split = open_test(DataConfig(name="digits"), image_size=size)
        prepare = preprocessing(DataConfig(name="digits"), in_chans=1, size=size, normalization=split.normalization)
        ((seen, _),) = split.batches(20, limit=20)
        made = prepare.pixels(raw[..., None])
        assert all((made == image).all(dim=(1, 2, 3)).any() for image in seen)


def test_images_of_a_set_of_files_become_what_its_evaluation_sees(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in ("a", "b"):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for index, shape in enumerate([(32, 32, 3), (40, 60, 3)]):
                Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{index}.png")
    data = DataConfig(name="folder", root=str(tmp_path), test_split="test")
    split = open_test(data, image_size=32)
    prepare = preprocessing(data, in_chans=3, size=32, normalization=split.normalization)
    seen = torch.cat([batch for batch, _ in split.batches(4)])
    files = [decode(path.read_bytes(), max_pixels=10_000) for path in sorted(tmp_path.glob("test/*/*.png"))]
    made = {prepare.image(image).numpy().tobytes() for image in files}
    assert {image.numpy().tobytes() for image in seen} == made
    assert len(made) == 4


def test_raw_pixels_and_files_are_treated_alike():
    prepare = preprocessing(DataConfig(name="folder"), in_chans=3, size=16, normalization=((0.5,) * 3, (0.2,) * 3))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert torch.equal(
        prepare.pixels(pixels)[0], prepare.image(decode(file_of(Image.fromarray(pixels)), max_pixels=600))
    )
