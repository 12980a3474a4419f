"""`quasar resilience`: measurements are those of the real modules, choices greedy, and a stopped study goes on."""

import itertools
import json
import math
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import image

from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_hardware
from hwmodel.errors import DamagedInputError, UsageError
from hwmodel.explore import best_accelerator
from quasar.resilience.journal import Journal
from quasar.resilience.measure import Accuracy, Measurer, name_of
from quasar.resilience.moves import Step, all_single_moves, amount, next_moves, sequence, unit_levels
from quasar.resilience.study import front, spread
from supernet.data.config import DataConfig
from supernet.data.splits import open_train
from supernet.lowering import lower
from supernet.prune import low_precision, norm_importance, prune, whole
from supernet.standalone import extract

STUDY = ("--subnet", "max", "--images", "40", "--choose-images", "16", "--points", "2", "--paths", "3")


def right(*values):
    return Accuracy(right=np.array(values, dtype=np.bool_))


class TestAccuracy:
    def test_share_and_error_by_hand(self):
        accuracy = right(1, 1, 1, 0)
        assert accuracy.share == 0.75
        assert accuracy.error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))

    def test_loss_is_counted_image_by_image(self):
        # Of ten images two are lost and one is gained: (2 - 1) / 10, error sqrt(2 + 1 - 1 / 10) / 10.
        before, after = right(*[1] * 8, 0, 0), right(*[1] * 6, 0, 0, 1, 0)
        lost, error = after.less(before)
        assert lost == pytest.approx(0.1)
        assert error == pytest.approx(math.sqrt(2.9) / 10)
        assert before.less(before) == (0, 0)


class TestJournal:
    def test_results_come_back(self, tmp_path):
        path = tmp_path / "study" / "journal.jsonl"
        Journal(path, {"images": 3}).add("kl x", 0.5)
        again = Journal(path, {"images": 3})
        assert (again.get("kl x"), again.get("kl y"), len(again)) == (0.5, None, 1)

    def test_a_line_that_a_kill_cut_is_left_out(self, tmp_path):
        path = tmp_path / "journal.jsonl"
        journal = Journal(path, {})
        journal.add("a", 1)
        whole_file = path.read_text()
        for cut in range(len(whole_file)):
            path.write_text(whole_file[:cut])
            again = Journal(path, {})
            assert again.get("a") in (None, 1)
            again.add("a", 1)
            assert Journal(path, {}).get("a") == 1

    def test_other_settings_are_refused(self, tmp_path):
        path = tmp_path / "journal.jsonl"
        Journal(path, {"images": 3, "split": "val"})
        with pytest.raises(UsageError, match=r"was measured with images 3, not 4; .*--overwrite"):
            Journal(path, {"images": 4, "split": "val"})

    def test_damage_is_named(self, tmp_path):
        path = tmp_path / "journal.jsonl"
        Journal(path, {}).add("a", 1)
        path.write_text(path.read_text() + '{"kee": 1}\n')
        with pytest.raises(DamagedInputError, match="line 3 is damaged"):
            Journal(path, {})
        path.write_text('{"settings": 3}\n')
        with pytest.raises(DamagedInputError, match="line 1 is damaged"):
            Journal(path, {})


@pytest.fixture
def measurer(make_space, make_supernet, tmp_path):
    """A measurer of a network of three blocks on digits, at a board."""
    supernet = make_supernet(make_space(image_size=(8,), high_precision_ratio=(0.0, 1.0)))
    module = extract(supernet, supernet.space.largest())
    train, val = open_train(DataConfig(name="digits"), image_size=8, seed=0)
    device = load_hardware("zcu102")
    accelerator = best_accelerator(
        [lower(module.subnet)], device, clock_mhz=None, backend="dual", array=(8, 16), activations="onchip"
    )
    return Measurer(
        module,
        low_precision(supernet, module),
        norm_importance(module),
        model=FpgaCostModel(device, accelerator),
        choice=next(train.batches(20))[0],
        split=val,
        images=30,
        precision="float32",
        journal=Journal(tmp_path / "journal.jsonl", {}),
    )


class TestMeasurer:
    def test_divergence_is_that_of_the_whole_modules(self, measurer):
        images = torch.cat(measurer._pieces)
        with torch.no_grad():
            ours = measurer._module(images).log_softmax(dim=1)
        assert measurer.divergence(measurer.base) == 0
        versions = [move.of(measurer.base) for move in all_single_moves(measurer, {"blocks", "heads", "units", "rows"})]
        measurer.follow(versions[0])  # others begin with some of its blocks, or with none
        for version in versions[::3]:
            module = prune(measurer._module, measurer._low, version, measurer.importance)
            with torch.no_grad():
                theirs = module(images).log_softmax(dim=1)
            expected = (ours.exp() * (ours - theirs)).sum(dim=1).mean().item()
            assert measurer.divergence(version) == pytest.approx(expected, rel=1e-3, abs=1e-6), name_of(version)

    def test_accuracies_are_measured_once(self, measurer, monkeypatch):
        accuracy = measurer.accuracy(measurer.base)
        assert len(accuracy.right) == 30
        monkeypatch.setattr("quasar.resilience.measure.outputs", None)
        assert (measurer.accuracy(measurer.base).right == accuracy.right).all()

    def test_names_tell_versions_apart(self, measurer):
        versions = [move.of(measurer.base) for move in all_single_moves(measurer, {"blocks", "heads", "units", "rows"})]
        assert len({name_of(version) for version in versions}) == len(versions)


