import json
from pathlib import Path

import pytest

import quasar.ranking

ARGUMENTS = ("--subnets", 3, "--seeds", 2, "--epochs", 1)


def test_rank_reports_agreement_and_goes_on_where_it_was_killed(cli, run, monkeypatch):
    real, done = quasar.ranking.train_alone, []

    def train_alone(subnet, **options):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append((subnet.digest, options["seed"]))
        return real(subnet, **options)

    with monkeypatch.context() as patch:
        patch.setattr(quasar.ranking, "train_alone", train_alone)
        assert cli("rank", run, *ARGUMENTS).code == 130
    journal = Path(run, "rank.jsonl")
    assert journal.read_text().count("\n") == 4
    with journal.open("a") as file:
        file.write('{"digest": "ab')  # as a kill leaves it
    done.clear()
    result = cli("rank", run, *ARGUMENTS, "--json")
    assert result.code == 0, result.err
    document = json.loads(Path(run, "rank.json").read_text())
    assert result.document == document
    trained = [json.loads(line) for line in journal.read_text().splitlines()]
    keys = {(row["digest"], row["seed"]) for row in trained}
    digests = {subnet["digest"] for found in document["sets"].values() for subnet in found["subnets"]}
    assert len(keys) == len(trained) == 2 * len(digests)
    for found in document["sets"].values():
        for metric in ("accuracy", "loss"):
            assert found[metric].keys() == {"inherited", "latency", "seeds"}
            assert all(value is None or -1 <= value <= 1 for value in found[metric].values())
        for subnet in found["subnets"]:
            assert len(subnet["alone"]) == 2
    monkeypatch.setattr(quasar.ranking, "train_alone", None)  # nothing is left to train
    shown = cli("rank", run, *ARGUMENTS)
    assert shown.code == 0
    assert "over the whole range" in shown.out
    assert "at about equal latency" in shown.out


@pytest.mark.parametrize("option", ["--subnets", "--seeds", "--epochs"])
def test_numbers_out_of_range(cli, run, option):
    result = cli("rank", run, option, 0)
    assert (result.code, result.out) == (2, "")
    assert "--subnets must be at least 2" in result.error


def test_a_supernet_that_was_only_calibrated(cli, config):
    given = ["name=calibrated", "train.epochs=0", "train.warmup_epochs=5"]
    assert cli("train", config, *given).code == 0
    refused = cli("rank", "runs/calibrated", "--subnets", 2)
    assert refused.code == 2
    assert "give --epochs" in refused.error
    assert cli("rank", "runs/calibrated", "--subnets", 2, "--seeds", 1, "--epochs", 1).code == 0


def test_a_damaged_journal_is_named(cli, run):
    Path(run, "rank.jsonl").write_text('{"digest": 1}\n')
    result = cli("rank", run, *ARGUMENTS)
    assert result.code == 3
    assert "rank.jsonl: line 1 is damaged" in result.error
