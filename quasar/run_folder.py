"""The folder of a run: who may write into it, what is in it, and what a finished stage left behind."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hwmodel.errors import DamagedInputError, QuasarError, UsageError
from hwmodel.files import write_atomic
from quasar.config import CONFIG_FILE, RunConfig, changed_settings, differing_keys, load_config
from quasar.front import Front
from supernet.validation import validate

#: file in a run folder with what the results depend on beside the configuration
ENVIRONMENT_FILE = "env.json"

#: folder in a run with a folder for each device of a search for several
DEVICES = "devices"

#: all that a run writes, stage by stage; --overwrite removes these and nothing else
STAGE_FILES = {
    "train": ("train", "rank.json", "rank.jsonl", "evaluations.jsonl"),
    "devices": (DEVICES,),
    "search": ("search", "timing.json"),
    "finetune": ("finetune",),
    "export": ("export",),
    "report": ("report.html",),
}


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths inside a run folder, or inside the folder of a device in it, `RUN/devices/<device>`.

    The latter is a run folder too, with a configuration, a search, bundles and a report of its own; the supernet and
    the measured accuracies are those of the run.
    """

    path: Path

    @property
    def base(self) -> RunFolder:
        """The run that holds the supernet: this one, or the one that this folder of a device is in."""
        place = self.path if self.path.parent.name == DEVICES else self.path.resolve()
        outer = place.parent.parent
        files = (outer / CONFIG_FILE, outer / ENVIRONMENT_FILE)
        inside = place.parent.name == DEVICES and all(file.is_file() for file in files)
        return RunFolder(outer) if inside else self

    def of_device(self, device: str) -> RunFolder:
        """The folder of a device that the supernet of this run is searched for."""
        return RunFolder(self.path / DEVICES / device)

    def of_devices(self) -> dict[str, RunFolder]:
        """The folders of all devices with a finished search in `RUN/devices`, by their names."""
        found = sorted(self.path.glob(f"{DEVICES}/*/search/front.json"))
        return {path.parents[1].name: RunFolder(path.parents[1]) for path in found}

    @property
    def train(self) -> Path:
        """Metrics and checkpoints."""
        return self.base.path / "train"

    @property
    def checkpoint(self) -> Path:
        """The supernet after the last epoch."""
        return self.train / "checkpoints" / "last.safetensors"

    @property
    def journal(self) -> Path:
        """One line for each evaluated subnet."""
        return self.path / "search" / "trials.jsonl"

    @property
    def front(self) -> Path:
        """The result of the search."""
        return self.path / "search" / "front.json"

    def baseline(self, name: str) -> Path:
        """One line for each subnet evaluated for a baseline of the search."""
        return self.path / "search" / f"{name}.jsonl"

    @property
    def evaluations(self) -> Path:
        """One line for each subnet whose accuracy was measured, by any search of this run's supernet."""
        return self.base.path / "evaluations.jsonl"

    @property
    def timing(self) -> Path:
        """How long the search took; apart from its result, which does not depend on the machine."""
        return self.path / "timing.json"

    @property
    def rank_journal(self) -> Path:
        """One line for each subnet that `quasar rank` trained."""
        return self.path / "rank.jsonl"

    @property
    def finetune(self) -> Path:
        """The chosen subnets after further training."""
        return self.path / "finetune"

    @property
    def export(self) -> Path:
        """One bundle for each target."""
        return self.path / "export"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.path / "report.html"

    def config(self, overrides: Sequence[str] = ()) -> RunConfig:
        """The resolved configuration, with overrides; raises `UsageError` if this is no run folder."""
        if not (self.path / CONFIG_FILE).is_file():
            raise UsageError(f"{self.path}: is not a run folder (it has no {CONFIG_FILE}); give the folder of a run")
        return load_config(self.path, overrides)

    def read_front(self) -> dict[str, Any]:
        """The search's result; raises `UsageError` if there is none yet, `DamagedInputError` if it is damaged."""
        if not self.front.exists():
            devices = ", ".join(str(folder.path) for folder in self.of_devices().values())
            if devices:
                raise UsageError(f"{self.path}: was searched for several devices; give the folder of one: {devices}")
            raise UsageError(f"{self.path}: has no search result yet; run `quasar search {self.path}` first")
        try:
            document = json.loads(self.front.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DamagedInputError(f"{self.front}: is not a search result ({error}); search again") from None
        return validate(Front, document, source=str(self.front), error=DamagedInputError).to_dict()

    def remove(self, *stages: str) -> None:
        """Deletes what the named stages wrote."""
        for stage in stages:
            for name in STAGE_FILES[stage]:
                item = self.path / name
                if item.is_dir():
                    shutil.rmtree(item)
                elif item.exists():
                    item.unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the run, with all of its devices, for this process; raises `UsageError` if another process holds it."""
        place = self.base.path
        try:
            place.mkdir(parents=True, exist_ok=True)
            file = (place / ".lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise QuasarError(f"{place}: cannot be used as a run folder: {error.strerror or error}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise UsageError(
                    f"{place}: is in use by process {holder}; wait for it, or choose another folder with name=…"
                ) from None
            file.seek(0)
            file.truncate()
            file.write(str(os.getpid()))
            file.flush()
            yield


@contextmanager
def open_run(config: RunConfig, *, resume: bool, overwrite: bool) -> Iterator[RunFolder]:
    """The run folder of `config`, locked and ready: new, continued, or cleared.

    Raises:
        UsageError: the folder holds a run and neither flag says what to do with it; it holds a run with other
            settings; it holds something else, or the search of a device; both flags are given; another process is using
            it.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    run = RunFolder(config.folder)
    if run.base != run:
        raise UsageError(
            f"{run.path}: holds the search of a device, and the supernet is that of {run.base.path}; give that run, or "
            "another folder with name=… output_dir=…"
        )
    if run.path.exists() and not run.path.is_dir():
        raise UsageError(f"{run.path}: is a file; choose another name or output_dir")
    found = {item.name for item in run.path.iterdir()} if run.path.exists() else set()
    # Other programs have a config.yaml too, and --overwrite deletes: both files must be there.
    holds_run = {CONFIG_FILE, ENVIRONMENT_FILE} <= found
    foreign = found - {".lock", ENVIRONMENT_FILE}
    if foreign and not holds_run:
        raise UsageError(f"{run.path}: is not a run folder but holds files ({min(foreign)}, …); choose another name")
    with run.locked():
        if holds_run and not overwrite:
            if not resume:
                raise UsageError(
                    f"{run.path}: holds a run already; continue it with --resume, replace it with --overwrite, "
                    "or choose another folder with name=…"
                )
            # It is the same folder, however it is spelt here and there.
            earlier = replace(run.config(), name=config.name, output_dir=config.output_dir)
            changed = changed_settings(config, earlier)
            if changed:
                raise UsageError(
                    f"{run.path}: cannot resume: {changed[0]} differs from the run's {CONFIG_FILE}"
                    f"{f', and {len(changed) - 1} more' if len(changed) > 1 else ''}; "
                    "restore it, choose another name, or use --overwrite"
                )
            for key in sorted({"threads", "compute"} & set(differing_keys(config, earlier))):
                print(f"warning: {key} is not that of the run's start; results differ by rounding", file=sys.stderr)
        for part in run.checkpoint.parent.glob(".*.part"):  # of a checkpoint at which a kill came
            part.unlink()
        if overwrite:
            run.remove(*STAGE_FILES)
        write_atomic(run.path / ENVIRONMENT_FILE, json.dumps(environment(), indent=2) + "\n")
        write_atomic(run.path / CONFIG_FILE, config.to_yaml())
        yield run


def environment() -> dict[str, Any]:
    """What the results depend on beside the configuration: versions and the machine."""
    packages = ("quasar-nas", "torch", "timm", "numpy")
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "packages": {package: version(package) for package in packages},
    }
