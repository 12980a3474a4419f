"""`quasar search --profile`, `--top` and `search.baselines`, and `quasar compare`."""

import json
import shutil
from pathlib import Path

import optuna
import pytest

from hwmodel.errors import UsageError
from quasar.run_subnets import target_folder
from search.config import SearchConfig, Target


@pytest.fixture
def other(run):
    """A second finished run beside `run`."""
    return Path(shutil.copytree(run, "runs/other"))


def front_of(run):
    return json.loads((run / "search" / "front.json").read_text(encoding="utf-8"))


def test_profile_needs_no_run_and_leaves_nothing(cli, config, contents, here):
    before = contents(here)
    result = cli("search", config, "--profile", "--json", "search.targets=[{latency_ms: 1e-6}, {fps: 1}]")
    assert result.code == 0
    assert [target["status"] for target in result.document["targets"]] == ["infeasible", "ok"]
    assert result.document["figures"]["energy_mj"]["unit"] == "mJ"
    text = cli("search", config, "--profile", "search.limits.energy_mj=1.0e-9").out
    assert "search.limits.energy_mj" in text
    assert "DSP" in text
    assert contents(here) == before


def test_top_is_added_to_a_finished_search(cli, run):
    before = front_of(run)
    assert cli("search", run, "--resume", "--top", "3").code == 0
    after = front_of(run)
    assert after["pareto"] == before["pareto"]
    for target in after["targets"]:
        others = target["alternatives"]
        assert len(others) == 2
        assert target["digest"] not in {other["digest"] for other in others}
        accuracies = [target["val_accuracy"], *(other["val_accuracy"] for other in others)]
        assert accuracies == sorted(accuracies, reverse=True)
        assert all(other["cost"]["latency_ms"] <= target["latency_ms"] for other in others)
    assert cli("report", run).code == 0
    assert "The next best for each target" in (run / "report.html").read_text(encoding="utf-8")


def test_baselines_are_added_to_a_finished_search(cli, run):
    assert cli("search", run, "search.baselines=true", "--resume").code == 0
    baselines = front_of(run)["baselines"]
    assert baselines["random"]["evaluations"] == 12
    assert {subnet["bits"] for subnet in baselines["uniform"]} == {4, 8}
    whole = (run / "search" / "front.json").read_bytes()
    (run / "search" / "front.json").unlink()
    assert cli("search", run, "search.baselines=true", "--resume").code == 0
    assert (run / "search" / "front.json").read_bytes() == whole
    cli("report", run)
    assert "uniform 4-bit" in (run / "report.html").read_text(encoding="utf-8")


def test_limits_are_kept_or_named(cli, run):
    energy = cli("search", run, "--profile", "--json").document["figures"]["energy_mj"]
    limit = (energy["min"] + energy["quantiles"][1]) / 2
    assert cli("search", run, f"search.limits.energy_mj={limit}", "--overwrite").code == 0
    for target in front_of(run)["targets"]:
        assert target["status"] == "infeasible" or target["cost"]["energy_mj"] <= limit
    before = front_of(run)
    result = cli("search", run, "search.limits.energy_mj=1.0e-9", "--overwrite")
    assert result.code == 4
    assert "search.limits.energy_mj" in result.error
    assert front_of(run) == before


def test_compare_judges_all_runs_by_the_same_corner_and_targets(cli, run, other):
    assert (
        cli("search", other, "search.algorithm=random", "search.targets=[{latency_ms: 0.005}]", "--overwrite").code == 0
    )
    result = cli("compare", run, other, "--json")
    assert result.code == 0
    rows = result.document["runs"]
    assert [row["name"] for row in rows] == ["tiny", "other"]
    assert [row["algorithm"] for row in rows] == [SearchConfig(targets=(Target(fps=1),)).algorithm, "random"]
    assert rows[0]["best_accuracy"].keys() == rows[1]["best_accuracy"].keys()
    assert len(rows[0]["best_accuracy"]) == 3
    assert rows[0]["hypervolume"] == pytest.approx(front_of(run)["hypervolume"])
    assert Path("compare.png").read_bytes().startswith(b"\x89PNG")
    assert "compare.png: exists" in cli("compare", run, other).error
    assert "hypervolume" in cli("compare", run, other, "--out", "second.png").out


def test_compare_refuses_what_it_cannot_compare(cli, run, other, here):
    assert "at least two" in cli("compare", run).error
    assert "given twice" in cli("compare", run, run).error
    assert "not a run folder" in cli("compare", run, here).error
    (other / "search" / "front.json").unlink()
    assert "has no search result yet" in cli("compare", run, other).error
    assert not Path("compare.png").exists()


def test_races_are_replayed_and_measured_subnets_known_to_later_searches(cli, run):
    options = ("search.racing.images=100", "search.racing.margin=0.05", "search.batch_size=32")
    folder = run / "search"
    assert cli("search", run, *options, "search.evaluations=30", "--overwrite").code == 0
    whole = {name: (folder / name).read_bytes() for name in ("front.json", "trials.jsonl")}
    rows = [json.loads(line) for line in whole["trials.jsonl"].decode().splitlines()]
    assert any(not row.get("complete", True) for row in rows)
    front = front_of(run)
    # What lost a race and is among the best all the same was measured in full in the end.
    assert all("complete" not in trial for trial in front["pareto"])
    for target in front["targets"]:
        measured = cli("evaluate", run, "--subnet", target_folder(target), "--json").document
        assert measured["accuracy"] == target["val_accuracy"]
    known = (run / "evaluations.jsonl").read_bytes()
    (folder / "front.json").unlink()
    (folder / "trials.jsonl").write_bytes(whole["trials.jsonl"][:-700])
    assert cli("search", run, "--resume").code == 0
    assert {name: (folder / name).read_bytes() for name in whole} == whole
    assert cli("search", run, "--overwrite").code == 0
    assert {name: (folder / name).read_bytes() for name in whole} == whole
    assert (run / "evaluations.jsonl").read_bytes() == known
    assert cli("report", run).code == 0


