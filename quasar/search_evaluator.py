"""What measures the subnets of a search: this process, or actors of Ray that each have the supernet and the images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hwmodel.errors import UsageError
from quasar.config import RunConfig
from quasar.pipeline import load_supernet, open_splits
from quasar.progress import stage
from quasar.ray_cluster import cluster
from quasar.run_folder import RunFolder
from search.cache import EvaluationCache
from search.evaluator import Evaluator, SupernetEvaluator
from search.executor import Executor, LocalExecutor
from search.measurer import Measurer, float_reference
from search.racing import racing_of
from search.ray_executor import ray_executor
from supernet.data.splits import Split
from supernet.stores import Precision, fastest_precision
from supernet.vit import SupernetViT


@contextmanager
def search_evaluator(
    run: RunFolder, config: RunConfig, supernet: SupernetViT, split: Split, caches: Callable[..., EvaluationCache]
) -> Iterator[Evaluator]:
    """Measures subnets of `supernet` on `split` as `config.search` says.

    The float reference, where subnets are ranked by it, is run here, once.

    Args:
        caches: gives the cache of evaluations with a `precision`.

    Raises:
        UsageError: the cluster of Ray has no room for the workers, or a device lacks `search.precision`.
        QuasarError: the cluster cannot be reached.
    """
    settings, reference = config.search, None
    if settings.signal == "kl":
        with stage("reference") as progress:
            reference = float_reference(supernet, split, batch_size=settings.batch_size, progress=progress)
    racing = racing_of(settings, images=len(split))

    def evaluator(executor: Executor, precision: Precision) -> SupernetEvaluator:
        exact = None if precision == "float32" else caches(precision="float32")
        return SupernetEvaluator(executor, caches(precision=precision), exact=exact, racing=racing)

    if settings.executor == "local":
        precision = _precision(config, supernet.cls_token.device)
        yield evaluator(LocalExecutor(_measurer(config, supernet, split, precision, reference)), precision)
    else:
        with _actors(run, config, reference) as (executor, precision):
            yield evaluator(executor, precision)


def _precision(config: RunConfig, device: torch.device) -> Precision:
    wanted = config.search.precision
    return fastest_precision(device) if wanted == "auto" else wanted


def _measurer(
    config: RunConfig, supernet: SupernetViT, split: Split, precision: Precision, reference: Tensor | None
) -> Measurer:
    settings, racing = config.search, racing_of(config.search, images=len(split))
    return Measurer(
        supernet, split, batch_size=settings.batch_size, precision=precision, reference=reference, racing=racing
    )


@contextmanager
def _actors(run: RunFolder, config: RunConfig, reference: Tensor | None) -> Iterator[tuple[Executor, Precision]]:
    """Actors on the cluster, which end with this context, and the precision of their products."""
    config = replace(config, threads=config.threads or 1)
    threads, wanted = config.threads or 1, config.search.workers
    with cluster(cpus=max((wanted or 1) * threads, os.cpu_count() or 1), worker_output=False) as has:
        use_gpu = config.compute == "cuda" or (config.compute == "auto" and has.get("GPU", 0) > 0)
        room = int(min(has.get("CPU", 0) // threads, has.get("GPU", 0) if use_gpu else float("inf")))
        if not 1 <= (wanted or room) <= room:
            each = f"{threads} CPU core{'s' * (threads > 1)}{' and a GPU' * use_gpu} for each"
            raise UsageError(f"search.workers: the Ray cluster has room for {room}, with {each}; lower it, or threads")
        precision = _precision(config, torch.device("cuda" if use_gpu else "cpu"))
        place = {"folder": str(run.path.resolve()), "directory": str(Path.cwd())}
        build = partial(_measurer_of_actor, config, precision, reference=reference, **place)
        with ray_executor(build, count=wanted or room, cpus=threads, gpus=int(use_gpu)) as executor:
            yield executor, precision


def _measurer_of_actor(
    config: RunConfig, precision: Precision, *, reference: Tensor | None, folder: str, directory: str
) -> Measurer:
    os.chdir(directory)  # relative paths of the configuration mean the same
    supernet, _ = load_supernet(RunFolder(Path(folder)), config)
    return _measurer(config, supernet, open_splits(config)[1], precision, reference)
