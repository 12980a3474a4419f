"""The command line in this process and in processes of its own, and one finished run of a few seconds to read from."""

import copy
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from quasar.cli import app
from quasar.config import apply_override

TINY = {
    "name": "tiny",
    "threads": 1,
    "data": {"name": "digits", "val_fraction": 0.2},
    "space": {
        "num_classes": 10,
        "in_chans": 1,
        "patch_size": 4,
        "head_dim": 8,
        "image_size": [8],
        "embed_dim": [8, 16],
        "depth": [1, 2],
        "num_heads": [1, 2],
        "mlp_ratio": [1, 2],
        "high_precision_ratio": [0.0, 1.0],
    },
    "train": {"epochs": 2, "batch_size": 128, "lr": 3e-3, "warmup_epochs": 0.5},
    "hardware": {"array": [8, 16], "backend": "dual"},  # to choose among all takes half a second
    "search": {"targets": [{"latency_ms": 0.006}, {"fps": 250000}], "evaluations": 12, "population": 6},
}

#: seconds after which a process that should have ended, or got somewhere, is a failure; a busy machine is slow
PATIENCE_S = 120

#: `quasar` that stops for good in the n-th call of a function, having made a file to say so
STOPPING = """
import importlib, pathlib, sys, time
from quasar.cli import main

where, count, marker = sys.argv[1:4]
del sys.argv[1:4]
module, names = where.split(":")
owner = importlib.import_module(module)
*owners, name = names.split(".")
for inner in owners:
    owner = getattr(owner, inner)
original = getattr(owner, name)

def stopping(*args, **kwargs):
    global count
    count = int(count) - 1
    if count == 0:
        pathlib.Path(marker).touch()
        time.sleep(600)
    return original(*args, **kwargs)

setattr(owner, name, stopping)
main()
"""


@dataclass(frozen=True)
class Result:
    """What a command gave back."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout of `--json`: one JSON document and nothing else."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line of an error, the last on stderr; above it there is nothing but progress and warnings."""
        *others, last = self.err.splitlines() or [""]
        assert last.startswith("error: "), self.err
        expected = ("train: ", "search: ", "finetune: ", "export: ", "verify ", "warning: ")
        assert all(line.startswith(expected) for line in others)
        return last


class Process:
    """`quasar` in a process of its own, which a signal can hit."""

    def __init__(self, *arguments, code, cwd, **options):
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        self.pid = self._process.pid

    def wait_for(self, path: Path) -> None:
        """Returns once there is something at `path`; fails if the process ends before."""
        end = time.monotonic() + PATIENCE_S
        while not path.exists():
            assert self._process.poll() is None, self._process.communicate()
            assert time.monotonic() < end, f"no {path}"
            time.sleep(0.02)

    def end(self, signal: int | None = None) -> Result:
        """Waits for the end, after a signal if one is given."""
        if signal is not None:
            self._process.send_signal(signal)
        out, err = self._process.communicate(timeout=PATIENCE_S)
        return Result(self._process.returncode, out, err)


@pytest.fixture
def start(tmp_path):
    """Starts `quasar ...` in a process; it is killed after the test if it is still there."""
    started = []

    def run(*arguments, code="from quasar.cli import main; main()", **options):
        started.append(Process(*arguments, code=code, cwd=tmp_path, **options))
        return started[-1]

    yield run
    for process in started:
        process._process.kill()
        process._process.communicate()


@pytest.fixture
def start_stopping(start, tmp_path):
    """Starts `quasar ...`; returns when it stands still in the `count`-th call of `where`, a "module:function"."""

    def run(*arguments, where, count=1):
        marker = tmp_path / "stopped"
        process = start(where, count, marker, *arguments, code=STOPPING)
        process.wait_for(marker)
        marker.unlink()
        return process

    return run


def _cli(*arguments) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return Result(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="session")
def cli():
    """`quasar ...` in this process; an exception that the command line lets through fails the test."""
    return _cli


@pytest.fixture(autouse=True, scope="session")
def ctrl_c():
    """Shells start background jobs deaf to Ctrl-C, and so is what these start: tests send it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def same_threads():
    """`threads` of a configuration sets torch's, of the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _write_config(path: Path, *overrides: str) -> Path:
    data = copy.deepcopy(TINY)
    for override in overrides:
        apply_override(data, override)
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


@pytest.fixture
def config(here):
    """The file of a run that takes a second, in the working directory; the run folder is `runs/tiny`."""
    return _write_config(here / "tiny.yaml")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """(folder, result) of `quasar run --json` in a process of its own. Tests must not write there."""
    cwd = tmp_path_factory.mktemp("finished")
    _write_config(cwd / "tiny.yaml")
    process = Process("run", "tiny.yaml", "--json", code="from quasar.cli import main; main()", cwd=cwd)
    result = process.end()
    assert result.code == 0, result.err
    return cwd / "runs" / "tiny", result


@pytest.fixture
def run(finished, config, here):
    """A finished run that the test may spoil, `runs/tiny` in the working directory."""
    folder = Path("runs/tiny")
    shutil.copytree(finished[0], folder)
    return folder


def _contents(folder: Path) -> dict[str, bytes]:
    files = {path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(files)}


@pytest.fixture(scope="session")
def contents():
    """All files under a folder by path, but for the lock, which belongs to the last process that held it."""
    return _contents


@pytest.fixture
def refused(cli, here, contents):
    """Runs a command that must fail with `code` and change nothing; gives the one line on stderr."""

    def run(code, *arguments):
        before = contents(here)
        result = cli(*arguments)
        assert result.code == code, result
        assert result.out == ""
        assert contents(here) == before
        return result.error

    return run
