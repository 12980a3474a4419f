"""Whole runs: what they leave, that they can be repeated, and that no interruption costs more than an epoch."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from quasar.config import load_config
from quasar.export.bundle import load_bundle
from quasar.export.formats.registry import choose_formats
from quasar.export.manifest import CORE_FILES
from quasar.pipeline import open_splits
from quasar.run_folder import RunFolder
from quasar.search_stage import COST_KEYS
from supernet.evaluate import evaluate_integer
from supernet.subnet import Subnet

BUNDLES = ("latency-0.006ms", "fps-250000")
TARGET_KEYS = {
    "latency_ms",
    "fps",
    "status",
    "reason",
    "nearest_latency_ms",
    "val_accuracy_integer",
    "val_images_integer",
    "digest",
    "subnet",
    "accelerator",
    "val_accuracy",
    "test_accuracy",
    "cost",
    "alternatives",
}


def bundle_files(folder):
    """Those of every bundle, and those of each form."""
    forms = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["formats"]
    assert forms.keys() == {form.name for form in choose_formats()}
    return {"manifest.json", *CORE_FILES, *(file for files in forms.values() for file in files)}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_front(folder):
    return json.loads((folder / "search" / "front.json").read_text(encoding="utf-8"))


def same_front(folder, finished):
    return (folder / "search" / "front.json").read_bytes() == (finished[0] / "search" / "front.json").read_bytes()


class TestRunFolder:
    def test_holds_the_agreed_files_and_no_others(self, finished, contents):
        found = set(contents(finished[0]))
        events = {name for name in found if name.startswith("train/tensorboard/events.out.tfevents.")}
        assert len(events) == 1
        assert found - events == {
            "config.yaml",
            "env.json",
            "train/metrics.jsonl",
            "train/checkpoints/last.safetensors",
            "train/checkpoints/best.safetensors",
            "search/trials.jsonl",
            "search/front.json",
            "search/front.png",
            "timing.json",
            "evaluations.jsonl",
            "report.html",
            *(f"export/{name}/{file}" for name in BUNDLES for file in bundle_files(finished[0] / "export" / name)),
        }

    def test_configuration_is_resolved_and_loads(self, finished):
        folder = finished[0]
        settings = load_config(folder)
        assert settings.folder == folder
        assert settings.hardware.device == "zcu102"
        assert yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["search"]["parents"] == 10

    def test_metrics(self, finished):
        rows = lines(finished[0] / "train" / "metrics.jsonl")
        assert [row["epoch"] for row in rows] == [1, 2]
        assert [row["step"] for row in rows] == [8, 16]
        assert all(row["val"].keys() == {"max", "min", "random1", "random2", "random3", "random4"} for row in rows)

    def test_trials_are_the_evaluations_and_hold_the_front(self, finished):
        trials, front = lines(finished[0] / "search" / "trials.jsonl"), read_front(finished[0])
        assert [trial["index"] for trial in trials] == list(range(12))
        assert len({trial["digest"] for trial in trials}) == 12
        assert all(trial["images"] == 287 for trial in trials)
        by_digest = {trial.pop("digest"): trial for trial in trials}
        for point in front["pareto"]:
            recorded = by_digest[point.pop("digest")]
            assert recorded.items() >= point.items()

    def test_front(self, finished):
        front = read_front(finished[0])
        assert front.keys() >= {"device", "hypervolume", "targets", "pareto"}
        assert front["device"] == "zcu102"
        assert 0 < front["hypervolume"] < 1
        assert [(t["latency_ms"], t["fps"]) for t in front["targets"]] == [(0.006, None), (0.004, 250000.0)]
        latencies = [trial["latency_ms"] for trial in front["pareto"]]
        accuracies = [trial["val_accuracy"] for trial in front["pareto"]]
        assert latencies == sorted(latencies)
        assert accuracies == sorted(accuracies)
        for target in front["targets"]:
            assert target.keys() == TARGET_KEYS
            assert target["status"] == "ok"
            assert target["cost"].keys() == set(COST_KEYS)
            assert target["cost"]["latency_ms"] <= target["latency_ms"]
            assert target["cost"]["fps"] == pytest.approx(1000 / target["cost"]["latency_ms"])
            assert Subnet.from_dict(target["subnet"]).digest == target["digest"]
            # The best of all that were evaluated under this limit.
            trials = lines(finished[0] / "search" / "trials.jsonl")
            assert target["val_accuracy"] == max(
                trial["val_accuracy"] for trial in trials if trial["latency_ms"] <= target["latency_ms"]
            )

    def test_accuracy_in_integers_is_that_of_the_exported_network(self, finished):
        _, split = open_splits(RunFolder(finished[0]).config())
        for target, bundle in zip(read_front(finished[0])["targets"], BUNDLES, strict=True):
            network = load_bundle(finished[0] / "export" / bundle).integer_network()
            measured = evaluate_integer(network, split, limit=len(split))
            assert target["val_images_integer"] == measured.images == len(split)
            assert target["val_accuracy_integer"] == measured.accuracy

    def test_picture_of_the_front(self, finished):
        with Image.open(finished[0] / "search" / "front.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 1

    def test_bundles_are_the_subnets_of_the_front(self, finished):
        for name, target in zip(BUNDLES, read_front(finished[0])["targets"], strict=True):
            bundle = load_bundle(finished[0] / "export" / name)
            assert bundle.config.subnet.digest == bundle.manifest.subnet_digest == target["digest"]
            assert bundle.manifest.test_accuracy == target["test_accuracy"]
            cost = json.loads((bundle.folder / "cost.json").read_text(encoding="utf-8"))
            assert cost["cost"]["cycles"] == target["cost"]["cycles"]
            assert cost["accelerator"] == target["accelerator"]

    def test_json_is_one_document_and_the_front_is_in_it(self, finished):
        folder, result = finished
        assert result.document.items() >= read_front(folder).items()
        assert result.document["run"] == "runs/tiny"
        assert result.document["report"] == "runs/tiny/report.html"
        assert [Path(path).name for path in result.document["bundles"]] == list(BUNDLES)

    def test_progress_goes_to_stderr(self, finished):
        assert {line.partition(":")[0] for line in finished[1].err.splitlines()} == {"train", "search", "export"}


class TestRepeat:
    def test_same_front_in_another_process_and_place(self, cli, config, finished, contents):
        result = cli("run", config, "output_dir=elsewhere", "name=again")
        assert result.code == 0
        again = Path("elsewhere/again")
        assert same_front(again, finished)
        first, second = contents(finished[0]), contents(again)
        for name in first:
            if name.startswith(("train/checkpoints", "search")) or name.endswith((".onnx", "model.safetensors")):
                assert second[name] == first[name], name

    def test_stage_by_stage(self, cli, config, finished):
        result = cli("train", config, "--json")
        assert result.code == 0
        assert result.document["run"] == "runs/tiny"
        assert result.document["probes"].keys() == {"max", "min", "random1", "random2", "random3", "random4"}
        run = Path("runs/tiny")
        assert {path.name for path in run.iterdir()} == {"config.yaml", "env.json", "train", ".lock"}
        result = cli("search", run, "--json")
        assert result.document == read_front(run)
        assert same_front(run, finished)
        result = cli("export", run, "--json")
        assert [Path(path).name for path in result.document["bundles"]] == list(BUNDLES)
        assert cli("verify", run, "--json").document["passed"] is True
        result = cli("evaluate", run, "--subnet", BUNDLES[0], "--split", "test", "--json")
        assert result.document["accuracy"] == read_front(run)["targets"][0]["test_accuracy"]
        result = cli("report", run, "--json")
        assert result.document == {"report": "runs/tiny/report.html"}
        report = (run / "report.html").read_text(encoding="utf-8")
        assert read_front(run)["targets"][0]["digest"] in report

    def test_for_people(self, cli, config):
        """Without --json each command says what came out, and the command to try next."""
        said = {}
        for command, path in (("train", config), ("search", "runs/tiny"), ("export", "runs/tiny")):
            result = cli(command, path)
            assert result.code == 0
            said[command] = result.out
        assert "next: quasar search runs/tiny" in said["train"]
        assert "next: quasar export runs/tiny" in said["search"]
        assert "next: quasar verify runs/tiny" in said["export"]
        for command in ("search", "export"):
            assert "0.006 ms" in said[command]
            assert "250000 FPS" in said[command]
        assert "KiB" in said["export"]

    def test_another_seed_is_another_run(self, cli, config, finished):
        assert cli("run", config, "seed=1").code == 0
        assert not same_front(Path("runs/tiny"), finished)

    def test_overwrite_runs_anew(self, cli, config, run, finished):
        for path in ("search/trials.jsonl", "train/metrics.jsonl", "export/stale/x", "report.html"):
            (run / path).parent.mkdir(exist_ok=True)
            (run / path).write_text("spoilt", encoding="utf-8")
        assert cli("run", config, "--overwrite").code == 0
        assert same_front(run, finished)
        assert not (run / "export" / "stale").exists()


class TestResume:
    def test_of_a_finished_run_trains_and_evaluates_nothing(self, cli, config, run, finished, monkeypatch, contents):
        def never(*_, **__):
            raise AssertionError("done again")

        monkeypatch.setattr("supernet.step.Step.__call__", never)
        monkeypatch.setattr("quasar.search_stage.run_search", never)
        before = contents(run)
        assert cli("run", config, "--resume").code == 0
        after = contents(run)
        assert after.keys() == before.keys()
        for name in before:
            if name.startswith(("train", "search", "config.yaml")):
                assert after[name] == before[name], name

    def test_of_a_run_folder(self, cli, run, finished):
        """`quasar run` takes the folder itself, too, under any of its names."""
        shutil.rmtree(run / "search")
        assert cli("run", run, "--resume").code == 0
        assert same_front(run, finished)

    def test_inside_the_run_folder(self, cli, run, finished, monkeypatch):
        monkeypatch.chdir(run)
        shutil.rmtree("search")
        assert cli("run", ".", "--resume").code == 0
        assert same_front(Path(), finished)
        assert not Path("tiny").exists()

    def test_after_a_move(self, cli, run, finished):
        shutil.move("runs", "moved")
        moved = Path("moved/tiny")
        assert cli("search", moved, "--overwrite").code == 0
        assert same_front(moved, finished)
        assert cli("export", moved).code == 0
        assert cli("report", moved).code == 0
        result = cli("evaluate", moved, "--subnet", BUNDLES[1], "--json")
        assert result.document["accuracy"] == read_front(moved)["targets"][1]["val_accuracy"]
        assert cli("evaluate", moved / "export" / BUNDLES[1], "--json").document["digest"] == result.document["digest"]
        assert cli("verify", moved).code == 0
        assert cli("run", moved, "--resume").code == 0
        assert not Path("runs").exists()

    def test_without_the_configuration_file(self, cli, config, run, finished):
        config.unlink()
        assert cli("search", run, "--overwrite").code == 0
        assert same_front(run, finished)


class TestTestSet:
    """The test images are for the chosen subnets of a finished search, and for nothing before."""

    @pytest.fixture
    def events(self, monkeypatch):
        from quasar import search_stage
        from supernet.data import splits

        seen = []
        real_load, real_search = splits._load, search_stage.run_search

        def load(config, part):
            seen.append(part)
            return real_load(config, part)

        def search(**settings):
            seen.append("search starts")
            result = real_search(**settings)
            seen.append("search ends")
            return result

        monkeypatch.setattr(splits, "_load", load)
        monkeypatch.setattr(search_stage, "run_search", search)
        return seen

    def test_is_not_opened_before_the_search_has_ended(self, cli, config, events):
        assert cli("run", config).code == 0
        assert "test" not in events[: events.index("search ends")]
        assert events.count("test") == 2  # for the front and for the digest of the bundles

    def test_is_not_opened_by_training_and_evaluation_on_the_validation_split(self, cli, config, events):
        assert cli("train", config).code == 0
        assert cli("evaluate", "runs/tiny", "--subnet", "max").code == 0
        assert set(events) == {"train"}

    def test_is_not_opened_when_nothing_is_chosen(self, cli, run, events):
        assert cli("search", run, "search.targets=[{fps: 1.0e9}]", "--overwrite").code == 4
        assert "test" not in events


class TestInfeasible:
    def test_no_target_ends_before_any_work(self, cli, config, here):
        for command in ("run", "train"):
            result = cli(command, config, "search.targets=[{latency_ms: 1.0e-6}, {fps: 1.0e+8}]")
            assert result.code == 4
            assert result.out == ""
            assert "no subnet of the space meets 1e-06 ms: the fastest takes" in result.error
            assert "1e+08 FPS" in result.error
        assert not Path("runs").exists()

    def test_no_accelerator_fits(self, cli, config):
        result = cli("run", config, "hardware.array=[900, 900]")
        assert result.code == 4
        assert "no accelerator fits zcu102" in result.error
        assert not Path("runs").exists()

    def test_one_target_does_not_hold_up_the_rest(self, cli, config, finished):
        result = cli("run", config, "search.targets=[{latency_ms: 0.006}, {fps: 1.0e+8}]", "--json")
        assert result.code == 0
        assert "warning: no subnet of the space meets 1e+08 FPS" in result.err
        met, missed = result.document["targets"]
        assert met["status"] == "ok"
        assert missed.keys() == TARGET_KEYS
        assert missed["status"] == "infeasible"
        assert "no subnet of the space meets 1e+08 FPS" in missed["reason"]
        assert missed["nearest_latency_ms"] == result.document["fastest_latency_ms"] > missed["latency_ms"]
        assert missed["digest"] is missed["subnet"] is missed["cost"] is missed["test_accuracy"] is None
        assert [Path(path).name for path in result.document["bundles"]] == [BUNDLES[0]]
        assert cli("verify", "runs/tiny").code == 0
        assert "infeasible" in cli("export", "runs/tiny", "--overwrite").out
        assert "infeasible" in Path("runs/tiny/report.html").read_text(encoding="utf-8")

    def test_a_hopeless_search_does_not_cost_the_one_before(self, cli, run):
        before = read_front(run)
        result = cli("search", run, "search.targets=[{fps: 1.0e+8}]", "--overwrite")
        assert result.code == 4
        assert "no subnet of the space meets 1e+08 FPS" in result.error
        assert read_front(run) == before
        assert cli("verify", run).code == 0

    def test_a_first_search_writes_why(self, cli, config):
        assert cli("train", config).code == 0
        assert cli("search", "runs/tiny", "search.targets=[{fps: 1.0e+8}]").code == 4
        front = read_front(Path("runs/tiny"))
        assert [target["status"] for target in front["targets"]] == ["infeasible"]
        assert front["pareto"] == []
        assert cli("report", "runs/tiny").code == 0

    def test_target_that_no_evaluated_subnet_meets(self, cli, run, monkeypatch):
        """It can be met, but the budget was spent elsewhere: said so, with the nearest that was found."""
        front = read_front(run)
        fastest, slowest = front["fastest_latency_ms"], front["slowest_latency_ms"]
        targets = f"search.targets=[{{latency_ms: {slowest}}}, {{latency_ms: {fastest * 1.0001}}}]"

        class Slow:
            def __init__(self, problem):
                self.left = [problem.bounds.slowest]

            def ask(self, count):
                return np.stack(self.left[:count]) if self.left else np.zeros((0, 17), dtype=np.int64)

            def tell(self, trials):
                self.left = []

            def report(self):
                return {}

        import search.algorithm

        monkeypatch.setitem(search.algorithm.ALGORITHMS._entries, "slow", Slow)
        result = cli("search", run, targets, "search.algorithm=slow", "--overwrite", "--json")
        assert result.code == 0
        met, missed = result.document["targets"]
        assert met["status"] == "ok"
        assert "can be met, but none of the 1 evaluated subnets does" in missed["reason"]
        assert "search.evaluations" in missed["reason"]
        assert missed["nearest_latency_ms"] == result.document["slowest_latency_ms"]


class TestOtherData:
    def test_images_in_folders(self, cli, config, here):
        """Another data set through all stages: RGB files, two classes, two image sizes."""
        rng = np.random.default_rng(0)
        for part, count in (("train", 20), ("test", 5)):
            for label, name in enumerate(("dark", "light")):
                (here / "images" / part / name).mkdir(parents=True)
                for index in range(count):
                    pixels = rng.integers(100, size=(9, 12, 3)) + 120 * label
                    Image.fromarray(pixels.astype(np.uint8)).save(here / "images" / part / name / f"{index}.png")
        result = cli(
            "run", config, "--json",
            "data={name: folder, root: images, val_fraction: 0.25}",
            "space.num_classes=2", "space.in_chans=3", "space.image_size=[8, 12]", "space.num_heads=embed",
            "train.batch_size=10", "search.evaluations=4", "hardware={}", "search.targets=[{latency_ms: 1}]",
        )  # fmt: skip
        assert result.code == 0, result.err
        assert cli("verify", "runs/tiny").code == 0
        assert cli("evaluate", "runs/tiny", "--subnet", "min", "--split", "test", "--json").document["images"] == 10


def one_line(result):
    """The message of an interrupted process."""
    assert result.code == 130, result
    assert "Traceback" not in result.err
    assert result.out == ""
    return result.error


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("verilator") is None, reason="verilator is not installed")
class TestRtl:
    def test_an_exported_subnet_takes_the_cycles_that_the_search_promised(self, cli, finished):
        """All operations of an image, with the subnet's integers, on the RTL of the bundle's accelerator."""
        bundle = finished[0] / "export" / BUNDLES[0]
        target = read_front(finished[0])["targets"][0]
        result = cli("hw", "simulate", "--bundle", bundle, "--json")
        assert result.code == 0, result
        document = json.loads(result.out)
        assert document["accelerator"] == target["accelerator"]
        assert document["simulated_cycles"] == document["exported_cycles"] == target["cost"]["cycles"]
        layers = document["layers"].values()
        assert sum(layer["outputs"] for layer in layers) > 0
        assert not any(layer["mismatching_outputs"] for layer in layers)


class TestInterrupt:
    """Signals to real processes, and `--resume` after them."""

    def test_ctrl_c_while_training(self, start, cli, config):
        process = start("train", config, "train.epochs=100000", "train.eval_every=100000")
        run = Path("runs/tiny")
        process.wait_for(run / "train" / "checkpoints" / "last.safetensors")
        # Meanwhile nobody else gets in.
        for arguments in (["run", run, "--resume"], ["search", run], ["export", run], ["report", run]):
            result = cli(*arguments)
            assert result.code == 2
            assert f"is in use by process {process.pid}" in result.error
        assert "continue with --resume" in one_line(process.end(signal.SIGINT))
        assert not list(run.rglob("*.part"))
        result = cli("search", run)
        assert "of 100000 epochs; finish with `quasar train runs/tiny --resume`" in result.error

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("how", "where", "count"),
        [
            (signal.SIGINT, "supernet.step:Step.__call__", 12),
            (signal.SIGINT, "search.run:append_line", 10),
            (signal.SIGINT, "quasar.export_stage:write_bundle", 2),
            (signal.SIGINT, "quasar.report:write_report", 1),
            (signal.SIGKILL, "supernet.step:Step.__call__", 3),  # in the first epoch
            (signal.SIGKILL, "supernet.metrics:append_line", 2),  # after the second, before its line
            (signal.SIGKILL, "supernet.checkpoint:write_atomic", 3),  # between its line and its checkpoint
            (signal.SIGKILL, "search.run:append_line", 10),  # in the second generation
            (signal.SIGKILL, "search.cache:append_line", 5),  # measured, but not written down
            (signal.SIGKILL, "quasar.search_stage:write_front_picture", 1),  # after the search
            (signal.SIGKILL, "quasar.export_stage:write_bundle", 2),  # between two bundles
        ],
    )
    def test_run_goes_on_to_the_same_result(self, start_stopping, cli, config, finished, contents, where, count, how):
        process = start_stopping("run", config, where=where, count=count)
        result = process.end(how)
        if how == signal.SIGINT:
            assert "continue with --resume" in one_line(result)
        else:
            assert result.code == -signal.SIGKILL
        assert cli("run", config).code == 2
        assert cli("run", config, "--resume").code == 0
        run = Path("runs/tiny")
        assert same_front(run, finished)
        expected, found = contents(finished[0]), contents(run)
        assert {name for name in found if "tensorboard" not in name} == {
            name for name in expected if "tensorboard" not in name
        }
        for name in expected:
            if name.startswith(("train/checkpoints", "search")):
                assert found[name] == expected[name], name
        assert [row["epoch"] for row in lines(run / "train" / "metrics.jsonl")] == [1, 2]
        assert cli("verify", run).code == 0

    @pytest.mark.slow
    def test_kill_in_the_middle_of_a_line(self, cli, config, run, finished):
        trials = run / "search" / "trials.jsonl"
        trials.write_bytes(trials.read_bytes()[:-40])
        (run / "search" / "front.json").unlink()
        assert cli("run", config, "--resume").code == 0
        assert same_front(run, finished)
        assert trials.read_bytes() == (finished[0] / "search" / "trials.jsonl").read_bytes()

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("command", "where", "flags"),
        [
            ("search", "search.run:append_line", ["--overwrite"]),
            ("export", "quasar.export_stage:write_bundle", ["--overwrite"]),
            ("verify", "quasar.export.verify:resize_images", []),
            ("evaluate", "quasar.evaluation:evaluate", ["--subnet", "max"]),
            ("report", "quasar.report:render", []),
        ],
    )
    def test_ctrl_c_in_a_stage(self, start_stopping, cli, run, finished, contents, command, where, flags):
        before = contents(run)
        message = one_line(start_stopping(command, run, *flags, where=where).end(signal.SIGINT))
        assert ("--resume" in message) == (command == "search")
        if command == "search":
            assert cli("search", run, "--resume").code == 0
            assert same_front(run, finished)
        else:
            assert contents(run) == before
            assert cli(command, run, *flags).code == 0


LIMITED = """
import resource, sys
from quasar.cli import main

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
del sys.argv[1]
main()
"""


@pytest.mark.slow
class TestDiskFull:
    def test_while_a_checkpoint_is_written(self, start, start_stopping, cli, config, finished, contents):
        """A file may not grow beyond 40 KB, which checkpoints do: the system itself refuses the write."""
        start_stopping("run", config, where="supernet.step:Step.__call__", count=12).end(signal.SIGKILL)
        run = Path("runs/tiny")
        earlier = contents(run / "train" / "checkpoints")
        assert earlier.keys() == {"last.safetensors", "best.safetensors"}
        result = start(40_000, "run", config, "--resume", code=LIMITED).end()
        assert result.code == 1
        assert "safetensors: cannot be written: File too large" in result.error
        assert contents(run / "train" / "checkpoints") == earlier
        assert cli("run", config, "--resume").code == 0
        assert same_front(run, finished)
