"""The command line in this process and in real ones, and one finished run of a few seconds that many tests read."""

import copy
import json
import os
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
from quasar.cli_hw import hw_app

app.add_typer(hw_app, name="hw")  # as `quasar.cli.main` does

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
    "search": {"targets": [{"latency_ms": 0.006}, {"fps": 250000}], "evaluations": 12, "population": 6},
}
BUNDLES = ("latency-0.006ms", "fps-250000")


@dataclass(frozen=True)
class Result:
    """What a command gave back."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout of `--json`: one JSON document, on one line."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line of an error; there is no traceback, and what else is on stderr is progress or a warning."""
        lines = self.err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1, self.err
        assert lines[-1] == errors[0], self.err
        assert all(is_progress(line) for line in lines[:-1]), self.err
        return errors[0]


def is_progress(line):
    return line.startswith(("train: ", "search: ", "export: ", "verify ", "warning: "))


def _cli(*arguments) -> Result:
    """`quasar ...` in this process; an exception that the command line does not handle fails the test."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return Result(result.exit_code, result.stdout, result.stderr)


class Process:
    """`quasar ...` in a process of its own, in the foreground's group of no terminal."""

    def __init__(self, *arguments, cwd, code=None, env=None, preexec_fn=None):
        program = ["-c", code] if code else ["-m", "tests_quasar_main"]
        if not code:
            program = ["-c", "from quasar.cli import main; main()"]
        self._process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            cwd=cwd,
            env=os.environ | {"PYTHONWARNINGS": "error"} | (env or {}) if env is not None else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=preexec_fn,
        )