class TestMoves:
    def test_what_can_be_left_out_first(self, measurer):
        blocks = len(measurer.base)
        by_kind = {kind: next_moves(measurer, measurer.base, {kind}) for kind in ("blocks", "heads", "units", "rows")}
        assert [len(by_kind[kind]) for kind in by_kind] == [blocks, blocks, blocks, 4 * blocks]
        head = by_kind["heads"][0]
        assert int(head.part) == int(measurer.importance[0].heads.argmin())
        assert len(all_single_moves(measurer, {"heads"})) == 3 * blocks

    def test_something_of_each_block_stays(self, measurer):
        kept = measurer.base[:1]
        least = tuple(replace(one, heads=(0,), units=unit_levels(one.units)[-1]) for one in kept)
        assert next_moves(measurer, least, {"blocks", "heads", "units"}) == []

    def test_levels_of_units(self):
        assert unit_levels(32) == [24, 16, 8]
        assert unit_levels(1) == []
        assert unit_levels(2) == [1]

    @pytest.mark.parametrize("by", ["latency", "energy"])
    def test_blocks_go_in_the_greedy_order(self, measurer, by):
        steps = list(sequence(measurer, {"blocks"}, by=by, until=0.4, progress=lambda *_: None))
        assert len(steps) == 3
        version, kl = measurer.base, 0.0
        for step in steps[1:]:
            prices = {}
            for move in next_moves(measurer, version, {"blocks"}):
                saved = amount(measurer.cost(version), by) - amount(measurer.cost(move.of(version)), by)
                prices[move] = (measurer.divergence(move.of(version)) - kl) / saved
            assert step.move == min(prices, key=prices.get)
            version, kl = step.version, step.kl
            assert step.cost == pytest.approx(amount(measurer.cost(version), by))

    def test_a_sequence_of_all_saves_more_and_more(self, measurer):
        kinds = {"blocks", "heads", "units", "rows"}
        steps = list(sequence(measurer, kinds, by="energy", until=0.5, progress=lambda *_: None))
        costs = [step.cost for step in steps]
        assert all(after < before for before, after in itertools.pairwise(costs))
        assert costs[-1] <= 0.5 * costs[0] < costs[-2]
        assert steps[0].version == whole(measurer.subnet)


def test_points_are_spread_over_the_cost():
    costs = [10, 9.9, 9.8, 8, 7.9, 6, 5.2]
    steps = [Step(version=(), move=None, cost=cost, kl=0.0) for cost in costs]
    assert spread(steps, until=0.5, points=5) == [0, 3, 5, 6]
    assert spread(steps[:1], until=0.5, points=5) == [0]


def test_a_front_holds_what_nothing_beats():
    points = [
        SimpleNamespace(latency_ms=latency, accuracy=accuracy, lost=-accuracy)
        for latency, accuracy in ((1, 0.5), (2, 0.4), (2, 0.7), (3, 0.7), (4, 0.9), (None, 1.0))
    ]
    assert [(point.latency_ms, point.accuracy) for point in front(points, "latency_ms")] == [
        (1, 0.5),
        (2, 0.7),
        (4, 0.9),
    ]


