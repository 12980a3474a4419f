"""What `--workers` says without a cluster; trainings by Ray are in test_workers.py."""

import sys

import pytest

from hwmodel.errors import UsageError
from quasar.ray_train import _cause


def test_missing_ray_is_named_with_its_remedy(cli, config, here, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = cli("train", config, "--workers", 2)
    assert (result.code, result.out) == (2, "")
    assert "--workers needs Ray" in result.error
    assert "pip install 'quasar-nas[ray]'" in result.error
    assert [path.name for path in here.iterdir()] == [config.name]


class FailedError(Exception):
    def __init__(self, failures):
        super().__init__("training failed")
        self.worker_failures = failures


def test_the_cause_is_the_error_of_a_worker():
    ours = UsageError("no such thing")
    assert _cause(FailedError({1: ValueError("lost"), 0: ours})) is ours
    assert str(_cause(FailedError({1: ValueError("first\nout of memory")}))) == (
        "training: worker 1 has ended (out of memory); start again with --resume"
    )


@pytest.mark.parametrize("workers", [0, -1])
def test_too_few_workers(cli, config, workers):
    assert cli("train", config, "--workers", workers).code == 2
