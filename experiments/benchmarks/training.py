"""How fast the supernet trains on a CPU, and how much memory a step takes.

    python experiments/benchmarks/training.py [--quick]

The setting is AutoFormer's small one: 32 pixels, patch 4, a supernet of 256 x 14 layers, widths 192, 216, 240, heads 3
and 4, MLP ratios 3.5 and 4, depths 12 to 14, batch 64, drop-path 0.1, AdamW; one thread. A single-path step trains the
subnet in the middle of the space, about the size of the plain timm ViT (216 x 13) beside it; a sandwich trains the
largest and the smallest beside that one. All variants take turns, and the fastest turn of each counts: neighbours on
a shared machine only slow down. `--quick` takes two turns, else it is eight.

The last line is JSON, times in CPU-seconds:

* `img_per_cpu_s_qat_bf16` (mark: 48, where the machine of the mark ran timm's ViT at 28.5 in float32),
  `img_per_cpu_s_fp32` (own step without quantization; mark: 0.9 times timm's), `timm_img_per_cpu_s_fp32`;
* `qat_over_float`: quantized over unquantized single-path step, in bfloat16 (mark: 1.15), and the same in float32;
* `sandwich3_over_single` in bfloat16 (mark: 3.2);
* `peak_memory_ratio`: quantized over unquantized, of the peak of memory that a step allocates (mark: 1.25);
* without `--quick` also `learned_over_measured` and `learned_over_measured_memory`: what learned scales cost.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from unittest import mock

import timm
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch.profiler import ProfilerActivity, profile

from supernet.config import SamplingConfig, TrainConfig
from supernet.functional import Observer
from supernet.sampling import STRATEGIES
from supernet.space import SearchSpace
from supernet.step import Step
from supernet.subnet import Subnet
from supernet.vit import SupernetViT

BATCH = 64
SPACE = SearchSpace(
    num_classes=10,
    in_chans=3,
    patch_size=4,
    head_dim=64,
    image_size=(32,),
    embed_dim=(192, 216, 240, 256),
    depth=(12, 13, 14),
    num_heads=(3, 4),
    mlp_ratio=(3.5, 4.0),
    high_precision_ratio=(0.0, 0.5, 1.0),
)
CONFIG = TrainConfig(epochs=9, batch_size=BATCH, lr=5e-4, drop_path=0.1)


def middle() -> Subnet:
    """The subnet in the middle of the space."""
    largest = SPACE.largest()
    blocks = tuple(
        dataclasses.replace(
            block,
            num_heads=3 + index % 2,
            mlp_ratio=3.5 + index % 2 / 2,
            qkv_ratio=0.5,
            proj_ratio=0.5,
            fc1_ratio=0.5,
            fc2_ratio=0.5,
        )
        for index, block in enumerate(largest.blocks[:13])
    )
    return dataclasses.replace(largest, embed_dim=216, blocks=blocks)


@STRATEGIES.register("middle")
def middle_alone(space, rng, random):
    """A single path."""
    return [middle()]


@STRATEGIES.register("sandwich-middle")
def middle_sandwich(space, rng, random):
    """The largest of AutoFormer's choices of width (the supernet is wider), the smallest, and the middle."""
    return [dataclasses.replace(space.largest(), embed_dim=240), space.smallest(), middle()]


def ignore(*arguments: object) -> None:
    """Does nothing, and keeps nothing alive as a mock would."""


def own_step(
    strategy: str, precision: str, x: torch.Tensor, y: torch.Tensor, *, quantize: bool = True, learned: bool = False
) -> Callable[[], None]:
    """A training step of the supernet."""
    torch.manual_seed(0)
    model = SupernetViT(SPACE, layer_scale=0.1)
    observer = Observer(quantize=False)
    with torch.no_grad():
        model(x, SPACE.largest(), observer)
    observer.update(momentum=0.0)
    if learned:
        model.learn_scales()
    optimizer = torch.optim.AdamW(model.parameters(), lr=CONFIG.lr)
    config = dataclasses.replace(CONFIG, sampling=SamplingConfig(strategy=strategy), precision=precision)
    step = Step(model, optimizer, config, seed=0, quantize=quantize)

    def run() -> None:
        if quantize:
            step(x, y, 0)
        else:  # as a program without quantization: it would not look at ranges
            with mock.patch.object(Observer, "record", ignore):
                step(x, y, 0)

    return run


def timm_step(precision: str, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """A training step of a plain ViT of timm."""
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=4,
        embed_dim=216,
        depth=13,
        num_heads=3,
        mlp_ratio=3.75,
        num_classes=10,
        drop_path_rate=CONFIG.drop_path,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=CONFIG.lr)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(x)
        F.cross_entropy(logits.float(), y, label_smoothing=CONFIG.label_smoothing).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CONFIG.clip_grad_norm)
        optimizer.step()

    return run


def cpu_s(run: Callable[[], None]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def peak_bytes(run: Callable[[], None]) -> int:
    """The most memory that a step holds beyond what was there before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two turns instead of eight, and fewer variants")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(BATCH, 3, 32, 32, generator=generator), torch.arange(BATCH) % 10
    variants = {
        "timm_fp32": timm_step("float32", x, y),
        "float_fp32": own_step("middle", "float32", x, y, quantize=False),
        "float_bf16": own_step("middle", "bfloat16", x, y, quantize=False),
        "qat_bf16": own_step("middle", "bfloat16", x, y),
        "sandwich_bf16": own_step("sandwich-middle", "bfloat16", x, y),
    }
    if not quick:
        variants["learned_bf16"] = own_step("middle", "bfloat16", x, y, learned=True)
        variants |= {"qat_fp32": own_step("middle", "float32", x, y), "timm_bf16": timm_step("bfloat16", x, y)}
    measured = ("float_bf16", "qat_bf16", "learned_bf16")
    memory = {name: peak_bytes(variants[name]) for name in measured if name in variants}  # and warms up
    seconds = {name: [] for name in variants}
    for _ in range(2 if quick else 8):
        for name, run in variants.items():
            seconds[name].append(cpu_s(run))
    best = {name: min(times) for name, times in seconds.items()}
    for name, value in best.items():
        print(f"{name:14} {BATCH / value:6.1f} images per CPU-second")
    figures = {
        "img_per_cpu_s_qat_bf16": BATCH / best["qat_bf16"],
        "img_per_cpu_s_fp32": BATCH / best["float_fp32"],
        "timm_img_per_cpu_s_fp32": BATCH / best["timm_fp32"],
        "qat_over_float": best["qat_bf16"] / best["float_bf16"],
        "sandwich3_over_single": best["sandwich_bf16"] / best["qat_bf16"],
        "peak_memory_ratio": memory["qat_bf16"] / memory["float_bf16"],
    }
    if not quick:
        figures["qat_over_float_fp32"] = best["qat_fp32"] / best["float_fp32"]
        figures["timm_img_per_cpu_s_bf16"] = BATCH / best["timm_bf16"]
        figures["learned_over_measured"] = best["learned_bf16"] / best["qat_bf16"]
        figures["learned_over_measured_memory"] = memory["learned_bf16"] / memory["qat_bf16"]
    for name, count in memory.items():
        print(f"{name:14} {count / 2**20:6.0f} MiB at the peak of a step")
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