class TestCommand:
    def test_a_run(self, cli, run):
        result = cli("resilience", run, *STUDY)
        assert result.code == 0, result
        for text in ("whole network", "block 1", "greedy sequence: together, energy", "for at most 1.4 points"):
            assert text in result.out
        folder = run / "resilience"
        document = json.loads((folder / "resilience.json").read_text())
        kinds = {single["kind"] for single in document["singles"]}
        assert kinds == {"blocks", "heads", "units", "rows"}
        assert list(document["sequences"]) == [
            "blocks",
            "heads",
            "units",
            "rows",
            "together, latency",
            "together, energy",
        ]
        for points in document["sequences"].values():
            assert points[0]["latency_share"] == 1
            assert points[0]["lost"] == 0
        assert 1 <= len(document["paths"]) <= 3
        assert document["paths_are"].startswith("on the front of the search")
        assert document["images"] == 40
        assert image.imread(folder / "resilience.png").shape[1] > 1000
        assert (folder / "measured.jsonl").exists()

    def test_the_same_again_measures_nothing(self, cli, run):
        first = cli("resilience", run, *STUDY, "--kinds", "blocks,rows", "--json").document
        journal = (run / "resilience" / "measured.jsonl").read_bytes()
        again = cli("resilience", run, *STUDY, "--kinds", "blocks,rows", "--json", "--resume").document
        assert again == first
        assert (run / "resilience" / "measured.jsonl").read_bytes() == journal

    @pytest.mark.slow
    def test_a_killed_study_goes_on(self, cli, run, here, start_stopping):
        expected = cli("resilience", run, *STUDY, "--kinds", "heads", "--out", "whole", "--json").document
        arguments = ("resilience", run, *STUDY, "--kinds", "heads", "--out", "killed", "--json")
        process = start_stopping(*arguments, where="quasar.resilience.journal:Journal.add", count=4)
        assert process.end(signal.SIGKILL).code != 0
        lines = (here / "killed" / "measured.jsonl").read_text().splitlines()
        assert len(lines) == 4  # the settings and three results
        document = cli(*arguments, "--resume").document
        assert document | {"picture": ""} == expected | {"picture": ""}

    @pytest.mark.slow
    def test_a_bundle(self, cli, run, here):
        bundle = next(path for path in sorted((run / "export").iterdir()) if path.is_dir())
        options = ("--images", "40", "--choose-images", "16", "--points", "1", "--kinds", "heads,rows")
        document = cli("resilience", bundle, *options, "--out", "study", "--json").document
        assert document["paths"] == []
        assert document["importance"] == "norm"
        measured = cli("evaluate", bundle, "--json").document["accuracy"]
        whole_split = cli("resilience", bundle, *options, "--images", "1000", "--out", "all", "--json").document
        assert whole_split["whole"]["accuracy"] == pytest.approx(measured)

    @pytest.mark.slow
    def test_a_processor_and_other_ranking(self, cli, run):
        shutil.rmtree(run / "search")
        options = (*STUDY, "--kinds", "units", "--importance", "norm", "--json")
        document = cli("resilience", run, *options, "--device", "v100").document
        assert document["device"] == "v100"
        assert document["whole"]["energy_mj"] == pytest.approx(300 * document["whole"]["latency_ms"])
        # Accuracies do not depend on the device, so nothing is measured again for another one.
        journal = (run / "resilience" / "measured.jsonl").read_bytes()
        board = cli("resilience", run, *options, "--device", "zcu104", "--resume").document
        assert board["device"] == "zcu104"
        assert (run / "resilience" / "measured.jsonl").read_bytes().startswith(journal)
        assert document["paths_are"].startswith("random subnets that the supernet was trained for")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--subnet", "max", "--kinds", "block"), "kind of part 'block'"),
            (("--subnet", "max", "--split", "train"), "--split must be val or test, not 'train'"),
            (("--subnet", "max", "--until", "1"), "--until must lie between 0 and 1"),
            (("--subnet", "max", "--drop", "-1"), "--drop must lie in [0, 100]"),
            (("--subnet", "max", "--importance", "taylor"), "--importance must be fisher or norm"),
            (("--subnet", "max", "--precision", "bf16"), "--precision must be auto, float32 or int8"),
            (("--subnet", "max", "--choose-images", "100000"), "--choose-images: there are"),
            (("--subnet", "max", "--device", "zcu1"), "zcu102"),
            (("--subnet", "big"), "subnet 'big'"),
            ((), "say which subnet with --subnet"),
            (("--subnet", "max", "--resume", "--overwrite"), "exclude each other"),
            (("--subnet", "max", "--out", "tiny.yaml"), "is a file"),
            (("--subnet", "max", "--out", "."), "holds other files"),
        ],
    )
    def test_a_mistake_is_one_line(self, refused, run, arguments, message):
        assert message in refused(2, "resilience", run, *arguments)

    def test_what_is_no_network(self, refused, run, here):
        assert "run `quasar train tiny.yaml` first" in refused(2, "resilience", "tiny.yaml", "--out", "x")
        (here / "empty").mkdir()
        assert "is neither a run folder" in refused(2, "resilience", "empty")
        bundle = next(path for path in sorted((run / "export").iterdir()) if path.is_dir())
        assert "with --out" in refused(2, "resilience", bundle)
        assert "needs the supernet" in refused(2, "resilience", bundle, "--out", "x", "--importance", "fisher")

    def test_an_earlier_study_is_not_touched_unasked(self, cli, run, refused):
        options = (*STUDY, "--kinds", "blocks", "--points", "1")
        assert cli("resilience", run, *options).code == 0
        assert "--resume" in refused(2, "resilience", run, *options)
        assert "images 40, not 50" in refused(2, "resilience", run, *options, "--images", "50", "--resume")
        wrong = ("--subnet", "mxa", *options[2:])
        assert options[0] == "--subnet"
        assert "unknown subnet 'mxa'" in refused(2, "resilience", run, *wrong, "--overwrite")
        assert len(list((run / "resilience").iterdir())) == 3
        assert cli("resilience", run, *options, "--images", "50", "--overwrite").code == 0
