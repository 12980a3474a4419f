import csv
import json
import os
import signal
from pathlib import Path

import pytest
import yaml

from quasar.scaling.apply import apply, load_strategy
from quasar.scaling.shapes import VitShape

FOLDER = Path("runs/tiny-scale")
PIT = {
    "image_size": 8,
    "patch_size": 2,
    "stride": 2,
    "in_chans": 1,
    "num_classes": 10,
    "widths": [8, 16],
    "depths": [1, 1],
    "heads": [1, 2],
}


@pytest.fixture
def config(write_study, here):
    """The file of the study, in the working directory."""
    return write_study()


@pytest.fixture(scope="module")
def finished_study(tmp_path_factory, cli, study_settings):
    """The folder of a finished study and what the command printed. Tests must not write there."""
    where, before = tmp_path_factory.mktemp("study"), Path.cwd()
    os.chdir(where)
    try:
        Path("study.yaml").write_text(yaml.safe_dump(study_settings), encoding="utf-8")
        result = cli("scale", "study.yaml")
    finally:
        os.chdir(before)
    assert result.code == 0, result.err
    return where / FOLDER, result


def trained(folder):
    return [json.loads(line) for line in (folder / "trainings.jsonl").read_text().splitlines()]


def test_a_study_from_a_file_to_a_strategy(finished_study):
    folder, result = finished_study
    document = json.loads((folder / "scale.json").read_text())
    with (folder / "candidates.csv").open() as file:
        candidates = list(csv.DictReader(file))
    assert (folder / "scale.png").read_bytes().startswith(b"\x89PNG")
    assert [budget["cost"] for budget in document["budgets"]] == [10e3, 40e3]
    assert len(candidates) == sum(budget["tried"] for budget in document["budgets"])
    for row in candidates:
        assert abs(float(row["macs"]) / float(row["budget"]) - 1) <= 0.3
    # of each budget the more accurate ones are fitted, and each was trained once, with the seed that no comparison had
    for budget in ("10000", "40000"):
        rows = [row for row in candidates if row["budget"] == budget]
        assert [row["fitted"] for row in rows] == ["1", "1", "0"][: len(rows)]
        accuracies = [float(row["val_accuracy"]) for row in rows]
        assert accuracies == sorted(accuracies, reverse=True)
    journal = trained(folder)
    assert len({(row["digest"], row["seed"]) for row in journal}) == len(journal)
    assert sum(row["seed"] == 0 for row in journal) == len(candidates)
    assert all((row["test"] is None) == (row["seed"] == 0) for row in journal)
    whats = [row["what"] for row in document["comparison"]]
    assert whats == ["baseline", "best", "strategy", "compound", "best", "strategy", "compound"]
    assert document["comparison"][0]["shape"] == document["config"]["scale"]["baseline"]
    assert "written: runs/tiny-scale/scale.json" in result.out
    assert "strategy found against compound scaling" in result.out
    for name in ("depth", "width", "resolution"):
        assert f"{document['exponents'][name]['value']:+.2f}" in result.out


def test_a_strategy_is_applied_elsewhere(finished_study, cli, here):
    folder, _ = finished_study
    document = json.loads((folder / "scale.json").read_text())
    found = load_strategy(folder)
    assert found.strategy.to_dict() | {"base": found.family.base.to_dict()} == document["strategy"]
    # at the budgets of the study it gives the shapes that were compared
    for row in document["comparison"]:
        if row["what"] == "strategy":
            assert apply(found, row["budget"])["shape"] == row["shape"]
    result = cli("scale", "--apply", folder, "--budget", 200e3, "--budget", 400e3, "--json")
    assert result.code == 0, result.err
    shapes = result.document["shapes"]
    assert [row["budget"] for row in shapes] == [200e3, 400e3]
    assert shapes[1]["cost"] > shapes[0]["cost"] > 100e3
    Path("pit.yaml").write_text(yaml.safe_dump(PIT))
    pit = cli("scale", "--apply", folder, "--budget", 300e3, "--pit", "pit.yaml")
    assert pit.code == 0, pit.err
    assert "PiT" in pit.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "--apply needs --budget"),
        (("--budget", "-1"), 2, "--budget must be positive"),
        (("--budget", "1e6", "--device", "zcu102"), 2, "the strategy is one of MACs"),
        (("--budget", "1e6", "--resume"), 2, "writes nothing"),
        (("--budget", "1e6", "--pit", "none.yaml"), 2, "none.yaml: no such shape file"),
    ],
)
def test_what_cannot_be_applied(finished_study, refused, arguments, code, message):
    assert message in refused(code, "scale", "--apply", finished_study[0], *arguments)


def test_files_that_hold_no_strategy(refused, here):
    assert "none.json: no such file" in refused(2, "scale", "--apply", "none.json", "--budget", 1)
    Path("other.json").write_text("{}")
    assert "other.json: is not the result of a study" in refused(3, "scale", "--apply", "other.json", "--budget", 1)


