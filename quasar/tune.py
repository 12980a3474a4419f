"""`quasar tune`: a sweep over training settings by Ray Tune, each trial a training of the supernet in its own folder.

Optuna chooses the parameters and ASHA stops poor trials. What has happened is in `trials.jsonl` before anything comes
of it, and a sweep goes on from that file: the ended trials are told to Optuna and ASHA again, the others continue
from their checkpoints. `Tuner.restore` is not used, because a kill may hit it: its snapshots are seconds apart and not
written whole, do not hold ASHA's state, and one that cannot be read starts the sweep over without a word.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import ray.tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from hwmodel.errors import QuasarError, RefusedError, UsageError
from hwmodel.files import write_atomic
from quasar.config import RunConfig, changed_settings, load_config
from quasar.figures import trials_figure
from quasar.pipeline import check_names, check_weights, prepare, set_up_torch
from quasar.progress import stage
from quasar.ray_cluster import cluster
from quasar.run_folder import RunFolder, open_run
from quasar.sweep import Sweep, check_sweep, distributions, load_sweep, settings
from quasar.tune_journal import Journal, Trial
from supernet.config import Progress
from supernet.data.config import DataConfig
from supernet.data.splits import Split, open_train
from supernet.evaluate import Evaluation
from supernet.metrics import read_evaluations
from supernet.train import steps_per_epoch, train

#: times that a trial goes on from its checkpoint after its worker has ended or raised what is no error of ours
RETRIES = 2

#: finished trials below which nothing is said about the importance of parameters
MIN_FOR_IMPORTANCE = 8

#: all that a sweep writes, the files that mark its folder last: --overwrite removes them in this order
FILES = ("ray", "trials", "trials.jsonl", "tune.json", "best.yaml", "tune.png", "config.yaml", "sweep.yaml")

#: what Ray must not do: take Ctrl-C for itself, print tables and tracebacks, log every trial in more formats
_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # it prints even when it is told to be silent
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails has no metric
}


def tune(
    base: RunConfig, sweep: Sweep, *, source: str, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Trains the trials of a sweep, or those that are left of it, writes the results, and gives `tune.json`.

    Args:
        source: the sweep's file, for messages.

    Raises:
        UsageError: a sweep or a configuration that cannot be trained; a folder that holds something else, or a sweep
            with neither flag set; more resources for a trial than the cluster has.
        QuasarError: no trial has finished; the cluster cannot be reached.
    """
    prepare(base)
    for where, config in check_sweep(sweep, base, source=source).items():
        try:
            check_names(config)
            check_weights(config)
            steps_per_epoch(config.train, _open_images(config)[0])
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
    with _open_folder(base, sweep, resume=resume, overwrite=overwrite) as folder:
        journal = Journal(folder / "trials.jsonl")
        if journal.open or len(journal.trials) < sweep.trials:
            refused = _run(folder, base, sweep, journal)
            if refused:
                raise RefusedError(f"{refused}; make room, and continue with --resume")
        _remove(folder / "ray")
        if journal.open:
            raise QuasarError(f"{folder}: Ray ended before {len(journal.open)} trials; continue with --resume")
        return _write_results(folder, base, sweep, list(journal.trials.values()))


@contextmanager
def _open_folder(base: RunConfig, sweep: Sweep, *, resume: bool, overwrite: bool) -> Iterator[Path]:
    """The folder of a sweep, locked and ready: new, continued, or cleared. Refuses as `open_run` does."""
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    folder = Path(base.output_dir) / f"{base.name}-tune"
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; choose another name or output_dir")
    found = {item.name for item in folder.iterdir() if item.name[0] != "."} if folder.exists() else set()
    holds_sweep = {"config.yaml", "sweep.yaml"} <= found
    if not holds_sweep and found - {"sweep.yaml"}:
        raise UsageError(
            f"{folder}: is not the folder of a sweep but holds files ({min(found)}, …); choose another name"
        )
    with RunFolder(folder).locked():
        if holds_sweep and not overwrite:
            if not resume:
                raise UsageError(
                    f"{folder}: holds a sweep already; continue it with --resume, replace it with --overwrite, "
                    "or choose another name with name=…"
                )
            _check_same(folder, base, sweep)
        if overwrite:
            for name in FILES:
                _remove(folder / name)
        write_atomic(folder / "sweep.yaml", sweep.to_yaml())
        write_atomic(folder / "config.yaml", base.to_yaml())
        yield folder


