"""Does a strategy that was found with plain ViTs scale a pooling ViT? It is compared with compound scaling by hand.

    python experiments/scale_pit.py runs/digits-macs-scale pit.yaml --factors 3 9 [--seeds 0 1]

The pooling ViT of the shape file (fields of `supernet.pit_shape.PitShape`) stays as it is, and is scaled by both to
each factor of its cost. All are trained as the candidates of the study were. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from quasar.pipeline import open_splits, open_test_split
from quasar.progress import stage
from quasar.scaling.apply import Found, latency_function, load_strategy
from quasar.scaling.families import PitFamily
from quasar.scaling.outcome import mean_and_error
from quasar.scaling.strategy import cost_function
from supernet.alone import settings_alone
from supernet.evaluate import Evaluation, evaluate
from supernet.pit_shape import PitShape
from supernet.pit_train import train_pit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("shape", type=Path)
    parser.add_argument("--factors", type=float, nargs="+", default=[3, 9])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    found = load_strategy(arguments.result)
    family = PitFamily(
        base=PitShape.load(arguments.shape), high_precision_ratio=found.config.space.high_precision_ratio[0]
    )
    unit = found.strategy.unit
    cost_of = cost_function(unit, None) if unit == "macs" else latency_function(found.config.hardware)
    base_cost = cost_of(family.lower(family.base))
    networks = [("unscaled", 1.0, family.base)]
    for factor in arguments.factors:
        for name, strategy in (("strategy", found.strategy), ("compound", found.compound)):
            placed = strategy.moved(family, cost_of).at(factor * base_cost, family, cost_of)
            networks.append((name, factor, placed.shape))
    epochs = json.loads((arguments.result / "scale.json").read_text())["epochs"]
    rows = []
    for name, factor, shape in networks:
        mean, error = mean_and_error(trained(found, family, shape, seed, epochs) for seed in arguments.seeds)
        row = {"network": name, "factor": factor, unit: cost_of(family.lower(shape)), "accuracy": mean, "error": error}
        row |= {"depths": shape.depths, "widths": shape.widths, "image_size": shape.image_size}
        print(row, flush=True)
        rows.append(row)
    print(json.dumps(rows))


def trained(found: Found, family: PitFamily, shape: PitShape, seed: int, epochs: int) -> Evaluation:
    """Test accuracy after a training by itself."""
    config = found.config
    torch.set_num_threads(config.threads or 1)
    train_split, _ = open_splits(config)
    with stage(f"{shape.depths} {shape.widths} {shape.image_size} px, seed {seed}") as progress:
        module = train_pit(
            shape,
            high_precision_ratio=family.high_precision_ratio,
            config=settings_alone(config.train, epochs=epochs),
            train_split=train_split,
            seed=seed,
            device=torch.device("cpu"),
            progress=progress,
        )
    return evaluate(module, open_test_split(config), batch_size=config.search.batch_size)


if __name__ == "__main__":
    main()
