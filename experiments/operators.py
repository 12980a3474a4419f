"""Softmax against linear-angular attention: cycles on the ZCU102, and accuracies of subnets of a trained run.

    python experiments/operators.py [RUN]

Cycles are those of DeiT-tiny with half of its rows at 8 bits, at 224 and at 448 pixels (197 and 785 tokens), on the
accelerator that fits the ZCU102 and is the fastest for softmax in all blocks; and on that which is the fastest for the
network itself. Accuracies are those of the largest subnet of RUN, whose space has both operators, with one of them in
all blocks or the two by turns: in the arithmetic of training, and in the integers of the hardware on the first 1,000
validation images. docs/operators.md shows both.
"""

import dataclasses
import sys
from pathlib import Path

from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from hwmodel.explore import best_accelerator
from quasar.pipeline import calibration_images, load_supernet, open_splits
from quasar.run_folder import RunFolder
from supernet.evaluate import evaluate, evaluate_integer
from supernet.integer_vit import IntegerViT, find_ranges
from supernet.lowering import lower
from supernet.standalone import extract
from supernet.subnet import Subnet
from supernet.timm_vit import subnet_of_timm

SOFTMAX, LINEAR = "attention", "linear-angular"
#: operators of the blocks, which repeat
KINDS = {"softmax": (SOFTMAX,), "by turns": (SOFTMAX, LINEAR), "linear-angular": (LINEAR,)}


def with_operators(subnet: Subnet, operators: tuple[str, ...]) -> Subnet:
    """The subnet with these operators in its blocks, by turns."""
    blocks = tuple(
        dataclasses.replace(block, operator=operators[index % len(operators)])
        for index, block in enumerate(subnet.blocks)
    )
    return dataclasses.replace(subnet, blocks=blocks)


def print_cycles() -> None:
    """The table of cycles as Markdown."""
    device = load_device("zcu102")
    print("| tokens | blocks | GMAC | cycles | FPS | vector unit | products of two activations | own accelerator |")
    print("|---|---|---|---|---|---|---|---|")
    for size in (224, 448):
        deit = dataclasses.replace(subnet_of_timm("deit_tiny_patch16_224", high_precision_ratio=0.5), image_size=size)
        accelerator = best_accelerator([lower(deit)], device)
        for kind, operators in KINDS.items():
            workload = lower(with_operators(deit, operators))
            cost = FpgaCostModel(device, accelerator).estimate(workload)
            products = {gemm.name for gemm in workload.gemms if not gemm.stored}
            vector = sum(layer.cycles for layer in cost.layers if layer.bound == "vector")
            mixing = sum(layer.cycles for layer in cost.layers if layer.name in products)
            own = best_accelerator([workload], device)
            alone = FpgaCostModel(device, own).estimate(workload).cycles
            print(f"| {deit.tokens} | {kind} | {workload.macs / 1e9:.2f} | {cost.cycles:,} | {cost.fps:.1f} ", end="")
            print(f"| {vector:,} | {mixing:,} | {alone:,} |")


def print_accuracies(run: RunFolder) -> None:
    """The table of accuracies as Markdown."""
    config = run.config()
    train, val = open_splits(config)
    supernet, _ = load_supernet(run, config)
    images = calibration_images(train)
    print(f"| blocks | accuracy on {len(val):,} validation images | loss | in integers | of so many images |")
    print("|---|---|---|---|---|")
    for kind, operators in KINDS.items():
        module = extract(supernet, with_operators(config.space.largest(), operators))
        found = evaluate(module, val, batch_size=256)
        network = IntegerViT.of(module, find_ranges(module, images))
        integer = evaluate_integer(network, val, limit=1000)
        print(f"| {kind} | {found.accuracy:.2%} | {found.loss:.3f} | {integer.accuracy:.2%} | {integer.images:,} |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print_accuracies(RunFolder(Path(sys.argv[1])))
    else:
        print_cycles()
