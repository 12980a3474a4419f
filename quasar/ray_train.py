"""`quasar train --workers N`: the workers of `supernet.parallel`, started by Ray Train."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hwmodel.errors import QuasarError, UsageError
from quasar.config import RunConfig
from quasar.ray_cluster import cluster, first_line
from quasar.run_folder import RunFolder
from supernet.evaluate import Evaluation


def train_on_ray(run: RunFolder, config: RunConfig, *, workers: int) -> dict[str, Evaluation]:
    """Trains the supernet, or goes on where it stopped; gives the accuracies of the probe subnets.

    Raises:
        UsageError: more workers than the cluster has GPUs or, where it computes on those, CPU cores; errors of `train`.
        QuasarError: a worker ended, or the cluster cannot be reached.
    """
    from ray.train import FailureConfig, ScalingConfig, TrainingFailedError
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchTrainer

    with cluster(cpus=max(workers, os.cpu_count() or 1), worker_output=True) as has:
        use_gpu = config.compute == "cuda" or (config.compute == "auto" and has.get("GPU", 0) > 0)
        kind, devices = ("GPUs", has.get("GPU", 0)) if use_gpu else ("CPU cores", has.get("CPU", 0))
        if workers > devices:
            raise UsageError(f"--workers {workers}: the Ray cluster has {devices:.0f} {kind}; ask for at most as many")
        trainer = TorchTrainer(
            _work,
            train_loop_config={"config": config, "folder": str(run.path.resolve()), "directory": str(Path.cwd())},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
            run_config=RayRunConfig(
                storage_path=str((run.train / "ray").resolve()), failure_config=FailureConfig(max_failures=0)
            ),
        )
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            raise _cause(error) from error
    probes: dict[str, Evaluation] = result.return_value
    return probes


def _work(settings: dict[str, Any]) -> dict[str, Evaluation]:
    """What each worker does; Ray takes what the first one gives."""
    import ray.train.torch
    import torch

    from quasar import pipeline
    from supernet.parallel import joined

    os.chdir(settings["directory"])  # relative paths of the configuration mean the same
    config: RunConfig = settings["config"]
    device = pipeline.set_up_torch(config)
    if device.type == "cuda":
        torch.cuda.set_device(ray.train.torch.get_device())
    with joined(device) as workers:
        splits = pipeline.prepare(config, workers=workers, resume=True)  # new weights were looked for before
        return pipeline.train_stage(RunFolder(Path(settings["folder"])), config, splits, workers=workers)


def _cause(error: Exception) -> QuasarError:
    """The error of ours that a worker raised, or one that says what Ray says."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    for _, failure in sorted(failures.items()):
        for cause in (failure, getattr(failure, "cause", None), failure.__cause__):
            if isinstance(cause, QuasarError):
                return cause
    rank, failure = next(iter(sorted(failures.items())), (None, error))
    return QuasarError(f"training: worker {rank} has ended ({first_line(failure)}); start again with --resume")
