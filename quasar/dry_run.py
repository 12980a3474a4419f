"""`quasar train --dry-run`: a few steps on random images, to see that a training fits before the data set is there."""

from __future__ import annotations

import math
import resource
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

import torch

from quasar.config import RunConfig
from quasar.pipeline import check_names, set_up_torch
from quasar.targets import check_targets
from supernet.config import DistillConfig
from supernet.parallel import Workers
from supernet.step import Step
from supernet.train import State, new_supernet

#: steps of each kind, after one to warm up
STEPS = 3


def dry_run(config: RunConfig, *, workers: Workers) -> dict[str, Any]:
    """Trains the largest subnet and then sampled ones for `STEPS` steps each, without any file.

    The images are random, as are their labels; a teacher from outside is left out, as its weights may have to be
    fetched. What is given is this worker's: memory is its peak in GiB, on a GPU that of tensors, on a CPU that of the
    whole process; images per second are those of all workers.

    Raises:
        UsageError: an unknown name, no GPU, or a batch that does not divide.
        InfeasibleError: no subnet of the space meets any target.
    """
    check_names(config)
    if workers.first:
        check_targets(config)
    device = set_up_torch(config)
    train, space = config.train, config.space
    workers.check(train.batch_size, train.accumulate)
    model = new_supernet(space, config.supernet, seed=config.seed).to(device)
    if config.supernet.scales == "learned":
        model.learn_scales()
    settings = train if train.distill.teacher is None else replace(train, distill=DistillConfig())
    state = State.fresh(model, config=settings, steps=1)
    images, size = train.batch_size // workers.count, space.image_size[-1]
    x_BCHW = torch.randn(images, space.in_chans, size, size, device=device)
    y_B = torch.randint(space.num_classes, (images,), device=device)
    seconds = {}
    for kind, subnets in (("largest", [space.largest()]), ("sampled", None)):
        step = Step(
            model,
            state.optimizer,
            settings,
            seed=config.seed,
            auxiliary_steps=math.inf if settings.auxiliary_share else 0.0,  # the most that a training takes
            workers=workers,
            subnets=subnets,
        )
        times = []
        for number in range(STEPS + 1):
            started = time.perf_counter()
            step(x_BCHW, y_B, number).item()  # waits for the device
            if state.average is not None:
                state.average.update(model, step=number)
            times.append(time.perf_counter() - started)
        seconds[kind] = statistics.median(times[1:])
    return {
        "workers": workers.count,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "images": [images, space.in_chans, size, size],
        "tokens": space.largest().tokens,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "subnets": f"{space.size:.1e}" if space.size > 10**6 else str(space.size),
        "seconds_per_step": seconds,
        "images_per_second": train.batch_size / seconds["sampled"],
        "peak_memory_gib": _peak_memory(device) / 2**30,
    }


def _peak_memory(device: torch.device) -> int:
    """In bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
