"""The commands and what they say to a mistake: an exit code, one line that names what to mend, nothing overwritten."""

import errno
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image
from safetensors import safe_open

BUNDLES = ("latency-0.006ms", "fps-250000")


def python(code, *arguments):
    """What Python prints to stdout, in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


class TestLight:
    """What needs no torch must not wait for it."""

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--help"],
            ["--version"],
            ["run", "--help"],
            ["hw", "devices"],
            ["hw", "estimate", "{bundle}"],
            ["hw", "estimate", "{bundle}/subnet.yaml", "--json"],
            ["hw", "explore", "{bundle}"],
            ["run", "nowhere.yaml"],
        ],
        ids=" ".join,
    )
    def test_does_not_import_torch(self, finished, arguments):
        bundle = finished[0] / "export" / BUNDLES[0]
        heavy = python(
            "import sys\nfrom quasar.cli import main\n"
            "try:\n    main()\nexcept SystemExit:\n    pass\n"
            "print('heavy:', [m for m in ('torch', 'torchvision', 'timm', 'onnx', 'sklearn') if m in sys.modules])",
            *(a.format(bundle=bundle) for a in arguments),
        ).splitlines()[-1]
        assert heavy == "heavy: []"

    @pytest.mark.parametrize("command", ["run", "train", "search", "export", "report", "evaluate", "verify"])
    def test_every_command_explains_itself(self, cli, command):
        result = cli(command, "--help")
        assert result.code == 0
        for option in ("--json", "--debug"):
            assert option in result.out

    def test_unknown_command_and_option(self, cli):
        assert cli("runn").code == 2
        assert cli("run", "x.yaml", "--nonsense").code == 2


class TestNames:
    @pytest.mark.parametrize("command", ["run", "train"])
    @pytest.mark.parametrize(
        ("override", "parts"),
        [
            ("hardware.device=zcu_102", ["hardware.device", "unknown device 'zcu_102'", "'zcu102'"]),
            ("hardware.device=board.yaml", ["hardware.device", "board.yaml"]),
            ("data.name=digit", ["data.name", "unknown data set 'digit'", "'digits'"]),
            ("search.algorithm=evolutoin", ["search.algorithm", "unknown algorithm 'evolutoin'", "'evolution'"]),
            ("space.operator=[atention]", ["space.operator", "unknown operator 'atention'", "'attention'"]),
            ("hardware.backend=daul", ["unknown backend 'daul'", "'dual'"]),
            ("hardware.activations=onchp", ["unknown activations 'onchp'", "'onchip'"]),
            ("hardware.clock_mhz=5000", ["clock_mhz 5000 exceeds"]),
        ],
    )
    def test_unknown(self, refused, config, command, override, parts):
        error = refused(2, command, config, override)
        assert all(part in error for part in parts), error
        assert not Path("runs").exists()

    def test_of_a_search(self, refused, run):
        assert "'zcu102'" in refused(2, "search", run, "hardware.device=zcu_102", "--overwrite")
        assert "'random'" in refused(2, "search", run, "search.algorithm=randm", "--overwrite")


class TestConfiguration:
    """`test_config.py` has the mistakes themselves."""

    def test_names_file_and_key(self, refused, config):
        error = refused(2, "run", config, "train.epoch=3")
        assert f"{config} with train.epoch=3: unknown key 'train.epoch'" in error

    def test_no_yaml(self, refused, config):
        config.write_text("a: [1", encoding="utf-8")
        assert str(config) in refused(3, "run", config)

    def test_missing(self, refused, here):
        assert "nowhere.yaml: no such configuration file" in refused(2, "train", here / "nowhere.yaml")

    def test_json_has_the_error_too(self, cli, config):
        result = cli("run", config, "seed=-1", "--json")
        assert result.code == 2
        assert result.document["exit_code"] == 2
        assert f"error: {result.document['error']}" == result.error

    def test_debug_shows_the_traceback(self, cli, config):
        result = cli("run", config, "seed=-1", "--debug")
        assert result.code == 2
        assert "Traceback (most recent call last)" in result.err
        assert result.err.splitlines()[-1].startswith("error: ")


def write_images(root, classes, count=6):
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(root / name / f"{index}.png")


class TestData:
    """Bad data is found before a folder is made, or an earlier run is cleared."""

    @pytest.fixture(params=["new", "overwrite"])
    def attempt(self, request, refused, config, finished, here):
        if request.param == "overwrite":
            shutil.copytree(finished[0], here / "runs" / "tiny")

        def run(code, *overrides):
            error = refused(code, "run", config, *overrides, *(["--overwrite"] * (request.param == "overwrite")))
            assert Path("runs").exists() == (request.param == "overwrite")
            return error

        return run

    @pytest.mark.parametrize("name", ["cifar10", "folder"])
    def test_no_root(self, attempt, name):
        assert f"data.root is missing: the data set '{name}'" in attempt(2, f"data.name={name}")

    @pytest.mark.parametrize("name", ["cifar10", "folder", "jpeg-npz"])
    def test_missing_root(self, attempt, name):
        assert "data.root: /nowhere does not exist" in attempt(2, f"data.name={name}", "data.root=/nowhere")

    def test_missing_batch(self, attempt, here):
        assert "data_batch_1 is missing" in attempt(2, "data.name=cifar10", f"data.root={here}")

    @pytest.mark.parametrize("content", [b"", b"\x80\x04garbage", pickle.dumps({b"data": 1}), pickle.dumps([np.sum])])
    def test_damaged_batch(self, attempt, here, content):
        (here / "data_batch_1").write_bytes(content)
        assert f"{here}/data_batch_1: not a CIFAR-10 batch" in attempt(3, "data.name=cifar10", f"data.root={here}")

    def test_root_is_a_file(self, attempt, config):
        assert "is a file" in attempt(2, "data.name=folder", f"data.root={config}")

    def test_folder_without_classes(self, attempt, here):
        (here / "empty").mkdir()
        assert f"{here}/empty" in attempt(2, "data.name=folder", f"data.root={here}/empty")

    def test_one_class(self, attempt, here):
        write_images(here / "images", ["cat"])
        error = attempt(2, "data.name=folder", f"data.root={here}/images")
        assert "has 1 class; a classifier needs two" in error

    def test_image_that_cannot_be_read(self, cli, config, here):
        write_images(here / "images", ["cat", "dog"])
        for path in (here / "images" / "cat").iterdir():
            path.write_bytes(b"no image")
        result = cli(
            "run", config, "data.name=folder", f"data.root={here}/images", "space.num_classes=2", "space.in_chans=3",
            "train.batch_size=4", "data.val_fraction=0.3",
        )  # fmt: skip
        assert result.code == 3
        assert f"{here}/images/cat" in result.error

    def test_classes_that_do_not_fit(self, attempt):
        assert "space.num_classes is 9, but the data set 'digits' has 10" in attempt(2, "space.num_classes=9")

    def test_channels_that_do_not_fit(self, attempt):
        assert "space.in_chans is 3, but the data set 'digits' has 1" in attempt(2, "space.in_chans=3")

    def test_batch_larger_than_the_training_split(self, attempt):
        assert "train.batch_size is 5000" in attempt(2, "train.batch_size=5000")

    def test_key_without_effect(self, attempt):
        assert "data.min_crop_scale has no effect" in attempt(2, "data.min_crop_scale=0.5")

    def test_weights_that_are_not_there(self, attempt):
        assert "supernet.init_from: unknown timm model 'vit_tyny'" in attempt(2, "supernet.init_from=vit_tyny")
        missing = ["train.distill.kind=kl", "train.distill.teacher=nope.safetensors"]
        assert "train.distill.teacher: nope.safetensors: no such" in attempt(2, *missing)

    def test_no_gpu(self, attempt, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert "compute=cpu" in attempt(2, "compute=cuda")


class TestRunFolder:
    """`test_run_folder.py` has the rules; here, that the commands follow them."""

    def test_existing(self, refused, config, run):
        assert "holds a run already" in refused(2, "run", config)
        assert "holds a run already" in refused(2, "train", config)
        assert "exclude each other" in refused(2, "run", config, "--resume", "--overwrite")
        assert "train.lr differs" in refused(2, "train", config, "train.lr=1", "--resume")

    def test_foreign(self, refused, config, here):
        (here / "runs" / "tiny" / "train").mkdir(parents=True)
        (here / "runs" / "tiny" / "train" / "thesis.tex").write_text("mine", encoding="utf-8")
        (here / "runs" / "tiny" / "config.yaml").write_text("mine: too", encoding="utf-8")
        assert "is not a run folder but holds files" in refused(2, "run", config, "--overwrite")

    def test_unwritable(self, refused, config):
        error = refused(1, "run", config, "output_dir=/proc/quasar")
        assert "/proc/quasar/tiny: cannot be used as a run folder" in error

    @pytest.mark.parametrize("command", ["search", "export", "report", "evaluate", "verify"])
    @pytest.mark.parametrize("path", ["nowhere", ".", "tiny.yaml", "runs"])
    def test_no_run_folder(self, refused, config, run, command, path):
        error = refused(2, command, path)
        assert path in error
        assert "run folder" in error
        assert "config.yaml" in error

    @pytest.mark.parametrize("command", ["search", "export", "evaluate", "verify"])
    def test_run_that_has_not_got_so_far(self, refused, cli, config, command):
        assert cli("train", config).code == 0
        shutil.rmtree("runs/tiny/train/checkpoints")
        error = refused(2, command, "runs/tiny", *(["--subnet", "max"] * (command == "evaluate")))
        assert {"search": "train first", "evaluate": "train first"}.get(command, "first") in error

    def test_training_that_has_not_finished(self, refused, run):
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        config["train"]["epochs"] = 9
        (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        error = refused(2, "search", run, "--overwrite")
        assert "has 2 of 9 epochs; finish with `quasar train" in error
        assert "has 2 of 9 epochs" in refused(2, "evaluate", run, "--subnet", "max")


class TestSearch:
    def test_searched_already(self, refused, run):
        assert "use --resume to continue or --overwrite" in refused(2, "search", run)
        assert "exclude each other" in refused(2, "search", run, "--resume", "--overwrite")
        error = refused(2, "search", run, "search.evaluations=13", "--resume")
        assert "search.evaluations differs" in error

    def test_what_the_supernet_depends_on(self, refused, run):
        for override in ("train.lr=1", "space.depth=[1]", "data.val_fraction=0.3", "seed=3", "output_dir=elsewhere"):
            error = refused(2, "search", run, override, "--overwrite")
            assert f"{override.partition('=')[0]} was settled" in error

    def test_overwrite_keeps_the_earlier_search_until_it_can_start(self, refused, run):
        assert "no accelerator fits" in refused(4, "search", run, "hardware.array=[900, 900]", "--overwrite")
        (run / "train" / "checkpoints" / "last.safetensors").write_bytes(b"damaged")
        assert "last.safetensors" in refused(3, "search", run, "--overwrite")

    def test_new_settings(self, cli, run):
        result = cli("search", run, "search.targets=[{fps: 200000}]", "search.evaluations=4", "--overwrite", "--json")
        assert result.code == 0
        assert [target["fps"] for target in result.document["targets"]] == [200000]
        assert json.loads((run / "search" / "front.json").read_text(encoding="utf-8")) == result.document
        assert len((run / "search" / "trials.jsonl").read_text(encoding="utf-8").splitlines()) == 4
        assert yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["search"]["evaluations"] == 4
        assert not (run / "export").exists()  # bundles of subnets that nobody chose any more
        assert not (run / "report.html").exists()

    @pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
    def test_what_has_been_evaluated_is_not_evaluated_again(self, cli, run, finished, monkeypatch, flag):
        def measure(*_, **__):
            raise AssertionError("evaluated")

        monkeypatch.setattr("search.measurer.outputs", measure)
        assert cli("search", run, flag).code == 0
        assert (run / "search" / "front.json").read_bytes() == (finished[0] / "search" / "front.json").read_bytes()


def foreign_checkpoints(whole: Path) -> dict[str, bytes]:
    content = whole.read_bytes()
    with safe_open(whole, "pt") as file:
        about = file.metadata()["quasar"]
    tensors = {"weight": torch.zeros(3)}
    newer = json.dumps(json.loads(about) | {"format": 99})
    return {
        "empty": b"",
        "header only": content[:100],
        "without its end": content[:-1],
        "half": content[: len(content) // 2],
        "a pickle": pickle.dumps({"state_dict": {}}),
        "of another program": safetensors.torch.save(tensors),
        "without weights": safetensors.torch.save(tensors, metadata={"quasar": about}),
        "of a newer version": safetensors.torch.save(tensors, metadata={"quasar": newer}),
        "bad metadata": safetensors.torch.save(tensors, metadata={"quasar": "{"}),
        "poor metadata": safetensors.torch.save(tensors, metadata={"quasar": '{"format": 1}'}),
    }


class TestDamagedCheckpoint:
    def test_is_refused_by_all_who_read_it(self, refused, config, run):
        checkpoint = run / "train" / "checkpoints" / "last.safetensors"
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
        for arguments in (
            ["search", run, "--overwrite"],
            ["export", run, "--overwrite"],
            ["run", config, "--resume"],
            ["train", config, "--resume"],
        ):
            assert "train/checkpoints/last.safetensors: is not a whole" in refused(3, *arguments)

    def test_of_any_kind(self, refused, run):
        checkpoint = run / "train" / "checkpoints" / "last.safetensors"
        for kind, content in foreign_checkpoints(checkpoint).items():
            checkpoint.write_bytes(content)
            error = refused(3, "evaluate", run, "--subnet", "max")
            assert "train/checkpoints/last.safetensors" in error, kind

    def test_of_another_seed_is_not_resumed(self, refused, cli, config, run, here):
        assert cli("train", config, "seed=1", "name=other").code == 0
        shutil.copy("runs/other/train/checkpoints/last.safetensors", run / "train" / "checkpoints")
        assert "cannot resume: seed is 0, the checkpoint was trained with 1" in refused(2, "run", config, "--resume")

    def test_of_another_space(self, refused, cli, config, run):
        assert cli("train", config, "space.depth=[1]", "name=other").code == 0
        shutil.copy("runs/other/train/checkpoints/last.safetensors", run / "train" / "checkpoints")
        for arguments in (["search", run, "--overwrite"], ["evaluate", run, "--subnet", "max"]):
            assert "another space" in refused(2, *arguments)


def spoilt_fronts(front: dict) -> dict[str, str]:
    def spoilt(change):
        document = json.loads(json.dumps(front))
        change(document, document["targets"][0])
        return json.dumps(document)

    return {
        "empty": "",
        "half": json.dumps(front)[:400],
        "a list": "[]",
        "without targets": "{}",
        "empty targets": '{"targets": [{}]}',
        "no device": spoilt(lambda d, t: d.pop("device")),
        "no pareto": spoilt(lambda d, t: d.pop("pareto")),
        "no status": spoilt(lambda d, t: t.pop("status")),
        "no subnet": spoilt(lambda d, t: t.update(subnet=None)),
        "bad subnet": spoilt(lambda d, t: t["subnet"].update(embed_dim="wide")),
        "no blocks": spoilt(lambda d, t: t["subnet"].update(blocks=[])),
        "bad accelerator": spoilt(lambda d, t: t["accelerator"].update(backend="?")),
        "no cost": spoilt(lambda d, t: t.update(cost=None)),
        "bad limit": spoilt(lambda d, t: t.update(latency_ms="fast")),
        "bad accuracy": spoilt(lambda d, t: t.update(val_accuracy="high")),
    }


class TestDamagedResults:
    def test_front(self, refused, config, run):
        front = run / "search" / "front.json"
        for kind, text in spoilt_fronts(json.loads(front.read_text(encoding="utf-8"))).items():
            front.write_text(text, encoding="utf-8")
            for arguments in (["report", run], ["evaluate", run, "--subnet", BUNDLES[0]], ["verify", run]):
                assert "search/front.json" in refused(3, *arguments), (kind, arguments)
        for arguments in (["export", run, "--overwrite"], ["run", config, "--resume"]):
            assert "search/front.json" in refused(3, *arguments)

    def test_front_without_an_accelerator(self, refused, run):
        front = run / "search" / "front.json"
        document = json.loads(front.read_text(encoding="utf-8"))
        document["targets"][0]["accelerator"] = None
        front.write_text(json.dumps(document), encoding="utf-8")
        assert "search/front.json" in refused(3, "export", run, "--overwrite")

    def test_front_of_another_space(self, refused, run):
        front = run / "search" / "front.json"
        document = json.loads(front.read_text(encoding="utf-8"))
        document["targets"][0]["subnet"]["embed_dim"] = 24
        front.write_text(json.dumps(document), encoding="utf-8")
        assert "embed_dim is 24, the space has [8, 16]" in refused(2, "export", run, "--overwrite")

    @pytest.mark.parametrize("line", [b"{}", b"[]", b"hello", b"\xff\xfe", b'{"digest": "x", "val_accuracy": "high"}'])
    def test_trials(self, refused, config, run, line):
        trials, front = run / "search" / "trials.jsonl", run / "search" / "front.json"
        lines = trials.read_bytes().splitlines()
        trials.write_bytes(b"\n".join([lines[0], line, *lines[2:]]) + b"\n")
        assert "search/trials.jsonl" in refused(3, "report", run)
        front.unlink()
        assert "search/trials.jsonl" in refused(3, "run", config, "--resume")

    def test_metrics(self, refused, run):
        (run / "train" / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
        assert "train/metrics.jsonl" in refused(3, "report", run)

    @pytest.mark.parametrize("how", ["truncated", "changed", "gone"])
    def test_bundle(self, refused, run, how):
        """Every file counts, and the message names it."""
        bundle = run / "export" / BUNDLES[1]
        for path in sorted(path for path in bundle.rglob("*") if path.is_file()):
            content = path.read_bytes()
            if how == "gone":
                path.unlink()
            else:
                middle = len(content) // 2
                changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
                path.write_bytes(content[:-1] if how == "truncated" else changed)
            if how == "gone" and path.name == "manifest.json":
                assert "nor a bundle (no manifest.json)" in refused(2, "evaluate", bundle)
            else:
                assert str(path.relative_to(run)) in refused(3, "evaluate", bundle)
            path.write_bytes(content)

    def test_bundle_of_a_run(self, refused, run):
        weights = run / "export" / BUNDLES[0] / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
        assert f"export/{BUNDLES[0]}/model.safetensors" in refused(3, "verify", run)

    def test_bundles_that_are_not_there(self, cli, refused, run):
        shutil.rmtree(run / "export" / BUNDLES[1])
        assert list(cli("verify", run, "--json").document["bundles"]) == [BUNDLES[0]]
        shutil.rmtree(run / "export")
        assert "run `quasar export" in refused(2, "verify", run)


class TestEvaluate:
    @pytest.mark.parametrize("split", ["val", "test"])
    @pytest.mark.parametrize("subnet", ["max", "min", *BUNDLES])
    def test_subnet_of_a_run(self, cli, finished, split, subnet):
        result = cli("evaluate", finished[0], "--subnet", subnet, "--split", split, "--json")
        assert result.code == 0
        assert result.document.keys() == {"subnet", "digest", "split", "accuracy", "loss", "images"}
        assert result.document["images"] == {"val": 287, "test": 359}[split]
        front = json.loads((finished[0] / "search" / "front.json").read_text(encoding="utf-8"))
        recorded = {t["digest"]: t[f"{split}_accuracy"] for t in front["targets"]}
        if subnet in BUNDLES:
            assert result.document["accuracy"] == recorded[result.document["digest"]]

    @pytest.mark.parametrize("split", ["val", "test"])
    @pytest.mark.parametrize("name", BUNDLES)
    def test_file_and_bundle_are_the_subnet_of_the_run(self, cli, finished, split, name):
        bundle = finished[0] / "export" / name
        of_run = cli("evaluate", finished[0], "--subnet", name, "--split", split, "--json").document
        of_file = cli("evaluate", finished[0], "--subnet", bundle / "subnet.yaml", "--split", split, "--json").document
        of_bundle = cli("evaluate", bundle, "--split", split, "--json").document
        assert of_file == of_run | {"subnet": str(bundle / "subnet.yaml")}
        assert of_bundle == of_run | {"subnet": name}

    def test_for_people(self, cli, finished):
        result = cli("evaluate", finished[0], "--subnet", "max")
        assert result.code == 0
        assert "top-1" in result.out
        assert "287 val images" in result.out

    def test_mistakes(self, refused, run, here):
        assert "say which subnet with --subnet (max, min, " in refused(2, "evaluate", run)
        assert "did you mean 'max'?" in refused(2, "evaluate", run, "--subnet", "mx")
        assert f"did you mean '{BUNDLES[0]}'?" in refused(2, "evaluate", run, "--subnet", "latency-6ms")
        assert "nowhere.yaml: no such subnet file" in refused(2, "evaluate", run, "--subnet", "nowhere.yaml")
        assert "--split must be val or test" in refused(2, "evaluate", run, "--subnet", "max", "--split", "train")
        assert "--subnet is for run folders" in refused(2, "evaluate", run / "export" / BUNDLES[0], "--subnet", "max")

    def test_subnet_file_that_does_not_fit(self, refused, run, here):
        data = yaml.safe_load((run / "export" / BUNDLES[0] / "subnet.yaml").read_text(encoding="utf-8"))
        file = here / "subnet.yaml"
        file.write_text(yaml.safe_dump(data | {"embed_dim": 24}), encoding="utf-8")
        assert "embed_dim is 24, the space has [8, 16]" in refused(2, "evaluate", run, "--subnet", file)
        for damage in ({"embed_dim": -1}, {"embed_dim": "wide"}, {"embed_dims": 8}, {"blocks": []}, {"patch_size": 3}):
            file.write_text(yaml.safe_dump(data | damage), encoding="utf-8")
            assert str(file) in refused(3, "evaluate", run, "--subnet", file)
        file.write_text("a: [", encoding="utf-8")
        assert str(file) in refused(3, "evaluate", run, "--subnet", file)


class TestVerify:
    def test_run_and_bundle_agree(self, cli, finished):
        of_run = cli("verify", finished[0], "--json").document
        assert of_run["passed"] is True
        assert of_run["bundles"].keys() == set(BUNDLES)
        of_bundle = cli("verify", finished[0] / "export" / BUNDLES[0], "--json").document
        assert of_bundle["bundles"] == {BUNDLES[0]: of_run["bundles"][BUNDLES[0]]}

    def test_is_the_accuracy_of_the_search(self, cli, finished):
        front = json.loads((finished[0] / "search" / "front.json").read_text(encoding="utf-8"))
        reports = cli("verify", finished[0], "--json").document["bundles"]
        for name, target in zip(BUNDLES, front["targets"], strict=True):
            assert reports[name]["torch_accuracy"] == reports[name]["recorded_accuracy"] == target["test_accuracy"]

    def test_for_people(self, cli, finished):
        result = cli("verify", finished[0])
        assert result.code == 0
        for name, report in cli("verify", finished[0], "--json").document["bundles"].items():
            assert f"{name}\n" in result.out
            for check in report["checks"]:
                pattern = rf"^  {re.escape(check['name'])} +{check['status']}  +{re.escape(check['detail'])}$"
                assert re.search(pattern, result.out, flags=re.MULTILINE), check

    def test_difference_beyond_the_tolerance(self, cli, finished, monkeypatch):
        class Session:
            def run(self, _, inputs):
                return [np.eye(10)[np.zeros(len(inputs["images"]), dtype=int)]]

        monkeypatch.setattr("quasar.export.formats.qdq.open_session", lambda _: Session())
        result = cli("verify", finished[0])
        assert result.code == 1
        assert result.out.count("FAILED") == 2
        assert f"checks failed: {BUNDLES[0]}: QDQ top-1, {BUNDLES[1]}: QDQ top-1" in result.error


class TestHardware:
    def test_devices(self, cli):
        result = cli("hw", "devices", "--json")
        assert result.code == 0
        assert result.document["zcu102"]["dsp"] == 2520
        assert "zcu102" in cli("hw", "devices").out

    def test_estimate_of_a_bundle_is_the_cost_of_the_run(self, cli, finished):
        target = json.loads((finished[0] / "search" / "front.json").read_text(encoding="utf-8"))["targets"][0]
        document = cli("hw", "estimate", finished[0] / "export" / BUNDLES[0], "--json").document
        assert document["accelerator"] == target["accelerator"]
        assert {key: document[key] for key in target["cost"]} == target["cost"]
        assert document["device"] == "zcu102"
        assert document["cycles"] == sum(layer["cycles"] for layer in document["layers"])

    def test_an_option_frees_the_choice_of_the_accelerator(self, cli, finished):
        bundle = finished[0] / "export" / BUNDLES[0]
        chosen = cli("hw", "estimate", bundle, "--device", "zcu102", "--json").document
        assert chosen == cli("hw", "estimate", bundle / "subnet.yaml", "--json").document
        assert chosen["latency_ms"] <= cli("hw", "estimate", bundle, "--json").document["latency_ms"]

    def test_estimate_of_a_timm_model(self, cli):
        whole = cli("hw", "estimate", "deit_tiny_patch16_224", "--json")
        low = cli("hw", "estimate", "deit_tiny_patch16_224", "--ratio", "0", "--json")
        assert whole.code == low.code == 0
        assert low.document["cycles"] < whole.document["cycles"]
        assert 100 < whole.document["fps"] < 10000

    def test_estimate_for_people(self, cli, finished):
        result = cli("hw", "estimate", finished[0] / "export" / BUNDLES[0], "--array", "4x8", "--backend", "dual")
        assert result.code == 0
        assert "array 4x8 dual" in result.out

    def test_explore(self, cli, finished):
        bundle = finished[0] / "export" / BUNDLES[0]
        result = cli("hw", "explore", bundle, "--top", "3", "--json")
        assert result.code == 0
        designs = result.document["designs"]
        latencies = [design["latency_ms"] for design in designs]
        assert len(designs) == 3
        assert latencies == sorted(latencies)
        best = cli("hw", "estimate", bundle / "subnet.yaml", "--json").document
        assert (best["accelerator"], best["latency_ms"]) == (designs[0]["accelerator"], latencies[0])
        assert len(cli("hw", "explore", bundle, "--top", "3").out.splitlines()) == 5

    @pytest.mark.parametrize("command", ["estimate", "explore"])
    @pytest.mark.parametrize(
        ("arguments", "code", "part"),
        [
            (["deit_tiny_patch16_22"], 2, "'deit_tiny_patch16_224'"),
            (["resnet18"], 2, "not a plain Vision Transformer"),
            (["nowhere.yaml"], 2, "nowhere.yaml: no such subnet file"),
            (["{config}"], 3, "unknown key"),
            (["{subnet}", "--device", "zcu_102"], 2, "'zcu102'"),
            (["{subnet}", "--device", "nowhere.yaml"], 2, "nowhere.yaml"),
            (["{subnet}", "--array", "32"], 2, "must look like 32x32"),
            (["{subnet}", "--array", "0x4"], 2, "must look like 32x32"),
            (["{subnet}", "--array", "9999x1"], 2, "array_rows"),
            (["{subnet}", "--array", "4096x4096"], 4, "no accelerator fits zcu102"),
            (["{subnet}", "--backend", "daul"], 2, "'dual'"),
            (["{subnet}", "--activations", "onchp"], 2, "'onchip'"),
            (["{subnet}", "--clock-mhz", "0"], 2, "clock_mhz"),
            (["{subnet}", "--clock-mhz", "nan"], 2, "clock_mhz"),
            (["{subnet}", "--clock-mhz", "9999"], 2, "exceeds"),
            (["deit_tiny_patch16_224", "--ratio", "1.5"], 2, "--ratio must lie in [0, 1]"),
        ],
    )
    def test_mistakes(self, refused, config, finished, command, arguments, code, part):
        subnet = finished[0] / "export" / BUNDLES[0] / "subnet.yaml"
        error = refused(code, "hw", command, *(a.format(config=config, subnet=subnet) for a in arguments))
        assert part in error


class TestSystem:
    """What the machine refuses ends with exit code 1 and one line, and is no reason to lose what was there."""

    def test_disk_full_in_a_checkpoint(self, cli, config, monkeypatch, contents):
        assert cli("train", config, "train.eval_every=2").code == 0  # the same first epoch
        whole = contents(Path("runs/tiny"))
        shutil.rmtree("runs")
        real, calls = os.fsync, []

        def fsync(descriptor):
            calls.append(descriptor)
            if len(calls) == fail_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        # environment, configuration, the first checkpoint, empty metrics, that of epoch 1; then that of epoch 2 twice
        fail_at = 6
        result = cli("train", config, "train.eval_every=2")
        assert result.code == 1
        assert "checkpoints/best.safetensors: cannot be written: No space left on device" in result.error
        earlier = contents(Path("runs/tiny/train/checkpoints"))
        assert earlier.keys() == {"last.safetensors"}
        fail_at = 0
        assert cli("train", config, "train.eval_every=2", "--resume").code == 0
        again = contents(Path("runs/tiny"))
        for name in ("last.safetensors", "best.safetensors"):
            assert again[f"train/checkpoints/{name}"] == whole[f"train/checkpoints/{name}"]

    @pytest.mark.parametrize(("log", "command"), [("search/trials.jsonl", "search"), ("train/metrics.jsonl", "train")])
    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_disk_full_in_a_log(self, cli, config, run, log, command, monkeypatch):
        if command == "train":
            shutil.rmtree(run / "train")
        else:
            shutil.rmtree(run / "search")
        real = os.open
        monkeypatch.setattr(
            os,
            "open",
            lambda path, flags, *mode, **options: real(
                "/dev/full" if flags & os.O_APPEND and Path(path).name == Path(log).name else path,
                flags,
                *mode,
                **options,
            ),
        )
        result = cli(command, run, "--resume") if command == "search" else cli("train", config, "--resume")
        assert result.code == 1
        assert f"{log}: cannot be written: No space left on device" in result.error

    def test_disk_full_in_an_export(self, cli, run, monkeypatch, contents):
        before = contents(run)

        def fsync(_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fsync)
        result = cli("export", run, "--overwrite")
        assert result.code == 1
        assert "No space left on device" in result.error
        assert contents(run) == before

    @pytest.mark.parametrize("flags", ["", "--json"])
    @pytest.mark.parametrize(("to", "message"), [("| true", ""), ("> /dev/full", "error: the system: No space left")])
    def test_output_that_nobody_takes(self, flags, to, message):
        command = f'"{sys.executable}" -c "from quasar.cli import main; main()" hw devices {flags} {to}'
        result = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command], check=False, capture_output=True, text=True, timeout=120
        )
        assert result.returncode != 0
        assert result.stderr.startswith(message)
        assert "Traceback" not in result.stderr
        assert message or not result.stderr

    def test_unforeseen_error_of_the_system(self, cli, finished, monkeypatch):
        def fail(*_, **__):
            raise OSError(errno.EIO, os.strerror(errno.EIO), "some/file")

        monkeypatch.setattr("quasar.evaluation.evaluate", fail)
        result = cli("evaluate", finished[0], "--subnet", "max")
        assert result.code == 1
        assert result.error == "error: some/file: Input/output error"

    def test_diverging_training(self, cli, config):
        result = cli("train", config, "train.lr=1.0e+30", "train.clip_grad_norm=null")
        assert result.code == 1
        assert re.search(r"the loss became nan .* in epoch 1, after 3 rollbacks; lower train\.lr", result.error)
        assert cli("train", config, "--overwrite").code == 0  # as the message says


class TestInterrupt:
    """Ctrl-C as Python sees it; `test_end_to_end.py` sends the signal to real processes."""

    @pytest.mark.parametrize(
        ("where", "command", "flags"),
        [
            ("quasar.pipeline.train", "run", ["--overwrite"]),
            ("quasar.search_stage.run_search", "search", ["--overwrite"]),
            ("quasar.export_stage.write_bundle", "export", ["--overwrite"]),
            ("quasar.report.write_report", "report", []),
            ("quasar.evaluation.evaluate", "evaluate", ["--subnet", "max"]),
            ("quasar.evaluation.verify_bundle", "verify", []),
            ("hwmodel.explore.explore", "hw explore", []),
        ],
    )
    def test_every_stage(self, cli, run, monkeypatch, where, command, flags):
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(where, interrupt)
        path = run / "export" / BUNDLES[0] if command.startswith("hw") else run
        result = cli(*command.split(), path, *flags)
        assert result.code == 130
        assert result.error.startswith("error: interrupted")
        # Only what can be continued says so.
        assert ("--resume" in result.error) == (command in ("run", "search"))
        assert "Traceback" not in result.err

    def test_as_json(self, cli, run, monkeypatch):
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("quasar.search_stage.run_search", interrupt)
        result = cli("search", run, "--overwrite", "--json")
        assert result.document == {"error": result.error.removeprefix("error: "), "exit_code": 130}