def test_a_damaged_line_of_the_evaluations_is_named(cli, run):
    with (run / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"subnet": 1}\n')
    before = front_of(run)
    result = cli("search", run, "--overwrite")
    assert result.code == 3
    assert "evaluations.jsonl:" in result.error
    assert front_of(run) == before


def test_a_subnet_without_an_integer_form_has_no_integer_accuracy(cli, run, monkeypatch):
    def refuse(module, images):
        raise UsageError("an operator of this subnet has no integer form")

    monkeypatch.setattr("quasar.search_stage.find_ranges", refuse)
    result = cli("search", run, "--overwrite")
    assert result.code == 0
    assert "has no integer accuracy: an operator of this subnet has no integer form" in result.err
    for target in front_of(run)["targets"]:
        assert target["val_accuracy"] > 0
        assert target["val_accuracy_integer"] is target["val_images_integer"] is None


def test_impossible_racing_is_refused(cli, run):
    assert "error must lie in (0, 0.5)" in cli("search", run, "search.racing.error=0.7", "--overwrite").error
    assert cli("search", run, "search.racing=null", "--overwrite").code == 0


OPEN_HARDWARE = ("hardware.array=[4, 8]", "hardware.backend=null", "search.algorithm=evolution")


@pytest.mark.parametrize("mode", ["per_subnet", "shared"])
def test_accelerators_from_the_search_reach_bundles_and_reports(cli, run, other, mode):
    result = cli("search", run, f"hardware.accelerator={mode}", *OPEN_HARDWARE, "search.baselines=true", "--overwrite")
    assert result.code == 0, result.err
    front = front_of(run)
    met = [target for target in front["targets"] if target["status"] == "ok"]
    assert met
    assert len({json.dumps(target["accelerator"]) for target in met}) == 1 or mode == "per_subnet"
    whole = {name: (run / "search" / name).read_bytes() for name in ("front.json", "trials.jsonl", "random.jsonl")}
    (run / "search" / "front.json").unlink()
    assert cli("search", run, "--resume").code == 0
    assert {name: (run / "search" / name).read_bytes() for name in whole} == whole
    assert cli("export", run, "--overwrite").code == 0
    for target in met:
        bundled = json.loads((run / "export" / target_folder(target) / "cost.json").read_text(encoding="utf-8"))
        assert bundled["accelerator"] == target["accelerator"]
        assert bundled["cost"]["latency_ms"] == target["cost"]["latency_ms"] <= target["latency_ms"]
        assert bundled["cost"]["violations"] == []
    assert cli("report", run).code == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "cannot be recomputed" not in page
    assert "have changed since" not in page
    rows = cli("compare", run, other, "--json").document["runs"]
    limits = {f"{target['latency_ms']:.6g}": target["val_accuracy"] for target in met}
    assert limits.items() <= rows[0]["best_accuracy"].items()


def test_a_profile_with_accelerators_for_each_subnet(cli, config):
    options = ("search", config, "--profile", "hardware.accelerator=per_subnet", *OPEN_HARDWARE)
    document = cli(*options, "--json").document
    assert document["accelerators"]["shortlist"] < document["accelerators"]["grid"]
    assert cli(*options).code == 0
    assert "hardware.accelerator" in cli("search", config, "--profile", "hardware.accelerator=own").error


def test_a_configuration_without_the_key_has_a_fixed_accelerator(cli, run):
    file = run / "config.yaml"
    text = file.read_text(encoding="utf-8")
    assert "  accelerator: fixed\n" in text
    file.write_text(text.replace("  accelerator: fixed\n", ""), encoding="utf-8")
    before = front_of(run)
    assert cli("search", run, "--resume").code == 0
    assert front_of(run) == before


class TestStudy:
    """`search.study` keeps a copy of all measured subnets, which Optuna alone can read."""

    STUDY = "search.study.storage=sqlite:///studies.db"

    def trials(self, name="tiny"):
        study = optuna.load_study(study_name=name, storage="sqlite:///studies.db")
        return {trial.user_attrs["digest"]: tuple(trial.values) for trial in study.trials}

    def journal(self, run):
        rows = [json.loads(line) for line in (run / "search" / "trials.jsonl").read_text().splitlines()]
        return {row["digest"]: (row["val_accuracy"], row["latency_ms"]) for row in rows}

    def test_has_what_the_journal_has(self, run, cli):
        assert cli("search", run, "--resume", self.STUDY).code == 0
        assert self.trials() == self.journal(run)
        assert cli("search", run, "--overwrite", self.STUDY, "search.study.name=again").code == 0
        assert self.trials("again") == self.journal(run)

    def test_has_the_latencies_of_the_shared_accelerator(self, run, cli):
        settings = ("hardware.accelerator=shared", "hardware.array=null", "hardware.backend=dual")
        assert cli("search", run, "--overwrite", self.STUDY, *settings).code == 0
        assert self.trials() == self.journal(run)

    def test_of_other_hardware_is_refused_before_anything_is_lost(self, run, cli, contents):
        assert cli("search", run, "--resume", self.STUDY).code == 0
        before = contents(run)
        result = cli("search", run, "--overwrite", "hardware.array=[4, 8]", self.STUDY)
        assert result.code == 2
        assert "the study 'tiny' in sqlite:///studies.db belongs to another hardware" in result.error
        assert contents(run) == before
