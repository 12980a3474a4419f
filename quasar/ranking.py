"""`quasar rank`: does the supernet order subnets as trainings from scratch do?

For two sets of subnets, one over the whole range of latencies and one at about equal latency, it compares the accuracy
and the loss that a subnet inherits from the supernet with those after a training of its own, on the validation split.
Beside that stand what knowing the latency alone would give, and what a second training with another seed gives.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from hwmodel.errors import DamagedInputError, UsageError
from hwmodel.files import append_line, write_atomic
from quasar.config import RunConfig
from quasar.pipeline import check_same_images, load_supernet, open_splits, set_up_torch
from quasar.progress import stage
from quasar.run_folder import RunFolder
from quasar.targets import build_cost_model
from search.ranking import at_equal_cost, over_the_range, tau_between_seeds, tau_with_seeds
from supernet.alone import settings_alone, train_alone
from supernet.evaluate import Evaluation, evaluate
from supernet.lowering import lower_many
from supernet.standalone import extract
from supernet.subnet import Subnet

#: a training: digest of the subnet, seed, epochs
Key = tuple[str, int, int]


def rank(run: RunFolder, config: RunConfig, *, subnets: int, seeds: int, epochs: int | None) -> dict[str, Any]:
    """Trains subnets, writes `rank.json` and gives what is in it.

    Each training is a line of `rank.jsonl`; one that is there already is not done again.

    Args:
        subnets: of each of the two sets.
        seeds: trainings of each subnet.
        epochs: of each training; as many as the supernet's if None.

    Raises:
        UsageError: too few subnets or seeds; training of the supernet has not finished.
        DamagedInputError: `rank.jsonl` is damaged.
        QuasarError: a training diverges.
    """
    if epochs is None and not config.train.epochs:
        raise UsageError(f"{run.path}: the supernet was calibrated without training (train.epochs 0); give --epochs N")
    epochs = config.train.epochs if epochs is None else epochs
    if subnets < 2 or seeds < 1 or epochs < 1:
        raise UsageError("--subnets must be at least 2, --seeds and --epochs at least 1")
    model = build_cost_model(config)
    space = config.space
    sets = {
        "range": over_the_range(space, model, subnets, seed=config.seed),
        "equal": at_equal_cost(space, model, subnets, seed=config.seed),
    }
    supernet, checkpoint = load_supernet(run, config)
    _, val_split = splits = open_splits(config)
    check_same_images(splits[0], checkpoint, run)
    latency_ms: dict[Subnet, float] = {}
    for genotypes in sets.values():
        estimates = model.estimate_many(lower_many(space.arrays(genotypes))).latency_ms.tolist()
        latency_ms |= dict(zip(map(space.decode, genotypes), estimates, strict=True))
    batch_size = config.search.batch_size
    inherited = {s: evaluate(extract(supernet, s), val_split, batch_size=batch_size) for s in latency_ms}
    by_seed = [
        dict(_trained(run, dataclasses.replace(config, seed=config.seed + 1 + number), list(latency_ms), epochs))
        for number in range(seeds)
    ]
    document = {
        "epochs": epochs,
        "seeds": seeds,
        "images": len(val_split),
        "sets": {
            name: _agreement([space.decode(g) for g in genotypes], latency_ms, inherited, by_seed)
            for name, genotypes in sets.items()
        },
    }
    write_atomic(run.path / "rank.json", json.dumps(document, indent=2) + "\n")
    return document


def _trained(
    run: RunFolder, config: RunConfig, subnets: list[Subnet], epochs: int
) -> Iterator[tuple[Subnet, Evaluation]]:
    """The results of trainings with `config.seed`, done now or earlier."""
    known = _read(run)
    train_split, val_split = open_splits(config)
    settings = settings_alone(config.train, epochs=epochs)
    with stage(f"rank, seed {config.seed}") as progress:
        for number, subnet in enumerate(subnets):
            key = (subnet.digest, config.seed, epochs)
            if key not in known:
                module = train_alone(
                    subnet,
                    supernet=config.supernet,
                    config=settings,
                    train_split=train_split,
                    seed=config.seed,
                    device=set_up_torch(config),
                    progress=lambda done, total, text, number=number: progress(  # type: ignore[misc]
                        number, len(subnets), f"training alone: step {done} of {total}"
                    ),
                )
                known[key] = evaluate(module, val_split, batch_size=config.search.batch_size)
                row = {"digest": subnet.digest, "seed": config.seed, "epochs": epochs}
                row |= dataclasses.asdict(known[key]) | {"subnet": subnet.to_dict()}
                append_line(run.rank_journal, json.dumps(row))
            yield subnet, known[key]
        progress(len(subnets), len(subnets), "")


def _read(run: RunFolder) -> dict[Key, Evaluation]:
    """What has been trained. A last line without its end, as a kill leaves it, is cut off."""
    path = run.rank_journal
    if not path.exists():
        return {}
    known: dict[Key, Evaluation] = {}
    try:
        whole, _, rest = path.read_text(encoding="utf-8").rpartition("\n")
        for line in whole.splitlines():
            row = json.loads(line)
            result = Evaluation(accuracy=row["accuracy"], loss=row["loss"], images=row["images"])
            known[row["digest"], row["seed"], row["epochs"]] = result
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedInputError(f"{path}: line {len(known) + 1} is damaged ({error}); remove the line") from None
    if rest:
        write_atomic(path, whole + "\n" if whole else "")
    return known


def _agreement(
    subnets: list[Subnet],
    latency_ms: dict[Subnet, float],
    inherited: dict[Subnet, Evaluation],
    by_seed: list[dict[Subnet, Evaluation]],
) -> dict[str, Any]:
    """Taus of one set, and its subnets with all that they come from."""
    document: dict[str, Any] = {}
    for metric, sign in (("accuracy", 1.0), ("loss", -1.0)):  # a slower subnet has a smaller loss
        alone = [[getattr(results[s], metric) for s in subnets] for results in by_seed]
        document[metric] = {
            "inherited": tau_with_seeds([getattr(inherited[s], metric) for s in subnets], alone),
            "latency": tau_with_seeds([sign * latency_ms[s] for s in subnets], alone),
            "seeds": tau_between_seeds(alone),
        }
    document["subnets"] = [
        {
            "digest": s.digest,
            "latency_ms": latency_ms[s],
            "inherited": dataclasses.asdict(inherited[s]),
            "alone": [dataclasses.asdict(results[s]) for results in by_seed],
        }
        for s in subnets
    ]
    return document
