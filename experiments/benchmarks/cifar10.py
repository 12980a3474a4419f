"""What a recipe reaches: CPU-seconds of its training, and the accuracies of its largest and of 20 random subnets.

    python experiments/benchmarks/cifar10.py RECIPE [key=value …]

such as `experiments/cifar10-small.yaml data.root=/path/to/cifar-10-batches-py`. The run folder is a temporary one.
Accuracies are on the validation split, of extracted subnets. The last line is JSON.

Marks for CIFAR-10 and 600 CPU-seconds of training: `largest` 70 or more, and `random_mean` within 4 points of it.
Training's CPU-seconds include the evaluations of its probe subnets.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from quasar.config import load_config
from quasar.pipeline import load_supernet, open_splits, set_up_torch, train_stage
from quasar.run_folder import open_run
from supernet.evaluate import evaluate
from supernet.standalone import extract

RANDOM = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(given.recipe, [*given.overrides, f"output_dir={folder}"])
        set_up_torch(config)
        splits = open_splits(config)
        cpu, wall = time.process_time(), time.monotonic()
        with open_run(config, resume=False, overwrite=False) as run:
            train_stage(run, config, splits)
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        model, _ = load_supernet(run, config)
    space = config.space
    random = [space.decode(genotype) for genotype in space.sample(np.random.default_rng(1), RANDOM)]
    accuracies = []
    for number, subnet in enumerate([space.largest(), space.smallest(), *random]):
        found = evaluate(extract(model, subnet), splits[1], batch_size=config.search.batch_size)
        accuracies.append(100 * found.accuracy)
        print(f"\r{number + 1}/{RANDOM + 2} subnets", end="", file=sys.stderr)
    print(file=sys.stderr)
    largest, smallest, *others = accuracies
    figures = {
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "largest": largest,
        "smallest": smallest,
        "random_mean": statistics.mean(others),
        "random_stdev": statistics.stdev(others),
        "images": len(splits[1]),
    }
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
