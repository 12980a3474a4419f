"""Training by several processes, which torchrun starts as a user would."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from supernet.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

#: everything at once that takes a share of the batch
SHARED = (
    "train.accumulate=2",
    "train.sampling.strategy=sandwich",
    "train.sampling.project_conflicts=true",
    "train.distill.kind=kl",
    "train.mixup=0.8",
    "train.drop_path=0.1",
    "train.ema_decay=0.9",
)


def torchrun(*arguments, workers=2):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    return subprocess.Popen(
        [*launcher, "-m", "quasar", "train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def rows(name):
    return [json.loads(line) for line in Path("runs", name, "train", "metrics.jsonl").read_text().splitlines()]


def assert_same_losses(ours, theirs, *, tolerance):
    for one, two in zip(rows(ours), rows(theirs), strict=True):
        assert one["train_loss"] == pytest.approx(two["train_loss"], rel=tolerance)
        for name, probe in one["val"].items():
            # Quantized in any case: a difference in the last bit may take a value to the next code.
            assert probe["loss"] == pytest.approx(two["val"][name]["loss"], rel=0.02)


@pytest.mark.parametrize(("quantized", "tolerance"), [(False, 1e-5), (True, 2e-3)])
def test_two_processes_give_the_losses_of_one(cli, config, quantized, tolerance):
    settings = [*SHARED, f"train.float_epochs={0 if quantized else 2}"]
    assert cli("train", config, "name=one", *settings).code == 0
    process = torchrun(config, "name=two", "--json", *settings)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["run"] == "runs/two"
    assert_same_losses("two", "one", tolerance=tolerance)


def test_a_killed_worker_ends_all_and_another_number_of_workers_goes_on(cli, config):
    settings = ["train.epochs=40", "train.warmup_epochs=1", "train.float_epochs=40"]
    process = torchrun(config, "name=killed", *settings)
    log = Path("runs/killed/train/metrics.jsonl")
    end = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") > 1):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    line = (
        "error: training: worker 0 of 2 has lost the others: one of them has ended, by an error of its own or by the "
        "system (memory?); start again with --resume"
    )
    # torchrun ends the workers that are left, too, and may be first
    assert re.findall("^error: .*$", err, flags=re.MULTILINE) in ([line], [])
    assert cli("train", config, "name=killed", *settings, "--resume").code == 0
    assert [row["epoch"] for row in rows("killed")] == list(range(1, 41))
    assert cli("train", config, "name=whole", *settings).code == 0
    assert_same_losses("killed", "whole", tolerance=1e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch_size=126", "error: train.batch_size 126 does not divide into pairs of images for 2 workers"),
        ("space.depth=deep", "error: tiny.yaml with space.depth=deep: "),
        ("data.name=digit", "error: data.name: unknown data set 'digit'"),
    ],
)
def test_all_workers_have_the_same_error_and_one_says_it(config, override, message):
    process = torchrun(config.name, override)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    errors = re.findall("^error: .*$", err, flags=re.MULTILINE)
    assert len(errors) == 1, err
    assert errors[0].startswith(message)


def ray_train(*arguments):
    pytest.importorskip("ray.train.torch")
    command = [sys.executable, "-m", "quasar", "train", *map(str, arguments)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=400, check=False, env=environment | {"OMP_NUM_THREADS": "1"}
    )


def test_ray_gives_the_checkpoint_that_torchrun_gives(config):
    ray = ray_train(config, "name=ray", "--workers", 2, "--json")
    assert ray.returncode == 0, ray.stderr
    process = torchrun(config, "name=torchrun", "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(ray.stdout.splitlines()[-1])["probes"] == json.loads(out)["probes"]
    last = "train/checkpoints/last.safetensors"
    digests = {Checkpoint.load(Path("runs", name, last)).digest for name in ("ray", "torchrun")}
    assert len(digests) == 1


def test_an_error_of_a_ray_worker_is_one_line(config):
    result = ray_train(config, "--workers", 2, "train.batch_size=126")
    assert result.returncode == 2, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: train.batch_size 126 does not divide into pairs of images for 2 workers")
