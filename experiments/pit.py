"""A pooling ViT and plain ViTs of as many multiply-accumulates, trained alike: accuracy, and latency on two devices.

    python experiments/pit.py digits [--seeds 0 1 2]
    python experiments/pit.py costs
    python experiments/pit.py cifar10 data.root=/path/to/cifar-10-batches-py [data.name=…] [--seeds 0 1]

`plain` has the patches of `pooling`, `coarse` a quarter as many. Half of the weight rows of each block have 8 bits, the
others 4.
Latencies are those of the cost models: on zcu102 with the fastest accelerator for each network, on jetson_tx2 by a
roofline of batch 1. One thread; the last line printed is JSON. `costs` trains nothing: it compares the PiTs of timm,
which pool by depthwise convolutions, with the same that merge patches, and with plain ViTs of as many MACs (patches of
16, 12 blocks, 3 heads), all rows at 8 bits.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from typing import Any

import torch

from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device, load_hardware
from hwmodel.explore import best_accelerator
from hwmodel.processor_cost import RooflineCostModel
from hwmodel.workload import Workload
from quasar.config import apply_override
from quasar.progress import stage
from supernet.config import TrainConfig
from supernet.data.config import DataConfig
from supernet.data.splits import open_test, open_train
from supernet.evaluate import evaluate
from supernet.pit_shape import PitShape, lower_pit
from supernet.pit_train import train_pit
from supernet.timm_vit import pit_of_timm
from supernet.validation import validate

RATIO, BATCH = 0.5, 250
_DIGITS = {"image_size": 8, "patch_size": 1, "stride": 1, "in_chans": 1, "num_classes": 10}
_CIFAR10 = {"image_size": 32, "patch_size": 4, "stride": 4, "in_chans": 3, "num_classes": 10}
#: for each data set its settings, those of the training, and the networks; a plain ViT is a PiT of one stage
STUDIES: dict[str, tuple[dict[str, Any], TrainConfig, dict[str, PitShape]]] = {
    "digits": (
        {"name": "digits", "val_fraction": 0.2},
        TrainConfig(epochs=60, batch_size=64, lr=3e-3, label_smoothing=0.0),
        {
            "plain": PitShape(**_DIGITS, widths=(32,), depths=(4,), heads=(2,)),
            "coarse": PitShape(**_DIGITS | {"patch_size": 2, "stride": 2}, widths=(64,), depths=(5,), heads=(4,)),
            "pooling": PitShape(**_DIGITS, widths=(24, 48, 96), depths=(2, 3, 2), heads=(1, 2, 4)),
        },
    ),
    "cifar10": (
        {"name": "cifar10", "crop_padding": 4, "horizontal_flip": True},
        TrainConfig(epochs=4, batch_size=128, lr=1.5e-3, warmup_epochs=1, label_smoothing=0.0, precision="bfloat16"),
        {
            "plain": PitShape(**_CIFAR10, widths=(64,), depths=(4,), heads=(2,)),
            "coarse": PitShape(**_CIFAR10 | {"patch_size": 8, "stride": 8}, widths=(136,), depths=(4,), heads=(4,)),
            "pooling": PitShape(**_CIFAR10, widths=(48, 96, 192), depths=(2, 3, 2), heads=(2, 4, 8)),
        },
    ),
}


def latencies(workload: Workload) -> dict[str, float]:
    """Milliseconds on each device."""
    board, processor = load_device("zcu102"), load_hardware("jetson_tx2")
    accelerator = best_accelerator([workload], board, clock_mhz=None, backend=None, array=None, activations="onchip")
    return {
        "zcu102": FpgaCostModel(board, accelerator).estimate(workload).latency_ms,
        "jetson_tx2": RooflineCostModel(processor).estimate(workload).latency_ms,
    }


def costs() -> list[dict[str, Any]]:
    """What networks of ImageNet's size cost."""
    rows = []
    for name in ("pit_ti_224", "pit_xs_224", "pit_s_224"):
        pooling = pit_of_timm(name)
        macs = lower_pit(pooling).macs
        plain = [
            dataclasses.replace(pooling, stride=16, widths=(width,), depths=(12,), heads=(3,))
            for width in range(48, 480, 6)
        ]
        nearest = min(plain, key=lambda shape: abs(lower_pit(shape).macs - macs))
        merging = dataclasses.replace(pooling, pooling="merge")
        for kind, shape in (("depthwise", pooling), ("merge", merging), ("plain", nearest)):
            workload = lower_pit(shape)
            row = {"name": name, "kind": kind, "widths": shape.widths, "mmacs": workload.macs / 1e6}
            row |= {"weights_kib": workload.weight_bytes / 1024, "latency_ms": latencies(workload)}
            print("  ".join(map(str, row.values())))
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("costs", *STUDIES))
    parser.add_argument("overrides", nargs="*", metavar="data.key=value")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--only", choices=("plain", "coarse", "pooling"))
    arguments = parser.parse_args()
    if arguments.study == "costs":
        print(json.dumps(costs()))
        return
    data, config, networks = STUDIES[arguments.study]
    document: dict[str, Any] = {"data": dict(data)}
    for override in arguments.overrides:
        apply_override(document, override)
    settings = validate(DataConfig, document["data"], source="data")
    if arguments.epochs is not None:
        config = dataclasses.replace(config, epochs=arguments.epochs)
    torch.set_num_threads(1)
    found = {}
    for name, shape in networks.items():
        if arguments.only in (None, name):
            found[name] = measure(name, shape, config, settings, arguments.seeds)
    print(json.dumps(found))


def measure(name: str, shape: PitShape, config: TrainConfig, data: DataConfig, seeds: list[int]) -> dict[str, Any]:
    """What one network costs and reaches."""
    workload = lower_pit(shape, high_precision_ratio=RATIO)
    accuracies, cpu_s = [], []
    for seed in seeds:
        train_split, _ = open_train(data, image_size=shape.image_size, seed=seed)
        started = time.process_time()
        with stage(f"{name} {seed}") as progress:
            model = train_pit(
                shape,
                high_precision_ratio=RATIO,
                config=config,
                train_split=train_split,
                seed=seed,
                device=torch.device("cpu"),
                progress=progress,
            )
        cpu_s.append(time.process_time() - started)
        test = open_test(data, image_size=shape.image_size)
        accuracies.append(100 * evaluate(model, test, batch_size=BATCH).accuracy)
    row = {
        "mmacs": workload.macs / 1e6,
        "weights_kib": workload.weight_bytes / 1024,
        "latency_ms": latencies(workload),
        "test_accuracy": accuracies,
        "mean": statistics.mean(accuracies),
        "deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "cpu_s": cpu_s,
    }
    print(f"{name:8} " + "  ".join(f"{key} {value}" for key, value in row.items()))
    return row


if __name__ == "__main__":
    main()
