"""What each technique of the supernet is worth on CIFAR-10, at equal CPU-seconds.

    python experiments/techniques.py ROWS data.root=/path/to/cifar-10-batches-py \
        [supernet.init_from=/path/to/vit_tiny.safetensors] [--cpu-seconds 100] [--seeds 0 1 2] [--only NAME …]

Most variants change one thing of experiments/cifar10-warm.yaml, which starts from an ImageNet ViT-Tiny; those of layer
scaling start from random weights, by experiments/cifar10-small.yaml. Keys can be overridden at the end of the command.
All variants take turns in a short timing, which decides how many steps of each the CPU-seconds pay for; they are then
trained for those, on one thread. A row of ROWS (JSON lines) is one training; a command that is started again goes on
after the last one. The last line printed is JSON, with means and standard deviations over the seeds.

Accuracies are in per cent, on the first `IMAGES` images of the validation split: the largest subnet, the smallest, and
the mean of `RANDOM` random ones of the variant's space. For the three kinds of precision, `at` is the accuracy of the
subnets that a search of `SEARCH` evaluations finds under each latency target, on `TEST` test images, and `within` the
same where only the search is confined to a kind, in the supernet of the variant `flexible`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwmodel.files import append_line
from quasar.config import RunConfig, load_config
from quasar.targets import build_cost_model
from search.evaluator import Direct
from search.run import run_search
from supernet.data.splits import Split, open_test, open_train
from supernet.evaluate import evaluate
from supernet.functional import Linear
from supernet.plan import LinearPlan
from supernet.pretrained import prepare
from supernet.space import SearchSpace
from supernet.standalone import extract
from supernet.step import Step
from supernet.subnet import Subnet
from supernet.train import State, new_supernet
from supernet.vit import ElasticLinear, SupernetViT

FOLDER = Path(__file__).parent
RANDOM, IMAGES, BATCH = 8, 1000, 250
#: of a search: evaluations, validation images in one, and test images for what it finds
SEARCH, SEARCH_IMAGES, TEST = 30, 500, 1000
#: of the timing: turns, of which the fastest counts, and steps in a turn
TURNS, STEPS = 4, 8
RATIOS = {"flexible": (0.0, 0.25, 0.5, 0.75, 1.0), "fixed-ratio": (0.5,), "per-layer": (0.0, 1.0)}
_DISTILL = ["train.distill.kind=kl", "train.distill.weight=0.5"]
#: recipe and overrides; the first of a recipe is what the others differ from in one thing
VARIANTS = {
    **{name: ("cifar10-warm", [f"space.high_precision_ratio={list(ratios)}"]) for name, ratios in RATIOS.items()},
    "separate": ("cifar10-warm", []),
    "sandwich": ("cifar10-warm", ["train.sampling.strategy=sandwich", *_DISTILL]),
    "max-random": ("cifar10-warm", ["train.sampling.strategy=max_random", *_DISTILL]),
    "projected": (
        "cifar10-warm",
        ["train.sampling.strategy=sandwich", "train.sampling.project_conflicts=true", *_DISTILL],
    ),
    "learned-scales": ("cifar10-warm", ["supernet.scales=learned"]),
    "layer-scaling": ("cifar10-small", []),
    "no-layer-scaling": ("cifar10-small", ["supernet.layer_scale=null"]),
}


class SeparateLinear(ElasticLinear):
    """Rows at 4 bits have weights of their own, which start as those at 8 bits do: no entanglement of precisions."""

    def __init__(self, source: ElasticLinear) -> None:
        rows, inputs = source.weight.shape
        super().__init__(rows, inputs, weight_bits=(source.low_bits, source.high_bits))
        self.load_state_dict(source.state_dict())
        self.low_weight = torch.nn.Parameter(source.weight.detach().clone())

    def refresh_clip(self) -> None:
        """As in the base class, for the weights at 4 bits."""
        with self._rows(lambda own: getattr(self, "low_weight", own)):  # the base class calls this before they exist
            super().refresh_clip()

    @contextlib.contextmanager
    def _rows(self, choose: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
        """Puts what `choose` makes of the weights at 8 bits in their place."""
        own = self.weight
        self._parameters["weight"] = choose(own)
        try:
            yield
        finally:
            self._parameters["weight"] = own

    def _composed(self, plan: LinearPlan) -> contextlib.AbstractContextManager[None]:
        """Puts the rows of both in the place of the weights."""
        is_high = torch.arange(len(self.weight)) % plan.group < plan.high
        return self._rows(lambda own: torch.where(is_high[:, None], own, self.low_weight))

    def active(self, plan: LinearPlan, input_scale: torch.Tensor) -> Linear:
        """As in the base class."""
        with self._composed(plan):
            return super().active(plan, input_scale)

    def codes(self, plan: LinearPlan) -> tuple[torch.Tensor, torch.Tensor]:
        """As in the base class."""
        with self._composed(plan):
            return super().codes(plan)


def separated(model: SupernetViT) -> SupernetViT:
    """The supernet with weights of their own for rows at 4 bits."""
    for name, module in list(model.named_modules()):
        if isinstance(module, ElasticLinear):
            owner, _, own = name.rpartition(".")
            setattr(model.get_submodule(owner), own, SeparateLinear(module))
    return model


class Training:
    """One training of a variant."""

    def __init__(self, name: str, config: RunConfig, split: Split, *, steps: int, seed: int) -> None:
        self.steps, self.split = steps, split
        # The schedule wants epochs: parts of the training, of which warm-up takes as large a share as in the recipe.
        share = config.train.warmup_epochs / config.train.epochs
        train = dataclasses.replace(config.train, epochs=10, warmup_epochs=10 * share)
        model = new_supernet(config.space, config.supernet, seed=seed)
        prepare(model, config.supernet, split, seed=seed)
        if name == "separate":
            model = separated(model)
        self.state = State.fresh(model, config=train, steps=steps // train.epochs)
        self.step = Step(model, self.state.optimizer, train, seed=seed)
        self.batches = self._batches(train.batch_size)

    def _batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for epoch in itertools.count():
            yield from self.split.batches(size, epoch=epoch)
            self.state.model.refresh_clips()

    def run(self, steps: int) -> float:
        """Trains for so many steps; CPU-seconds of one."""
        started, state = time.process_time(), self.state
        for _ in range(steps):
            state.scheduler.step_update(state.step)
            self.step(*next(self.batches), state.step)
            state.step += 1
            if state.average is not None:
                state.average.update(state.model, step=state.step)
        return (time.process_time() - started) / steps


def per_cent(model: SupernetViT, subnet: Subnet, split: Split, limit: int = IMAGES) -> float:
    return 100 * evaluate(extract(model, subnet), split, batch_size=BATCH, limit=limit).accuracy


def at_targets(
    model: SupernetViT, space: SearchSpace, config: RunConfig, val: Split, test: Split, *, seed: int
) -> list[float | None]:
    """Test accuracy of what a search of `space` finds in the supernet for each target."""
    with tempfile.TemporaryDirectory() as folder:
        result = run_search(
            space=space,
            model=build_cost_model(config),
            config=dataclasses.replace(config.search, evaluations=SEARCH),
            evaluator=Direct(
                lambda subnet: evaluate(extract(model, subnet), val, batch_size=BATCH, limit=SEARCH_IMAGES)
            ),
            journal=Path(folder) / "trials.jsonl",
            seed=seed,
            progress=lambda *_: None,
        )
    return [per_cent(model, choice.subnet, test, TEST) if choice.subnet else None for choice in result.choices]


def measure(name: str, config: RunConfig, splits: tuple[Split, Split, Split], *, steps: int, seed: int) -> dict:
    """Trains a variant and measures it."""
    train, val, test = splits
    training = Training(name, config, train, steps=steps, seed=seed)
    seconds = training.run(steps) * steps
    model = training.state.weights
    model.refresh_clips()
    rng = np.random.default_rng(0)
    space = config.space
    random = [per_cent(model, space.decode(genotype), val) for genotype in space.sample(rng, RANDOM)]
    row = {
        "variant": name,
        "seed": seed,
        "steps": steps,
        "cpu_seconds": round(seconds, 1),
        "largest": per_cent(model, space.largest(), val),
        "smallest": per_cent(model, space.smallest(), val),
        "random": statistics.mean(random),
    }
    if name in RATIOS:
        row["at"] = at_targets(model, space, config, val, test, seed=seed)
    if name == "flexible":
        row["within"] = {
            kind: at_targets(
                model, dataclasses.replace(space, high_precision_ratio=ratios), config, val, test, seed=seed
            )
            for kind, ratios in RATIOS.items()
            if kind != name
        }
    return row


def summary(rows: list[dict]) -> dict[str, Any]:
    """Means and standard deviations by variant."""
    result: dict[str, Any] = {}
    for name, group in itertools.groupby(sorted(rows, key=lambda row: row["variant"]), lambda row: row["variant"]):
        members = list(group)
        columns = {key: [row[key] for row in members] for key in ("largest", "smallest", "random")}
        for index in range(len(members[0].get("at", ()))):
            columns[f"at_{index}"] = [row["at"][index] for row in members]
        for kind in members[0].get("within", ()):
            for index in range(len(members[0]["within"][kind])):
                columns[f"within_{kind}_{index}"] = [row["within"][kind][index] for row in members]
        result[name] = {"seeds": len(members), "steps": members[0]["steps"]} | {
            key: [round(statistics.mean(values), 2), round(statistics.stdev(values), 2) if len(values) > 1 else None]
            for key, values in columns.items()
            if None not in values
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("overrides", nargs="+", metavar="key=value")
    parser.add_argument("--cpu-seconds", type=float, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    configs, splits = {}, {}
    for name, (recipe, changes) in VARIANTS.items():
        first = next(own for of, own in VARIANTS.values() if of == recipe)
        own = [
            text for text in given.overrides if recipe == "cifar10-warm" or not text.startswith("supernet.init_from")
        ]
        configs[name] = config = load_config(FOLDER / f"{recipe}.yaml", [*first, *own, *changes])
        if recipe not in splits:
            size = config.space.image_size[-1]
            splits[recipe] = (
                *open_train(config.data, image_size=size, seed=0),
                open_test(config.data, image_size=size),
            )
    timing = given.rows.with_suffix(".timing.json")
    if timing.exists():
        seconds = json.loads(timing.read_text())
    else:
        trainings = {
            name: Training(name, config, splits[VARIANTS[name][0]][0], steps=1000, seed=0)
            for name, config in configs.items()
        }
        seconds = dict.fromkeys(trainings, math.inf)
        for _ in range(TURNS):
            for name, training in trainings.items():
                seconds[name] = min(seconds[name], training.run(STEPS))
        timing.write_text(json.dumps(seconds))
        del trainings
    rows = [json.loads(line) for line in given.rows.read_text().splitlines()] if given.rows.exists() else []
    done = {(row["variant"], row["seed"]) for row in rows}
    for seed, name in itertools.product(given.seeds, given.only):
        if (name, seed) in done:
            continue
        steps = int(given.cpu_seconds / seconds[name])
        rows.append(measure(name, configs[name], splits[VARIANTS[name][0]], steps=steps, seed=seed))
        append_line(given.rows, json.dumps(rows[-1]))
        print(json.dumps(rows[-1]), file=sys.stderr)
    print(json.dumps(summary(rows)))


if __name__ == "__main__":
    main()
