"""Whether what a search finds for one device is good on another, see `search.transfer`; nothing is trained.

Scores are the accuracies that searches of a run have measured. Without a run, or with too few of them, it is the bit
operations of a network, and what is lost is a share of them.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwmodel.cost import CostModel
from hwmodel.device import device_names
from hwmodel.errors import DamagedInputError, InfeasibleError, UsageError
from hwmodel.files import write_atomic
from quasar.device_config import device_configs
from quasar.figures.transfer import transfer_figure
from quasar.report import RunData
from quasar.run_folder import RunFolder
from quasar.targets import build_cost_model
from search.algorithm import FloatArray
from search.parts import SpaceParts
from search.transfer import POSITIONS, bit_operations, borrowed, rank_correlation
from supernet.space import Genotypes, SearchSpace

#: measured subnets that say more than a proxy does
ENOUGH_MEASURED = 20
#: candidates of which ranks say anything
_FEWEST = 3
#: random subnets among which strategies are chosen by a proxy
_POOL = 20_000


class Candidates(NamedTuple):
    """Canonical genotypes (N, G) with a score (N,), higher is better, and what that is."""

    genotypes: Genotypes
    score: FloatArray
    kind: str


def transfer(
    path: Path, devices: str | None, overrides: Sequence[str], *, subnets: int, out: Path, overwrite: bool
) -> dict[str, Any]:
    """Compares devices over the space of a configuration or a run; writes a picture and a JSON file beside it.

    Args:
        path: a configuration file, or a run folder, whose measured accuracies are then used.
        devices: names and device files by commas; by default all known devices on which the space can run.
        overrides: see `device_configs`.
        subnets: random candidates.
        out: the picture (PNG); the JSON file has the same name.

    Returns:
        What the JSON file holds: `devices`, `subnets`, the matrices `kendall` and `spearman` over the devices, `score`
        ("accuracy" or "bit_operations"), `scored` candidates, `positions`, and the matrices `lost`, `lost_worst` and
        `slower`, of which a row is the device for which a strategy was chosen, a column the one that runs it: means
        over the positions and, for `lost_worst`, the most. `lost` is in shares: of images, or of bit operations.

    Raises:
        UsageError: fewer than two devices, an unknown one, `out` exists, or what `device_configs` raises it for.
        InfeasibleError: nothing of the space runs on a device, or too little on all of them.
        DamagedInputError: a file of the run is damaged.
    """
    if out.suffix != ".png":
        raise UsageError(f"--out must end in .png, not '{out.name}'")
    files = out, out.with_suffix(".json")
    for file in files:
        if file.exists() and not overwrite:
            raise UsageError(f"{file}: exists; give another --out, or --overwrite")
    space, seed, models = _models(path, devices, overrides)
    if len(models) < 2:
        raise UsageError(f"a transfer is between devices, and there is only {', '.join(models)}; give two by --devices")
    rng = np.random.default_rng(seed)
    _, latency_ms = _on_all(space, models, np.unique(space.sample(rng, subnets), axis=0))
    ranks = rank_correlation(latency_ms)
    scored = _measured(path, space)
    if scored is None:  # which costs nothing, so that choices can be among many
        pool = np.unique(space.sample(rng, max(subnets, _POOL)), axis=0)
        scored = Candidates(pool, bit_operations(space, pool).astype(np.float64), "bit_operations")
    kept, scored_ms = _on_all(space, models, scored.genotypes)
    limits_ms = np.quantile(latency_ms, POSITIONS, axis=1)
    price = borrowed(scored_ms, scored.score[kept], limits_ms)
    lost = price.lost / price.best if scored.kind == "bit_operations" else price.lost
    document: dict[str, Any] = {
        "source": str(path),
        "space": space.digest,
        "devices": list(models),
        "subnets": latency_ms.shape[1],
        "latency_ms": {
            name: np.quantile(row, (0, 0.5, 1)).tolist() for name, row in zip(models, latency_ms, strict=True)
        },
        "kendall": _plain(ranks.kendall),
        "spearman": _plain(ranks.spearman),
        "score": scored.kind,
        "scored": int(kept.sum()),
        "positions": list(POSITIONS),
        "lost": _plain(lost.mean(axis=0)),
        "lost_worst": _plain(lost.max(axis=0)),
        "slower": _plain(price.slower.mean(axis=0)),
        "picture": str(out),
    }
    png = io.BytesIO()
    transfer_figure(document).savefig(png, format="png", dpi=150, facecolor="white")
    write_atomic(files[0], png.getvalue())
    write_atomic(files[1], json.dumps(document, indent=2) + "\n")
    return document


def _models(path: Path, devices: str | None, overrides: Sequence[str]) -> tuple[SearchSpace, int, dict[str, CostModel]]:
    """The space and the seed, and the cost models of the devices; of unnamed devices, of those that can hold it."""
    configs = device_configs(path, ",".join(device_names()) if devices is None else devices, overrides)
    first = next(iter(configs.values()))
    models = {}
    for name, config in configs.items():
        try:
            models[name] = build_cost_model(config)
        except InfeasibleError as error:
            if devices is not None:
                raise
            print(f"warning: {name} is left out: {error}", file=sys.stderr)
    return first.space, first.seed, models


def _on_all(
    space: SearchSpace, models: Mapping[str, CostModel], genotypes: Genotypes
) -> tuple[NDArray[np.bool_], FloatArray]:
    """Which genotypes (N, G) all devices can run, (N,), and the latencies of these M on each, (D, M).

    Raises:
        InfeasibleError: there are too few of them.
    """
    population = SpaceParts.of(space).of_genotypes(genotypes)
    batches = [model.estimate_many(population) for model in models.values()]
    kept = np.logical_and.reduce([batch.fits for batch in batches])
    if kept.sum() < _FEWEST:
        raise InfeasibleError(
            f"{int(kept.sum())} of {len(kept)} subnets run on all of {', '.join(models)}, which is too few to compare; "
            "leave out a device, or ask for more --subnets"
        )
    return kept, np.stack([batch.latency_ms[kept] for batch in batches])


def _measured(path: Path, space: SearchSpace) -> Candidates | None:
    """The subnets that the searches of a run have measured in full, by accuracy; None if that is too few of them."""
    if not path.is_dir():
        return None
    run = RunFolder(path).base
    found: dict[tuple[int, ...], float] = {}
    for folder in (run, *run.of_devices().values()):
        for trial in RunData.read(folder.path).trials:
            if len(trial.genotype) != len(space.gene_sizes) or (np.array(trial.genotype) >= space.gene_sizes).any():
                raise DamagedInputError(f"{folder.journal}: trial {trial.index} is of another space; search again")
            if trial.complete:
                found[trial.genotype] = trial.val_accuracy
    if len(found) < ENOUGH_MEASURED:
        return None
    genotypes = np.array(list(found), dtype=np.int64)
    return Candidates(space.canonical(genotypes), np.array(list(found.values())), "accuracy")


def _plain(matrix: FloatArray) -> list[list[float | None]]:
    """A matrix (D, D) for JSON: six digits, null where there is no value."""
    return [[None if np.isnan(value) else float(f"{value:.6g}") for value in row] for row in matrix.tolist()]