def _check_same(folder: Path, base: RunConfig, sweep: Sweep) -> None:
    """Raises `UsageError` unless the sweep in `folder` differs in the number of trials at most."""
    earlier = load_sweep(folder / "sweep.yaml")
    earlier = replace(earlier, trials=sweep.trials, concurrent=sweep.concurrent)
    ours, theirs = asdict(sweep), asdict(earlier)
    changed = [f"{key} of the sweep" for key in ours if ours[key] != theirs[key]]
    before = load_config(folder / "config.yaml")
    changed += changed_settings(base, replace(before, name=base.name, output_dir=base.output_dir))
    if changed:
        raise UsageError(
            f"{folder}: cannot resume: {changed[0]} differs{f', and {len(changed) - 1} more' * (len(changed) > 1)}; "
            "restore it, choose another name, or use --overwrite (trials and concurrent may change)"
        )


def _remove(item: Path) -> None:
    if item.is_dir():
        shutil.rmtree(item)
    elif item.exists():
        item.unlink()


def _run(folder: Path, base: RunConfig, sweep: Sweep, journal: Journal) -> str | None:
    """Starts the trials that are left; returns when all have ended, or why the disk refused a file of one."""
    os.environ |= _ENVIRONMENT
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    left = len(journal.open) + max(0, sweep.trials - len(journal.trials))
    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric="value",
        mode="max",
        max_t=base.train.epochs,
        grace_period=sweep.grace_epochs,
        reduction_factor=sweep.reduction_factor,
        stop_last_trials=False,  # the last epoch's trials are to end by themselves, their files complete
    )
    with cluster(cpus=os.cpu_count() or 1, worker_output=False) as has, stage("tune") as progress:
        concurrent = min(left, _room(sweep, has), sweep.concurrent or left)
        trainable = ray.tune.with_parameters(
            _train_trial, base=base, sweep=sweep, folder=str(folder), directory=str(Path.cwd())
        )
        _remove(folder / "ray")
        search = _Search(base, sweep, journal, scheduler, progress)
        ray.tune.Tuner(
            ray.tune.with_resources(trainable, {"cpu": sweep.cpus_per_trial, "gpu": sweep.gpus_per_trial}),
            tune_config=ray.tune.TuneConfig(
                search_alg=search,
                scheduler=scheduler,
                num_samples=left,
                max_concurrent_trials=concurrent,
                reuse_actors=True,  # a worker that has imported torch and opened the data takes the next trial
            ),
            run_config=ray.tune.RunConfig(
                name="ray",
                storage_path=str(folder.resolve()),
                verbose=0,
                failure_config=ray.tune.FailureConfig(max_failures=RETRIES),
            ),
        ).fit()
    return search.refused


def _room(sweep: Sweep, has: Mapping[str, float]) -> int:
    """Trials for which the cluster has room at the same time; raises `UsageError` if that is none."""
    needs = {"CPU": sweep.cpus_per_trial, "GPU": sweep.gpus_per_trial}
    for kind, needed in needs.items():
        if needed > has.get(kind, 0):
            raise UsageError(
                f"{kind.lower()}s_per_trial is {needed:g}, but the Ray cluster has {has.get(kind, 0):g} {kind}s"
            )
    return min(int(has[kind] / needed) for kind, needed in needs.items() if needed)


