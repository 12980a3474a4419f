"""`quasar transfer`: agreement of devices over a space, with the accuracies of a run or without any."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from measured_hosts import measured_host

from quasar import processors

SOME = ("--devices", "zcu102,jetson_tx2,raspberry_pi_5")


@pytest.fixture(autouse=True)
def warnings_anew():
    processors._warn.cache_clear()


def test_a_space_is_compared_without_any_training(cli, config, here):
    result = cli("transfer", config, *SOME, "--subnets", "60", "--json")
    assert result.code == 0, result
    document = result.document
    assert document == json.loads(Path("transfer.json").read_text())
    assert Path("transfer.png").read_bytes().startswith(b"\x89PNG")
    assert document["devices"] == ["zcu102", "jetson_tx2", "raspberry_pi_5"]
    assert (document["score"], document["subnets"] <= 60) == ("bit_operations", True)
    for name in ("kendall", "spearman"):
        matrix = np.array(document[name])
        assert np.diagonal(matrix).tolist() == [1, 1, 1]
        assert (matrix == matrix.T).all()
    # A processor that is bound by memory and one that is bound by launches order subnets more alike than a board.
    assert document["kendall"][1][2] > document["kendall"][0][1]
    assert max(map(max, document["lost"])) <= max(map(max, document["lost_worst"])) <= 1


def test_a_run_lends_its_accuracies(cli, run):
    searched = cli("search", run, "--devices", "jetson_tx2,v100", "--quantiles", "0.3,1")
    assert searched.code == 0, searched
    trials = run.glob("**/trials.jsonl")
    digests = {json.loads(line)["digest"] for path in trials for line in path.read_text().splitlines()}
    assert len(digests) >= 20
    text = cli("transfer", run, "--devices", "zcu102,jetson_tx2", "--out", "found.png")
    assert text.code == 0, text
    assert "accuracy lost, points" in text.out
    document = json.loads(Path("found.json").read_text())
    assert (document["score"], document["scored"]) == ("accuracy", len(digests))
    device = cli("transfer", run / "devices" / "v100", "--devices", "zcu102,jetson_tx2", "--json").document
    assert device["lost"] == document["lost"]


def test_a_measured_host_among_the_devices(cli, config, here):
    measured_host(most_tokens=4.0).save(here / "small.yaml")
    measured_host().save(here / "host.yaml")
    result = cli("transfer", config, "--devices", "jetson_tx2,host.yaml")
    assert result.code == 0, result
    assert "host was measured on a CPU with 1 cores" in result.err
    small = cli("transfer", config, "--devices", "jetson_tx2,small.yaml", "--overwrite")
    assert small.code == 4
    assert "error: no subnet of the space is within what was measured of host" in small.err.splitlines()[-1]


def test_devices_that_cannot_hold_the_space_are_left_out_unless_they_are_named(cli, config, here):
    large = ("hardware.array=[32,48]",)
    result = cli("transfer", config, *large, "--subnets", "30")
    assert result.code == 0, result
    assert "warning: ultra96v2 is left out: " in result.err
    assert "ultra96v2" not in json.loads(Path("transfer.json").read_text())["devices"]
    named = cli("transfer", config, *large, "--devices", "jetson_tx2,ultra96v2", "--overwrite")
    assert named.code == 4
    assert named.err.splitlines()[-1].startswith("error: no accelerator fits ultra96v2; ")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--devices", "zcu102,tx2"], "--devices: unknown device 'tx2'"),
        (["--devices", "zcu102"], "a transfer is between devices, and there is only zcu102; give two by --devices"),
        ([*SOME, "--out", "matrix.pdf"], "--out must end in .png, not 'matrix.pdf'"),
        ([*SOME, "--out", "tiny.png"], "tiny.png: exists; give another --out, or --overwrite"),
        ([*SOME, "jetson_tx2:hardware.backend=dual"], "hardware.backend is about accelerators"),
    ],
)
def test_mistakes_are_one_line(refused, config, arguments, problem):
    Path("tiny.png").touch()
    assert problem in refused(2, "transfer", config, *arguments)


def test_a_damaged_journal_is_named(run, refused):
    journal = run / "search" / "trials.jsonl"
    row = json.loads(journal.read_text().splitlines()[0])
    journal.write_text(json.dumps(row | {"genotype": [99] * len(row["genotype"])}) + "\n")
    assert "trials.jsonl: trial 0 is of another space" in refused(3, "transfer", run, *SOME)
    shutil.rmtree(run / "search")
    assert "is not a run folder" in refused(2, "transfer", run / "train", *SOME)
