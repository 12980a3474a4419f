"""How much a pretrained ViT loses by quantization without training: static 8-bit activations, 4-bit and 8-bit rows.

    python experiments/benchmarks/calibration.py DATA_FOLDER [--images N] [--quick]

DATA_FOLDER holds `vit_tiny_patch16_224.safetensors` (timm's names) and `imagenet_1000.npz` (JPEGs as in the data set
jpeg-npz, with labels). 200 images calibrate and set the order of rows, the others test; `--images` limits the test,
`--quick` leaves out the shares 25 % and 75 %. Each row of the table is one setting of all linears of all blocks.
The Kullback-Leibler divergence (kl, in nats) is that of the quantized shares of classes from the float ones.

Marks, in points below floats: all rows at 8 bits 1; half of the rows, reordered, 2.5; all rows at 4 bits 9.
The last line is JSON with the accuracies in per cent and the divergences. Without the data it is {"skipped": true}.
"""

import argparse
import dataclasses
import io
import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from supernet.calibrate import calibrate
from supernet.functional import Observer
from supernet.outliers import soften_outliers
from supernet.pretrained import initialise
from supernet.reorder import reorder
from supernet.space import SearchSpace
from supernet.standalone import extract
from supernet.vit import SupernetViT, unquantized

CALIBRATION, BATCH = 200, 25
SPACE = SearchSpace(
    num_classes=1000,
    in_chans=3,
    patch_size=16,
    head_dim=64,
    image_size=(224,),
    embed_dim=(192,),
    depth=(12,),
    num_heads=(3,),
    mlp_ratio=(4.0,),
    high_precision_ratio=(0.0, 0.25, 0.5, 0.75, 1.0),
)


def load_images(path):
    """Images (N, 3, 224, 224) in [-1, 1], in batches, and labels (N,); the order is random, and always the same."""
    archive = np.load(path)
    body, offsets = archive["body"].tobytes(), archive["offsets"]
    order = np.random.default_rng(0).permutation(len(offsets) - 1)
    pixels = [np.asarray(Image.open(io.BytesIO(body[offsets[i] : offsets[i + 1]])).convert("RGB")) for i in order]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return images, torch.from_numpy(archive["labels"][order].astype(np.int64))


def batches(images):
    return [(part.float() / 255 - 0.5) / 0.5 for part in images.split(BATCH)]


def subnet_at(share):
    largest = SPACE.largest()
    ratios = {f"{linear}_ratio": share for linear in ("qkv", "proj", "fc1", "fc2")}
    return dataclasses.replace(largest, blocks=tuple(dataclasses.replace(b, **ratios) for b in largest.blocks))


@torch.no_grad()
def run(network, images):
    return torch.cat([network(x_BCHW).log_softmax(dim=1) for x_BCHW in batches(images)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=800, help="test images")
    parser.add_argument("--quick", action="store_true", help="leave out the shares 25 and 75 %%")
    arguments = parser.parse_args()
    weights, archive = arguments.data / "vit_tiny_patch16_224.safetensors", arguments.data / "imagenet_1000.npz"
    if not (weights.is_file() and archive.is_file()):
        print(f"skipped: {weights.name} and {archive.name} are not in {arguments.data}")
        print(json.dumps({"skipped": True}))
        return
    images, labels = load_images(archive)
    calibration = batches(images[:CALIBRATION])
    images, labels = images[CALIBRATION:][: arguments.images], labels[CALIBRATION:][: arguments.images]
    figures = {}

    def report(name, log_shares, reference):
        accuracy = 100 * (log_shares.argmax(dim=1) == labels).float().mean().item()
        divergence = (reference.exp() * (reference - log_shares)).sum(dim=1).mean().item()
        figures[name], figures[f"kl_{name}"] = round(accuracy, 2), round(divergence, 4)
        print(f"{name:16s} {accuracy:6.2f} %  kl {divergence:.4f}", flush=True)

    shares = (0.5,) if arguments.quick else (0.25, 0.5, 0.75)
    reference = None
    for order in ("native", "reordered"):
        model = SupernetViT(SPACE, layer_scale=None).eval()
        initialise(model, str(weights))
        if reference is None:
            in_floats = {"observer": Observer(quantize=False), "weights": unquantized}
            reference = run(partial(model, subnet=SPACE.largest(), **in_floats), images)
            report("float", reference, reference)
        started = time.process_time()
        soften_outliers(model, calibration)
        if order == "reordered":
            reorder(model, calibration, generator=torch.Generator().manual_seed(0))
        calibrate(model, calibration)
        figures[f"calibration_{order}_cpu_s"] = round(time.process_time() - started, 1)
        for share in (0.0, *shares, 1.0) if order == "native" else shares:
            name = {0.0: "all_4_bit", 1.0: "all_8_bit"}.get(share, f"{order}_{share:.0%}")
            report(name, run(extract(model, subnet_at(share)), images), reference)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
