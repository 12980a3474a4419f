"""A pretrained ViT-Tiny without training: the row precisions that are found against the same ratio in every linear.

    python experiments/benchmarks/rows.py [DATA_FOLDER] [--run FOLDER] [--quick]

DATA_FOLDER holds `vit_tiny_patch16_224.safetensors` (timm's names) and `imagenet_1000.npz` (JPEGs as in the data set
jpeg-npz, with labels). `quasar run experiments/vit-tiny-rows.yaml` runs in a process of its own, in a temporary folder;
`--run` takes one that is finished instead. Then all is measured on the test images, which served neither calibration
nor search: top-1, and the mean Kullback-Leibler divergence from floats in nats. `--quick` runs a small search for one
target without an export, and measures on 20 images, to see that everything works; its figures mean nothing.

For each target there are two uniform ratios to compare with. One is the largest, in steps of 1/192, that meets the
target. But the latency of uniform ratios is a staircase, and some are wasteful; so the other is what ratios 0, 1/4, 1/2
and 1 would reach at the latency of the subnet that was found, by interpolation of the logarithm of their divergence.

Marks, for the target nearest to half-way between the latencies of all rows at 4 and at 8 bits: `drop` of at most
1.5 points of top-1 from all rows at 8 bits; `gain` and `gain_interpolated`, the divergences of those uniform ratios
over that of the found subnet, of at least 1.3; the run takes at most 15 minutes on two cores. The last line is JSON.
Without the data it is {"skipped": true}.
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from quasar.pipeline import open_test_split
from quasar.run_folder import RunFolder
from supernet.checkpoint import Checkpoint
from supernet.evaluate import outputs
from supernet.functional import Observer
from supernet.lowering import lower
from supernet.stores import Stores
from supernet.subnet import LINEARS, Subnet
from supernet.vit import unquantized

RECIPE = Path(__file__).parents[1] / "vit-tiny-rows.yaml"
WEIGHTS, IMAGES = "vit_tiny_patch16_224.safetensors", "imagenet_1000.npz"
STEPS = 192
KNOTS = (0.0, 0.25, 0.5, 1.0)
QUICK = (
    "data.test_fraction=0.02",
    "data.val_fraction=0.03",
    "supernet.calibration_images=20",
    "search.targets=[{fps: 222.5}]",
    "search.evaluations=4",
)


def quasar(*arguments):
    subprocess.run([sys.executable, "-m", "quasar", *map(str, arguments)], check=True, stdout=sys.stderr)


def run(data, folder, *, quick):
    """Runs the recipe into a folder; gives wall-clock and CPU seconds."""
    given = (f"supernet.init_from={data / WEIGHTS}", f"data.root={data / IMAGES}", f"output_dir={folder}", "name=rows")
    wall, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    if quick:
        quasar("train", RECIPE, *given, *QUICK)
        quasar("search", folder / "rows")
    else:
        quasar("run", RECIPE, *given)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_seconds": round(time.monotonic() - wall), "cpu_seconds": round(cpu)}


def uniform(largest, ratio):
    """The largest subnet with one ratio of 8-bit rows in all linears."""
    ratios = {f"{linear}_ratio": ratio for linear in LINEARS}
    return dataclasses.replace(largest, blocks=tuple(dataclasses.replace(b, **ratios) for b in largest.blocks))


class Judge:
    """Measures subnets with any ratios on the test images of a run; remembers them."""

    def __init__(self, folder, ratios):
        run = RunFolder(folder)
        config = run.config()
        checkpoint = Checkpoint.load(run.checkpoint)
        choices = tuple(sorted({*config.space.high_precision_ratio, *ratios}))
        space = dataclasses.replace(checkpoint.space, high_precision_ratio=choices)
        supernet = dataclasses.replace(checkpoint, space=space).build(source=str(run.checkpoint))
        self._stores = Stores(supernet)
        self._split = open_test_split(config)
        self._known = {}
        self.largest = space.largest()
        in_floats = {"observer": Observer(quantize=False), "weights": unquantized}
        self._reference, self._labels = self._log_shares(partial(supernet, subnet=self.largest, **in_floats))
        self.images = len(self._labels)
        self.accuracy_in_floats = self._accuracy(self._reference)

    def _log_shares(self, network):
        found = [
            (logits.log_softmax(dim=1), y_B)
            for logits, y_B in outputs(network, self._split, batch_size=40, device="cpu")
        ]
        return (torch.cat(part) for part in zip(*found, strict=True))

    def _accuracy(self, log_shares):
        return round(100 * (log_shares.argmax(dim=1) == self._labels).double().mean().item(), 2)

    def __call__(self, subnet):
        """Top-1 in per cent, and the divergence in nats."""
        if subnet.digest not in self._known:
            log_shares, _ = self._log_shares(self._stores.network(subnet))
            divergence = (self._reference.exp() * (self._reference - log_shares)).sum(dim=1).mean().item()
            self._known[subnet.digest] = self._accuracy(log_shares), divergence
            print(".", end="", file=sys.stderr, flush=True)
        return self._known[subnet.digest]


def judged(folder):
    """The targets of a run beside uniform ratios, and what the largest subnets reach."""
    front = json.loads((folder / "search" / "front.json").read_text(encoding="utf-8"))
    targets = [target for target in front["targets"] if target["status"] == "ok"]
    accelerator = AcceleratorConfig.from_dict(targets[0]["accelerator"])
    cost_model = FpgaCostModel(load_device(front["device"]), accelerator)
    ladder = [step / STEPS for step in range(STEPS + 1)]
    largest = RunFolder(folder).config().space.largest()
    latency = [cost_model.estimate(lower(uniform(largest, ratio))).latency_ms for ratio in ladder]
    meeting = [max(r for r, ms in zip(ladder, latency, strict=True) if ms <= t["latency_ms"]) for t in targets]
    judge = Judge(folder, {*meeting, *KNOTS})
    knots_ms = [latency[round(ratio * STEPS)] for ratio in KNOTS]
    knots = [np.log(judge(uniform(judge.largest, ratio))[1]) for ratio in KNOTS]
    rows = []
    for target, ratio in zip(targets, meeting, strict=True):
        found_ms = target["cost"]["latency_ms"]
        accuracy, divergence = judge(Subnet.from_dict(target["subnet"]))
        uniform_accuracy, uniform_divergence = judge(uniform(judge.largest, ratio))
        rows.append(
            {
                "fps": round(target["cost"]["fps"], 1),
                "latency_ms": round(found_ms, 4),
                "top1": accuracy,
                "kl": round(divergence, 4),
                "top1_integer": round(100 * target["val_accuracy_integer"], 2),
                "images_integer": target["val_images_integer"],
                "uniform_ratio": round(ratio, 3),
                "uniform_latency_ms": round(latency[round(ratio * STEPS)], 4),
                "uniform_top1": uniform_accuracy,
                "uniform_kl": round(uniform_divergence, 4),
                "gain": round(uniform_divergence / divergence, 2),
                "gain_interpolated": round(float(np.exp(np.interp(found_ms, knots_ms, knots))) / divergence, 2),
            }
        )
    all_8_bit, all_4_bit = (judge(uniform(judge.largest, ratio)) for ratio in (1.0, 0.0))
    middle_ms = (latency[0] + latency[-1]) / 2
    middle = min(rows, key=lambda row: abs(row["latency_ms"] - middle_ms))
    print(file=sys.stderr)
    return {
        "images": judge.images,
        "top1_floats": judge.accuracy_in_floats,
        "all_8_bit": {"latency_ms": round(latency[-1], 4), "top1": all_8_bit[0], "kl": round(all_8_bit[1], 4)},
        "all_4_bit": {"latency_ms": round(latency[0], 4), "top1": all_4_bit[0], "kl": round(all_4_bit[1], 4)},
        "half_way_ms": round(middle_ms, 4),
        "drop": round(all_8_bit[0] - middle["top1"], 2),
        "gain": middle["gain"],
        "gain_interpolated": middle["gain_interpolated"],
        "evaluations": front["evaluations"],
        "targets": rows,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", help="folder with the weights and the images")
    parser.add_argument("--run", type=Path, help="a finished run of the recipe")
    parser.add_argument("--quick", action="store_true", help="only see that it works")
    options = parser.parse_args()
    if options.run is None:
        missing = [name for name in (WEIGHTS, IMAGES) if options.data is None or not (options.data / name).is_file()]
        if missing:
            where = "no DATA_FOLDER is given" if options.data is None else f"not in {options.data}"
            print(f"skipped: {' and '.join(missing)}: {where}")
            print(json.dumps({"skipped": True}))
            return
    with tempfile.TemporaryDirectory() as temporary:
        folder, figures = options.run, {}
        if folder is None:
            figures = run(options.data, Path(temporary), quick=options.quick)
            folder = Path(temporary) / "rows"
        figures |= judged(folder) | {"load": [round(load, 1) for load in os.getloadavg()]}
    for row in figures["targets"]:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