@pytest.mark.slow
def test_a_killed_study_goes_on_and_ends_the_same(finished_study, start_stopping, cli, config, contents):
    process = start_stopping("scale", config, where="quasar.scaling.study:train_alone", count=3)
    process.end(signal.SIGKILL)
    before = trained(FOLDER)
    assert len(before) == 2
    with (FOLDER / "trainings.jsonl").open("a") as file:
        file.write('{"digest": "ab')  # as a kill leaves it
    refused = cli("scale", config)
    assert refused.code == 2
    assert "runs/tiny-scale: holds a study already; continue it with --resume" in refused.error
    result = cli("scale", config, "--resume")
    assert result.code == 0, result.err
    assert trained(FOLDER)[:2] == before
    whole, first = contents(FOLDER), contents(finished_study[0])
    assert whole.keys() == first.keys()
    assert [name for name in whole if whole[name] != first[name]] == []


def test_other_settings_do_not_mix_with_a_study(finished_study, refused, cli, config, monkeypatch):
    import shutil

    shutil.copytree(finished_study[0], FOLDER)
    for override, key in (
        ("train.lr=0.001", "train.lr differs"),
        ("scale.best=1", "scale.best differs"),
        ("space.depth=[1,2]", "space.depth differs"),
    ):
        assert key in refused(2, "scale", config, override, "--resume")
    assert "exclude each other" in refused(2, "scale", config, "--resume", "--overwrite")
    rows = (FOLDER / "trainings.jsonl").read_text()
    (FOLDER / "trainings.jsonl").write_text(rows.replace('"settings": "', '"settings": "0'))
    assert "line 1 is of other settings or images" in refused(2, "scale", config, "--resume")
    (FOLDER / "trainings.jsonl").write_text("{}\n" + rows)
    assert "line 1 is damaged" in refused(3, "scale", config, "--resume")
    (FOLDER / "trainings.jsonl").write_text(rows)
    monkeypatch.setattr("quasar.scaling.study.train_alone", None)  # nothing is left to train
    assert cli("scale", config, "--resume", "data.workers=0").code == 0


def test_a_folder_of_something_else_is_left_alone(refused, config):
    FOLDER.mkdir(parents=True)
    (FOLDER / "mine.txt").write_text("x")
    assert "is not the folder of a study but holds files" in refused(2, "scale", config, "--overwrite")


def test_shapes_do_not_pool(refused, config):
    settings = ("space.depth=[2,3]", "scale.baseline.depth=2", "space.pooling=[[1]]")
    assert "space.pooling: the shapes of a study do not pool" in refused(2, "scale", config, *settings)


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ("scale=null", 2, "has no section 'scale'"),
        ("scale.budgets=[{macs: 1.0e+4}]", 2, "budgets: exponents need at least two budgets, not 1"),
        ("scale.budgets=[{macs: 1.0e+4}, {fps: 100}]", 2, "give all in macs"),
        ("scale.budgets=[{macs: 1.0e+4}, {macs: 1.0e+4}]", 2, "the same one is given twice"),
        ("scale.budgets=[{macs: 1.0e+4}, {macs: 9.0e+9}]", 4, "the nearest costs"),
        (
            "scale.budgets=[{macs: 1.0e+4}, {macs: 1.5e+4}]",
            2,
            "too close: a network may be within the tolerance of both",
        ),
        ("scale.baseline.mlp_ratio=0.001", 2, "scale.baseline: blocks[0]: mlp_ratio"),
        ("scale.budget=3", 2, "did you mean 'budgets'?"),
        ("scale.best=9", 2, "best (9) must not be more than candidates (3)"),
        ("scale.compound.depth=2", 2, "so that the cost doubles"),
        ("scale.baseline.num_heads=3", 2, "num_heads must be embed_dim / head_dim = 2"),
        ("scale.patch_size=[5]", 2, "scale.patch_size: 5 divides none of space.image_size"),
        ("scale.mode=both", 2, "scale: mode: Input should be 'standalone' or 'supernet'"),
        ("space.high_precision_ratio=[0.0, 1.0]", 2, "space.high_precision_ratio has 2 choices"),
        ("hardware.device=zcu103", 2, "hardware.device: unknown device 'zcu103'"),
        ("hardware.accelerator=shared", 2, "give fixed or per_subnet"),
        ("train.epochs=0", 2, "train.epochs is 0; give scale.epochs"),
        ("data.name=digit", 2, "data.name"),
        ("train.batch_size=5000", 2, "train.batch_size is 5000"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(refused, config, override, code, message):
    assert message in refused(code, "scale", config, override)


def test_options_that_need_apply(refused, config):
    assert "--budget belongs to --apply" in refused(2, "scale", config, "--budget", 3)
    assert "give a configuration file" in refused(2, "scale")


@pytest.mark.slow
def test_candidates_inherit_from_one_supernet(cli, config):
    given = ["scale.mode=supernet", "scale.candidates=2", "scale.best=1", "train.epochs=2"]
    result = cli("scale", config, *given, "--json")
    assert result.code == 0, result.err
    assert (FOLDER / "train" / "checkpoints" / "last.safetensors").exists()
    rows = trained(FOLDER)
    assert all(row["seed"] == 1 for row in rows)  # only what is compared is trained by itself
    shapes = [VitShape(**row["shape"]) for row in result.document["comparison"]]
    assert len(rows) == len(set(shapes))
    again = cli("scale", config, *given, "--resume", "--json")
    assert again.document == result.document
