"""`quasar export` on a finished run: any subnet of the space, and the forms that are asked for."""

import json
import signal
import sys
from pathlib import Path

import pytest
import yaml

from quasar.export.bundle import load_bundle

TARGET = "latency-0.006ms"


def front(run):
    return json.loads((run / "search" / "front.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["max", "min"])
def test_a_subnet_beside_the_targets(cli, run, name):
    result = cli("export", run, "--subnet", name, "--format", "packed", "--json")
    assert result.code == 0
    (folder,) = result.document["bundles"]
    assert Path(folder).samefile(run / "export" / name)
    manifest = load_bundle(run / "export" / name).manifest
    measured = cli("evaluate", run, "--subnet", name, "--json").document
    assert (manifest.val_accuracy, manifest.subnet_digest) == (measured["accuracy"], measured["digest"])
    assert (manifest.test_accuracy, manifest.latency_ms, manifest.fps) == (None, None, None)
    assert "| Top-1 accuracy, test | not measured |" in (run / "export" / name / "README.md").read_text()
    # The hardware is that of the run, and its cost that of the model.
    accelerator, cycles = load_bundle(run / "export" / name).accelerator()
    assert accelerator.to_dict() == front(run)["targets"][0]["accelerator"]
    assert (
        cycles == cli("hw", "estimate", run / "export" / name, "--json").document["cycles"] == manifest.cost["cycles"]
    )


def test_the_subnet_of_a_target_is_the_bundle_of_the_target(cli, run):
    before = load_bundle(run / "export" / TARGET).manifest
    assert cli("export", run, "--subnet", TARGET, "--name", "again").code == 0
    again = load_bundle(run / "export" / "again").manifest
    for key in ("latency_ms", "cost", "val_accuracy", "test_accuracy", "subnet_digest", "codes", "weights"):
        assert getattr(again, key) == getattr(before, key), key


def test_a_subnet_of_a_file(cli, run, here):
    data = yaml.safe_load((run / "export" / TARGET / "subnet.yaml").read_text(encoding="utf-8"))
    data["blocks"] = data["blocks"][:1]
    (here / "shallow.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    result = cli("export", run, "--subnet", here / "shallow.yaml", "--format", "qdq", "--format", "packed")
    assert result.code == 0
    assert "forms:   qdq, packed" in result.out
    assert "validation " in result.out
    assert load_bundle(run / "export" / "shallow").config.subnet.depth == 1


def test_mistakes(refused, run, here):
    data = yaml.safe_load((run / "export" / TARGET / "subnet.yaml").read_text(encoding="utf-8"))
    (here / "odd.yaml").write_text(yaml.safe_dump(data | {"embed_dim": 24}), encoding="utf-8")
    before = sorted(path.name for path in (run / "export").iterdir())
    for message, *arguments in (
        (
            "odd.yaml: subnet is outside the space: embed_dim is 24, the space has [8, 16]",
            "--subnet",
            here / "odd.yaml",
        ),
        ("did you mean 'max'?", "--subnet", "mx"),
        ("--name is for the bundle of --subnet", "--name", "x"),
        ("'../x' cannot be the name of a bundle", "--subnet", "max", "--name", "../x"),
        ("'fps-250000' is the bundle of a target", "--subnet", "max", "--name", "fps-250000"),
        ("exists already; replace it with --overwrite", "--subnet", TARGET),
        ("unknown format 'qdqq': did you mean 'qdq'?", "--format", "packed,qdqq"),
        (f"{TARGET}: exists already", "--format", "packed"),
    ):
        assert message in refused(2, "export", run, *arguments)
    assert sorted(path.name for path in (run / "export").iterdir()) == before


def test_targets_with_the_forms_that_are_asked_for(cli, run):
    assert cli("export", run, "--format", "packed,qdq", "--overwrite").code == 0
    for name in (TARGET, "fps-250000"):
        assert load_bundle(run / "export" / name).manifest.formats.keys() == {"qdq", "packed"}
    assert cli("export", run, "--subnet", "min", "--format", "packed").code == 0
    verified = cli("verify", run, "--json").document
    assert verified["passed"]
    assert list(verified["bundles"]) == [TARGET, "fps-250000", "min"]
    reports = verified["bundles"].values()
    absent = [[check for check in report["checks"] if check["status"] == "not checked"] for report in reports]
    assert [len(own) for own in absent] == [report["not_checked"] for report in reports]
    assert 0 < len(absent[0]) == len(absent[1]) < len(absent[2])
    total = sum(len(report["checks"]) for report in reports)
    assert f"{sum(map(len, absent))} of {total} checks were not made" in cli("verify", run).out


def test_forms_that_cannot_be_written_are_told(cli, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "qonnx", None)
    result = cli("export", run, "--overwrite")
    assert result.code == 0
    assert "not written: qonnx; to have it: pip install 'quasar-nas[qonnx]'\n" in result.out
    assert "qonnx" not in load_bundle(run / "export" / TARGET).manifest.formats


def test_a_damaged_bundle_of_a_run_is_named(refused, run):
    (run / "export" / TARGET / "manifest.json").unlink()
    assert f"{TARGET}/manifest.json: is missing" in refused(3, "verify", run)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("command", ["a new bundle", "in place of another"])
def test_a_killed_export_leaves_no_bundle(start_stopping, cli, run, contents, how, command):
    arguments = ("--subnet", "max") if command == "a new bundle" else ("--overwrite",)
    before = contents(run)
    process = start_stopping("export", run, *arguments, where="os:fsync", count=5)
    process.end(how)
    left = {name: content for name, content in contents(run).items() if not name.startswith("export/.")}
    assert left == before
    assert how == signal.SIGKILL or contents(run) == before  # what can, tidies up
    assert cli("verify", run).code == 0
    assert cli("export", run, *arguments).code == 0
