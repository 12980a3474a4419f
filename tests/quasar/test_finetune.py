"""Further training of chosen subnets: its gain is that of the weights in its file, and nothing else changes."""

import json
import shutil
import signal

import pytest
import torch

from quasar.finetune_stage import finetuned
from quasar.pipeline import load_supernet, open_splits
from quasar.run_folder import RunFolder
from supernet.evaluate import evaluate
from supernet.standalone import extract
from supernet.subnet import Subnet


@pytest.fixture(scope="module")
def tuned(finished, cli, tmp_path_factory):
    """(run folder, document) of `quasar finetune`. Tests must not write there."""
    run = tmp_path_factory.mktemp("tuned") / "tiny"
    shutil.copytree(finished[0], run)
    result = cli("finetune", run, "finetune.epochs=2", "finetune.lr=0.002", "--json")
    assert result.code == 0, result.err
    return run, result.document


@pytest.fixture
def copy(tuned, here):
    shutil.copytree(tuned[0], here / "tiny")
    return here / "tiny"


def test_the_gain_is_that_of_the_weights_in_the_file(tuned):
    run, document = tuned
    folder = RunFolder(run)
    config = folder.config()
    torch.set_num_threads(1)
    supernet, checkpoint = load_supernet(folder, config)
    _, val_split = open_splits(config)
    targets = {target["digest"]: target for target in folder.read_front()["targets"]}
    assert {row["digest"] for row in document["subnets"]} == set(targets)
    assert any(row["kept"] for row in document["subnets"])
    for row in document["subnets"]:
        subnet = Subnet.from_dict(targets[row["digest"]]["subnet"], source="front")
        inherited = extract(supernet, subnet)
        batch_size = config.search.batch_size
        assert evaluate(inherited, val_split, batch_size=batch_size).accuracy == row["val_before"]
        assert row["val_before"] == targets[row["digest"]]["val_accuracy"]
        found = finetuned(folder, checkpoint, subnet)
        assert (found is not None) == row["kept"] == (row["test_accuracy"] is not None)
        if found is not None:
            module, _ = found
            assert evaluate(module, val_split, batch_size=batch_size).accuracy == row["val_after"] >= row["val_before"]
            assert not torch.equal(module.head.codes, inherited.head.codes)


def test_only_its_own_files_change(tuned, finished, contents):
    expected, found = contents(finished[0]), contents(tuned[0])
    assert {name: found[name] for name in expected} == expected
    assert {name.split("/")[0] for name in found.keys() - expected.keys()} == {"finetune"}


def test_what_is_done_is_not_done_again(copy, cli, tuned, monkeypatch):
    def never(*arguments, **settings):
        raise AssertionError("trained again")

    monkeypatch.setattr("quasar.finetune_stage.train_further", never)
    result = cli("finetune", copy, "finetune.epochs=2", "finetune.lr=0.002", "--json")
    assert result.document == tuned[1]
    with pytest.raises(AssertionError, match="trained again"):
        cli("finetune", copy, "finetune.epochs=1")


def test_a_killed_one_goes_on_to_the_same_result(tuned, finished, start_stopping, cli, here):
    run = here / "tiny"
    shutil.copytree(finished[0], run)
    settings = ("finetune.epochs=2", "finetune.lr=0.002")
    # The weights of a subnet are written, and what is known of them is not.
    process = start_stopping("finetune", run, *settings, where="quasar.finetune_stage:write_atomic", count=2)
    process.end(signal.SIGKILL)
    assert not (run / "finetune" / "finetune.json").exists()
    assert cli("finetune", run, *settings, "--json").document == tuned[1]
    for path in (tuned[0] / "finetune").iterdir():
        assert (run / "finetune" / path.name).read_bytes() == path.read_bytes()


def test_a_table_for_people(copy, cli):
    result = cli("finetune", copy, "finetune.epochs=2", "finetune.lr=0.002")
    assert result.code == 0
    assert "gain in points" in result.out
    assert "next: " in result.out


def test_a_run_does_it_where_its_configuration_says_so(cli, config, here):
    text = config.read_text() + "finetune:\n  epochs: 1\n"
    config.write_text(text)
    assert cli("run", config).code == 0
    rows = json.loads((here / "runs/tiny/finetune/finetune.json").read_text())["subnets"]
    assert rows
    assert all(row["settings"]["epochs"] == 1 for row in rows)
    assert all(row["settings"]["lr"] == pytest.approx(3e-4) for row in rows)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["finetune.epochs=0"], 2, "finetune: epochs must be at least 1, not 0"),
        (["finetune.lr=-1"], 2, "finetune: lr must be positive and finite or null, not -1"),
        (["finetune.steps=3"], 2, "finetune.steps"),
        (["search.population=3"], 2, "search.population is settled by now; only finetune.* can change"),
    ],
)
def test_bad_settings(copy, cli, arguments, code, message):
    result = cli("finetune", copy, *arguments)
    assert result.code == code
    assert message in result.error


def test_it_needs_a_search(copy, cli):
    shutil.rmtree(copy / "search")
    result = cli("finetune", copy)
    assert result.code == 2
    assert "has no search result yet" in result.error


@pytest.mark.parametrize("damage", ["record", "weights"])
def test_damage_is_named(copy, damage):
    folder = RunFolder(copy)
    _, checkpoint = load_supernet(folder, folder.config())
    rows = json.loads((copy / "finetune" / "finetune.json").read_text())["subnets"]
    digest = next(row["digest"] for row in rows if row["kept"])
    target = next(t for t in folder.read_front()["targets"] if t["digest"] == digest)
    path = copy / "finetune" / ("finetune.json" if damage == "record" else f"{digest}.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(Exception, match=path.name) as error:
        finetuned(folder, checkpoint, Subnet.from_dict(target["subnet"], source="front"))
    assert error.type.__name__ == "DamagedInputError"