class _Search(Searcher):  # type: ignore[misc]  # Ray has no types
    """Between Ray Tune and Optuna: writes the journal, and begins with what the journal knows.

    Ray's trials have random names; the trials of the journal have numbers, by which Optuna knows them, too.

    Attributes:
        refused: why the disk refused a file of a trial; no further one begins then.
    """

    def __init__(
        self, base: RunConfig, sweep: Sweep, journal: Journal, scheduler: ASHAScheduler, progress: Progress
    ) -> None:
        super().__init__(metric="value", mode="max")
        self._base, self._sweep, self._journal = base, sweep, journal
        self._scheduler, self._progress = scheduler, progress
        self._numbers: dict[str, int] = {}
        self.refused: str | None = None
        self._left = journal.open
        # A sampler that began as before would choose the parameters of the first trials again.
        seed = int(np.random.SeedSequence([sweep.seed, len(journal.trials)]).generate_state(1)[0])
        self._optuna = OptunaSearch(
            distributions(sweep),
            metric="value",
            mode="max",
            points_to_evaluate=[trial.parameters for trial in self._left],
            sampler=optuna.samplers.TPESampler(seed=seed),
        )
        for trial in journal.trials.values():
            if trial.state in ("finished", "stopped") and trial.value is not None:
                self._optuna.add_evaluated_point(trial.parameters, trial.value)
            if trial.state is not None:
                self._tell_scheduler(trial, f"earlier-{trial.number}")

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray saves searchers again and again: all there is to save is in the journal

    def save(self, checkpoint_path: str) -> None:
        """Does nothing, see `__getstate__`."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The number and the parameters of the next trial: one that has not ended, or a new one."""
        while not self.refused and (self._left or len(self._journal.trials) < self._sweep.trials):
            if self._left:
                trial = self._left.pop(0)
                self._optuna.suggest(str(trial.number))  # gives the point that it was told to begin with
                self._tell_scheduler(trial, trial_id)
            else:
                trial = self._journal.start(self._optuna.suggest(str(len(self._journal.trials) + 1)))
            self._numbers[trial_id] = trial.number
            try:
                settings(self._base, trial.parameters, source="parameters")
            except UsageError as error:
                self._end(trial, cause=str(error))
                continue
            self._show()
            return {"number": trial.number, "parameters": trial.parameters}
        return str(Searcher.FINISHED)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Notes an evaluated epoch. Optuna need not know: its sampler looks at the last values only."""
        if "epoch" in result:
            self._journal.report(self._numbers[trial_id], epoch=result["epoch"], value=result["value"])
        self._show()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Notes how a trial ended; `error` says that its worker did."""
        if result and "refused" in result:
            self.refused = result["refused"]  # the trial has not ended: it goes on with --resume
            return
        if result:
            self.on_trial_result(trial_id, result)  # the one for which it was stopped
        trial = self._journal.trials[self._numbers[trial_id]]
        lost = f"its worker ended {RETRIES + 1} times, see error.txt in its folder if there is one"
        self._end(trial, cause=lost if error else (result or {}).get("cause"))
        self._show()

    def _end(self, trial: Trial, *, cause: str | None) -> None:
        """Ends a trial; without a cause of failure it has finished, or ASHA has stopped it."""
        done = trial.epochs >= self._base.train.epochs
        self._journal.end(trial.number, "failed" if cause else "finished" if done else "stopped", cause=cause)
        value = None if cause else {"value": trial.value}
        self._optuna.on_trial_complete(str(trial.number), value, error=cause is not None)

    def _tell_scheduler(self, trial: Trial, trial_id: str) -> None:
        """Tells ASHA, under the name `trial_id`, what it knew of a trial; its decisions were followed then."""
        self._scheduler.on_trial_add(None, SimpleNamespace(trial_id=trial_id))
        for epoch, value in trial.values.items():
            self._scheduler.on_trial_result(None, SimpleNamespace(trial_id=trial_id), {"epoch": epoch, "value": value})

    def _show(self) -> None:
        trials = self._journal.trials.values()
        best = max(((t.value, -t.number) for t in trials if t.value is not None), default=None)
        shown = f", best {best[0]:.2%} (trial {-best[1]})" if best else ""
        ended = len(trials) - len(self._journal.open)
        self._progress(ended, self._sweep.trials, f"{len(self._journal.open)} running{shown}")


def _train_trial(chosen: dict[str, Any], *, base: RunConfig, sweep: Sweep, folder: str, directory: str) -> None:
    """What a worker does for one trial: trains it, or goes on, and reports each evaluated epoch.

    An error of ours ends the trial with its cause, but a disk that refuses ends the sweep, as others would fail like
    this one. Errors that are not ours end up in `error.txt`, and Ray tries again.
    """
    os.chdir(directory)  # relative paths of the configuration mean the same
    trials = Path(folder, "trials")
    config = replace(
        settings(base, chosen["parameters"], source="parameters"),
        name=str(chosen["number"]),
        output_dir=str(trials),
        threads=sweep.cpus_per_trial,
        compute="cuda" if sweep.gpus_per_trial else "cpu",
    )
    try:
        _wait_until_free(config.folder)
        with open_run(config, resume=True, overwrite=False) as run:
            _train_in(run, config, sweep.metric)
    except RefusedError as error:
        ray.tune.report({"refused": str(error)})
    except QuasarError as error:
        ray.tune.report({"cause": str(error)})
    except Exception:
        write_atomic(config.folder / "error.txt", traceback.format_exc())
        raise


