"""`search.signal=kl`: what it adds to the files, the tables and the pictures, and what stays without it."""

import json
import shutil
from pathlib import Path

import pytest

SETTINGS = ("search.signal=kl", "search.top=2", "search.baselines=true", "search.batch_size=64")


@pytest.fixture
def by_kl(cli, run):
    assert cli("search", run, *SETTINGS, "--overwrite").code == 0
    return run


def divergences(front):
    """Of the targets that are met, with their alternatives, the front, and the uniform subnets."""
    met = [target for target in front["targets"] if target["status"] == "ok"]
    others = [other for target in met for other in target["alternatives"]]
    return [item.get("val_kl") for item in (*met, *others, *front["pareto"], *front["baselines"]["uniform"])]


def test_the_files_have_divergences_and_the_result_is_the_least(cli, by_kl):
    front = json.loads((by_kl / "search" / "front.json").read_text())
    trials = [json.loads(line) for line in (by_kl / "search" / "trials.jsonl").read_text().splitlines()]
    assert all(value > 0 for value in [*divergences(front), *(trial["val_kl"] for trial in trials)])
    for target in front["targets"]:
        feasible = [trial for trial in trials if trial["latency_ms"] <= target["latency_ms"]]
        complete = [trial["val_kl"] for trial in feasible if trial.get("complete", True)]
        assert target["val_kl"] == pytest.approx(min(complete), rel=0.05)  # trials may be by products of codes
    kls = [trial["val_kl"] for trial in front["pareto"]]
    assert kls == sorted(kls, reverse=True)
    again = cli("search", by_kl, *SETTINGS, "--resume", "--json")
    assert again.document == front


def test_the_table_the_page_and_the_picture_say_kl(cli, by_kl):
    shown = cli("search", by_kl, *SETTINGS, "--resume").out
    assert " KL " in shown
    assert "ranked by KL" in shown
    assert cli("report", by_kl).code == 0
    page = (by_kl / "report.html").read_text(encoding="utf-8")
    assert "Divergence against latency" in page
    assert "KL divergence from floats, nats" in page
    assert "validation accuracy, %" not in page
    # a complete bundle can be made of it
    assert cli("export", by_kl).code == 0


def test_without_it_nothing_speaks_of_divergences(cli, run):
    shown = cli("search", run, "search.baselines=true", "--resume").out
    assert cli("report", run).code == 0
    for text in (shown, *(Path(run, *file).read_text() for file in (("search", "front.json"), ("report.html",)))):
        assert "KL" not in text
        assert "val_kl" not in text


def test_searches_by_different_signals_are_not_compared(cli, by_kl, finished):
    other = Path(shutil.copytree(finished[0], "runs/other"))
    result = cli("compare", by_kl, other)
    assert result.code == 2
    assert "ranked subnets by different signals (runs/tiny: kl, runs/other: accuracy)" in result.err
    again = Path(shutil.copytree(by_kl, "runs/again"))
    assert cli("compare", by_kl, again).code == 0