def _wait_until_free(folder: Path) -> None:
    """Waits for a worker of a killed command, which may take a moment to end."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)


def _train_in(run: RunFolder, config: RunConfig, metric: str) -> None:
    def report(epoch: int, probes: Mapping[str, Evaluation]) -> None:
        ray.tune.report({"epoch": epoch, "value": _value(probes, metric)})

    device = set_up_torch(config)
    train_split, val_split = _open_images(config)
    # A kill may have come between an evaluation and its report: all are told again, and known ones ignored.
    for epoch, probes in read_evaluations(run.train).items():
        report(epoch, probes)
    train(
        space=config.space,
        supernet=config.supernet,
        config=config.train,
        train_split=train_split,
        val_split=val_split,
        folder=run.train,
        seed=config.seed,
        device=device,
        resume=True,
        progress=lambda done, total, text: None,
        on_evaluation=report,
    )


def _value(probes: Mapping[str, Evaluation], metric: str) -> float:
    if metric == "mean_accuracy":
        return float(np.mean([probe.accuracy for probe in probes.values()]))
    return probes[metric.removesuffix("_accuracy")].accuracy


def _open_images(config: RunConfig) -> tuple[Split, Split]:
    return _opened(config.data, config.space.image_size[-1], config.seed)


@lru_cache(maxsize=1)  # the trials of a worker read the same images, unless the sweep varies their augmentation
def _opened(data: DataConfig, image_size: int, seed: int) -> tuple[Split, Split]:
    return open_train(data, image_size=image_size, seed=seed)


def _write_results(folder: Path, base: RunConfig, sweep: Sweep, trials: list[Trial]) -> dict[str, Any]:
    """Writes `tune.json`, `best.yaml` and `tune.png`; raises `QuasarError` if no trial has finished."""
    ranked = sorted(trials, key=_rank)
    best = ranked[0] if ranked[0].state == "finished" else None
    document = {
        "folder": str(folder),
        "name": base.name,
        "metric": sweep.metric,
        "epochs": base.train.epochs,
        "best": best.number if best else None,
        "config": str(folder / "best.yaml") if best else None,
        "importance": _importance(sweep, trials),
        "trials": [
            {
                "trial": trial.number,
                "state": trial.state,
                "cause": trial.cause,
                "epochs": trial.epochs,
                "value": trial.value,
                "parameters": trial.parameters,
                "values": list(trial.values.items()),
            }
            for trial in ranked
        ],
    }
    write_atomic(folder / "tune.json", json.dumps(document, indent=2) + "\n")
    if best is None:
        first = ranked[0]
        raise QuasarError(f"{folder}: none of {len(trials)} trials has finished; trial {first.number}: {first.cause}")
    png = io.BytesIO()
    trials_figure(trials, best=best.number, metric=sweep.metric).savefig(png, format="png", dpi=150, facecolor="white")
    write_atomic(folder / "tune.png", png.getvalue())
    header = f"# Trial {best.number} of {folder}: {sweep.metric} {best.value:.4f} on the validation split.\n\n"
    write_atomic(folder / "best.yaml", header + settings(base, best.parameters, source="best").to_yaml())
    return document


def _rank(trial: Trial) -> tuple[int, int, float, int]:
    """Finished trials first, then those that came far; of equal length the better ones; of equal ones the earlier."""
    state = ("finished", "stopped", "failed").index(trial.state or "failed")
    return state, -trial.epochs, -(trial.value or 0.0), trial.number


def _importance(sweep: Sweep, trials: list[Trial]) -> dict[str, float] | None:
    """Share of the variance of the metric that each parameter explains over the finished trials (fANOVA).

    None where there are too few of them: it would be noise.
    """
    finished = [trial for trial in trials if trial.state == "finished"]
    if len(finished) < MIN_FOR_IMPORTANCE or len({trial.value for trial in finished}) == 1:
        return None
    study = optuna.create_study(direction="maximize")
    for trial in finished:
        study.add_trial(
            optuna.trial.create_trial(params=trial.parameters, distributions=distributions(sweep), value=trial.value)
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=sweep.seed)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
