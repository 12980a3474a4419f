import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from hwmodel.errors import DamagedInputError, QuasarError, UsageError
from supernet.checkpoint import Checkpoint
from supernet.config import DistillConfig, SamplingConfig, SupernetConfig, TrainConfig
from supernet.data.config import DataConfig
from supernet.data.splits import open_train
from supernet.evaluate import evaluate, probe
from supernet.metrics import read_evaluations
from supernet.standalone import extract
from supernet.step import Step
from supernet.train import new_supernet, train
from supernet.watch import LossWatch

CONFIG = TrainConfig(epochs=3, batch_size=64, lr=3e-3, warmup_epochs=1, eval_every=1)


@pytest.fixture(scope="module")
def splits():
    return open_train(DataConfig(name="digits", crop_padding=1), image_size=8, seed=0)


@pytest.fixture
def start(space, splits, tmp_path):
    def start_training(**changes):
        settings = {
            "space": space,
            "supernet": SupernetConfig(layer_scale=0.5),
            "config": CONFIG,
            "train_split": splits[0],
            "val_split": splits[1],
            "folder": tmp_path / "train",
            "seed": 0,
            "device": torch.device("cpu"),
            "progress": lambda done, total, text: None,
        }
        return train(**(settings | changes))

    return start_training


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_training_learns_and_leaves_its_files(start, tmp_path, make_space, splits):
    space = make_space(image_size=(8,), embed_dim=(24, 32), depth=(1, 2), head_dim=8)
    result = start(space=space, config=dataclasses.replace(CONFIG, epochs=10, batch_size=32))
    logged = rows(tmp_path / "train")
    assert [row["epoch"] for row in logged] == list(range(1, 11))
    assert logged[-1]["train_loss"] < logged[0]["train_loss"]
    assert result.probes["max"].accuracy > 0.3  # chance is 0.1
    assert list((tmp_path / "train" / "tensorboard").glob("events.*"))
    model = Checkpoint.load(result.checkpoint).build(source="last")
    assert probe(model, splits[1], batch_size=4 * 32) == result.probes
    best = Checkpoint.load(result.checkpoint.with_name("best.safetensors"))
    assert best.best_accuracy == max(np.mean([result["accuracy"] for result in row["val"].values()]) for row in logged)


def test_muon_turns_matrices_and_leaves_the_rest_to_adamw(start, space):
    before = new_supernet(space, SupernetConfig(layer_scale=0.5), seed=0).state_dict()
    config = dataclasses.replace(CONFIG, epochs=1, warmup_epochs=0, optimizer="muon")
    checkpoint = Checkpoint.load(start(config=config).checkpoint)
    names = {name.partition(".")[2] for name in checkpoint.optimizer}
    assert {"momentum_buffer", "exp_avg", "use_muon"} <= names
    kinds = [bool(value) for name, value in checkpoint.optimizer.items() if name.endswith("use_muon")]
    assert kinds.count(True) == sum(name.endswith("weight") and value.ndim == 2 for name, value in before.items()) + 1


def test_the_same_seed_gives_the_same_weights(start, tmp_path):
    first, second = (Checkpoint.load(start(folder=tmp_path / name).checkpoint) for name in "ab")
    other = Checkpoint.load(start(folder=tmp_path / "c", seed=1).checkpoint)
    assert first.digest == second.digest != other.digest


class StopError(Exception):
    pass


def stopping(stop_at):
    def stop(done, total, text):
        if done == stop_at:
            raise StopError

    return stop


#: everything at once that a resumed run has to restore
ALL = dataclasses.replace(
    CONFIG,
    sampling=SamplingConfig(strategy="sandwich"),
    distill=DistillConfig(kind="alpha"),
    accumulate=2,
    ema_decay=0.9,
    drop_path=0.2,
    mixup=0.8,
    cutmix=1.0,
    precision="bfloat16",
)


MUON = dataclasses.replace(CONFIG, optimizer="muon")


@pytest.mark.parametrize(("stop_at", "config"), [(5, CONFIG), (25, CONFIG), (41, CONFIG), (25, ALL), (25, MUON)])
def test_an_interrupted_run_ends_in_the_weights_of_an_uninterrupted_one(start, tmp_path, stop_at, config):
    whole = Checkpoint.load(start(folder=tmp_path / "whole", config=config).checkpoint)
    with pytest.raises(StopError):
        start(folder=tmp_path / "stopped", config=config, progress=stopping(stop_at))
    resumed = Checkpoint.load(start(folder=tmp_path / "stopped", config=config, resume=True).checkpoint)
    assert resumed.digest == whole.digest
    assert whole.trained.keys() == (whole.model.keys() if config.ema_decay else set())
    for name in ("trained", "optimizer"):
        for key, tensor in getattr(whole, name).items():
            assert torch.equal(getattr(resumed, name)[key], tensor)
    ours, theirs = rows(tmp_path / "stopped"), rows(tmp_path / "whole")
    assert [row["train_loss"] for row in ours] == [row["train_loss"] for row in theirs]
    assert [row["val"] for row in ours] == [row["val"] for row in theirs]


def test_who_watches_evaluations_can_end_a_training_which_is_then_resumed(start, tmp_path):
    last = Path("checkpoints", "last.safetensors")
    seen = []

    def watch(epoch, probes):
        assert Checkpoint.load(tmp_path / "stopped" / last).epoch == epoch
        seen.append((epoch, probes))
        if len(seen) == 1:
            raise StopError

    config = dataclasses.replace(CONFIG, epochs=5, eval_every=2)
    with pytest.raises(StopError):
        start(folder=tmp_path / "stopped", config=config, on_evaluation=watch)
    assert read_evaluations(tmp_path / "stopped") == dict(seen)
    result = start(folder=tmp_path / "stopped", config=config, on_evaluation=watch, resume=True)
    assert [epoch for epoch, _ in seen] == [2, 4, 5]
    assert seen[-1][1] == result.probes
    with (tmp_path / "stopped" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 6, "val": {"ma')  # as a kill leaves it
    assert read_evaluations(tmp_path / "stopped") == dict(seen)
    whole = start(folder=tmp_path / "whole", config=config)
    assert Checkpoint.load(result.checkpoint).digest == Checkpoint.load(whole.checkpoint).digest
    assert read_evaluations(tmp_path / "none") == {}


def test_resuming_a_finished_run_changes_nothing(start, tmp_path):
    result = start()
    before = result.checkpoint.read_bytes()
    again = start(resume=True)
    assert again.probes == result.probes
    assert again.checkpoint.read_bytes() == before


def test_a_float_phase_leaves_ranges_for_the_quantized_one(start, tmp_path, monkeypatch):
    seen = []
    step = Step.__call__

    def watched(self, x_BCHW, y_B, number):
        seen.append(self._quantize)
        return step(self, x_BCHW, y_B, number)

    monkeypatch.setattr(Step, "__call__", watched)
    result = start(config=dataclasses.replace(CONFIG, float_epochs=2))
    per_epoch = len(seen) // 3
    assert seen == [False] * (2 * per_epoch) + [True] * per_epoch
    only_float = start(config=dataclasses.replace(CONFIG, float_epochs=3), folder=tmp_path / "float")
    assert Checkpoint.load(result.checkpoint).digest != Checkpoint.load(only_float.checkpoint).digest


def test_no_epochs_leave_a_calibrated_supernet(start, tmp_path):
    result = start(config=dataclasses.replace(CONFIG, epochs=0))
    checkpoint = Checkpoint.load(result.checkpoint)
    assert checkpoint.epoch == checkpoint.step == 0
    assert checkpoint.model["sites.scale"].max() < 1  # where uncalibrated scales are
    assert result.probes.keys() == {"max", "min", "random1", "random2", "random3", "random4"}
    assert rows(tmp_path / "train") == []


def test_an_average_is_kept_beside_the_weights_in_training(start):
    checkpoint = Checkpoint.load(start(config=dataclasses.replace(CONFIG, ema_decay=0.9)).checkpoint)
    plain = Checkpoint.load(start(config=CONFIG).checkpoint)
    assert all(torch.equal(checkpoint.trained[name], tensor) for name, tensor in plain.model.items())
    assert not torch.equal(checkpoint.model["head.weight"], checkpoint.trained["head.weight"])
    used = checkpoint.build(source="c")
    assert torch.equal(used.head.weight, checkpoint.model["head.weight"])


def test_a_checkpoint_of_format_1_is_resumed(start, tmp_path):
    start(config=CONFIG, progress=lambda done, total, text: None)
    whole = Checkpoint.load(tmp_path / "train" / "checkpoints" / "last.safetensors")
    with pytest.raises(StopError):
        start(folder=tmp_path / "old", progress=stopping(25))
    path = tmp_path / "old" / "checkpoints" / "last.safetensors"
    with safetensors.safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["quasar"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    about["format"] = 1
    about.pop("rollbacks")
    about.pop("loss_level")
    younger = ("accumulate", "precision", "ema_decay", "sampling", "distill", "spike_factor")
    about["settings"] = {
        key.removeprefix("train."): value
        for key, value in about["settings"].items()
        if not key.removeprefix("train.").startswith(younger)
    }
    safetensors.torch.save_file(tensors, path, metadata={"quasar": json.dumps(about)})
    assert Checkpoint.load(start(folder=tmp_path / "old", resume=True).checkpoint).digest == whole.digest


@pytest.mark.slow
def test_kill_9_and_resume(start, tmp_path):
    script = tmp_path / "go.py"
    script.write_text(
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from supernet.config import SupernetConfig, TrainConfig\n"
        "from supernet.data.config import DataConfig\n"
        "from supernet.data.splits import open_train\n"
        "from supernet.space import SearchSpace\n"
        "from supernet.train import train\n"
        "torch.set_num_threads(1)  # as in this process: sums depend on the number of threads\n"
        "space = SearchSpace(num_classes=10, in_chans=1, patch_size=2, head_dim=4, image_size=(6, 8),\n"
        "    embed_dim=(12, 16), depth=(1, 2, 3), num_heads=(1, 2, 3), mlp_ratio=(1.5, 2),\n"
        "    high_precision_ratio=(0, 0.3, 1))\n"
        "splits = open_train(DataConfig(name='digits', crop_padding=1), image_size=8, seed=0)\n"
        "train(space=space, supernet=SupernetConfig(layer_scale=0.5), seed=0, device=torch.device('cpu'),\n"
        "    config=TrainConfig(epochs=3, batch_size=64, lr=3e-3, warmup_epochs=1, eval_every=1),\n"
        "    train_split=splits[0], val_split=splits[1], folder=Path(sys.argv[1]), resume=True,\n"
        "    progress=lambda done, total, text: print(done, flush=True))\n"
    )
    folder = tmp_path / "killed"
    with subprocess.Popen([sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            if int(line) == 30:
                child.send_signal(signal.SIGKILL)
                break
    resumed = Checkpoint.load(start(folder=folder, resume=True).checkpoint)
    assert resumed.digest == Checkpoint.load(start(folder=tmp_path / "whole").checkpoint).digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"config": dataclasses.replace(CONFIG, epochs=2, lr=1e-3)},
            r"cannot resume: train\.lr is 0\.001.*trained with 0\.003",
        ),
        ({"seed": 3}, "seed is 3"),
        ({"supernet": SupernetConfig(layer_scale=None)}, r"supernet\.layer_scale is None"),
    ],
)
def test_resume_refuses_other_settings(start, changes, message):
    start(config=dataclasses.replace(CONFIG, epochs=2))
    with pytest.raises(UsageError, match=message):
        start(**({"config": dataclasses.replace(CONFIG, epochs=2)} | changes), resume=True)


def test_resume_refuses_another_space(start, make_space):
    start()
    with pytest.raises(UsageError, match=r"cannot resume: space\.depth is \(1, 2\)"):
        start(space=make_space(depth=(1, 2)), resume=True)


def test_a_full_disk_keeps_the_last_checkpoint(start, tmp_path, monkeypatch):
    start(config=dataclasses.replace(CONFIG, epochs=2))
    last = tmp_path / "train" / "checkpoints" / "last.safetensors"
    before = Checkpoint.load(last)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(QuasarError, match="No space left on device; what was there before is untouched"):
            before.save(last)
    assert Checkpoint.load(last).digest == before.digest
    assert {item.name for item in last.parent.iterdir()} == {"last.safetensors", "best.safetensors"}


def spoil(monkeypatch, *, at_step, value, rollbacks):
    """Makes the loss of one step `value`, in attempts with so many rollbacks before them."""
    step = Step.__call__

    def spoiled(self, x_BCHW, y_B, number):
        loss = step(self, x_BCHW, y_B, number)
        return torch.full_like(loss, value) if number == at_step and self._rollbacks in rollbacks else loss

    monkeypatch.setattr(Step, "__call__", spoiled)


def test_a_training_that_keeps_diverging_stops_with_advice(start, tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, at_step=30, value=float("nan"), rollbacks=(0, 1, 2))
    message = r"training: the loss became nan within the last \d+ steps, in epoch 2, after 2 rollbacks; lower train\.lr"
    with pytest.raises(QuasarError, match=message):
        start(config=dataclasses.replace(CONFIG, max_rollbacks=2))
    errors = capsys.readouterr().err.splitlines()
    assert [line.partition("(")[2] for line in errors] == ["rollback 1 of 2)", "rollback 2 of 2)"]
    logged = rows(tmp_path / "train")
    assert [row["epoch"] for row in logged] == [1, 2, 2, 2]
    assert all("became nan" in row["rollback"] for row in logged[1:])
    assert Checkpoint.load(tmp_path / "train" / "checkpoints" / "last.safetensors").epoch == 1


def test_weights_that_the_last_step_broke_are_not_kept(start, splits, tmp_path, monkeypatch):
    real, last = Step.__call__, len(splits[0]) // CONFIG.batch_size - 1

    def call(self, x_BCHW, y_B, step):
        loss = real(self, x_BCHW, y_B, step)
        if step == last and not self._rollbacks:
            with torch.no_grad():
                self._model.cls_token.fill_(float("nan"))
        return loss

    monkeypatch.setattr(Step, "__call__", call)
    result = start(config=CONFIG)
    logged = rows(tmp_path / "train")
    assert "weights became" in logged[0]["rollback"]
    assert all(np.isfinite(probe.loss) for probe in result.probes.values())


@pytest.mark.parametrize(("at_step", "value"), [(5, float("inf")), (30, 1e4)])
def test_a_rollback_goes_on_with_other_batches_and_is_replayed_by_a_resumed_run(
    start, tmp_path, monkeypatch, at_step, value
):
    plain = Checkpoint.load(start(folder=tmp_path / "plain").checkpoint)
    spoil(monkeypatch, at_step=at_step, value=value, rollbacks=(0,))
    whole = Checkpoint.load(start(folder=tmp_path / "whole").checkpoint)
    assert (whole.rollbacks, whole.epoch) == (1, 3)
    assert whole.digest != plain.digest
    assert len([row for row in rows(tmp_path / "whole") if "rollback" in row]) == 1
    for stop_at in (at_step, 50):
        folder = tmp_path / f"stopped{stop_at}"
        with pytest.raises(StopError):
            start(folder=folder, progress=stopping(stop_at))
        resumed = Checkpoint.load(start(folder=folder, resume=True).checkpoint)
        assert resumed.digest == whole.digest
        ours, theirs = rows(folder), rows(tmp_path / "whole")
        assert [row.get("train_loss") for row in ours] == [row.get("train_loss") for row in theirs]


def test_watch_by_hand():
    def causes(losses, **changes):
        watch = LossWatch(**({"every": 2, "spike_factor": 2.0, "chance": 2.3} | changes))
        return [watch.add(torch.tensor(loss)) for loss in losses]

    assert causes([2.3, 2.3, 2.0, 1.8, 0.1, 0.1, 1.0, 1.0]) == [None] * 8
    assert causes([0.01, 0.01, 0.1, 0.1, 1.0, 1.0]) == [None] * 6  # below half of a guess: no harm
    *before, last = causes([1.0, 1.0, 3.0, 1.1])
    assert before == [None] * 3
    assert last == "the loss of the last 2 steps rose to 2.05; no more than 2 was expected"
    assert "rose to 9e+06; no more than 4.6" in causes([9e6, 9e6])[1]
    assert causes([1.0, 1.0, 3.0, 1.1], spike_factor=None) == [None] * 4
    assert causes([1.0, float("nan")], every=2)[1] == "the loss became nan within the last 2 steps"
    watch = LossWatch(every=50, spike_factor=2.0, chance=2.3, level=1.0)
    assert "rose to 9; no more than 2 was" in watch.add(torch.tensor(9.0), look=True)


@pytest.fixture
def saved(tmp_path, space):
    model = new_supernet(space, SupernetConfig(layer_scale=0.5), seed=0)
    path = tmp_path / "c.safetensors"
    Checkpoint(
        space=space,
        supernet=SupernetConfig(layer_scale=0.5),
        model=model.state_dict(),
        epoch=1,
        step=2,
        best_accuracy=0.5,
        train_digest="d",
        settings={},
    ).save(path)
    return path


def test_checkpoint_round_trip(saved, space):
    checkpoint = Checkpoint.load(saved)
    assert (checkpoint.space, checkpoint.epoch, checkpoint.step, checkpoint.best_accuracy) == (space, 1, 2, 0.5)
    expected = new_supernet(space, SupernetConfig(layer_scale=0.5), seed=0).state_dict()
    for name, tensor in checkpoint.build(source="c").state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_bad_checkpoints_are_named(saved, tmp_path):
    with pytest.raises(UsageError, match=r"none\.safetensors: no such checkpoint"):
        Checkpoint.load(tmp_path / "none.safetensors")
    content = saved.read_bytes()
    for name, damaged in (("cut", content[: len(content) // 2]), ("text", b"hello"), ("empty", b"")):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(damaged)
        with pytest.raises(DamagedInputError, match=rf"{name}\.safetensors: is not a whole safetensors file"):
            Checkpoint.load(path)
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, foreign)
    with pytest.raises(DamagedInputError, match="is not a checkpoint of a Quasar supernet"):
        Checkpoint.load(foreign)
    for about, message in (
        ({"format": 99}, "has checkpoint format 99"),
        ({"format": 1}, "key 'space' is missing"),
        ({"format": 1, "space": {"depth": [1]}}, "key 'space.num_classes' is missing"),
    ):
        safetensors.torch.save_file({"x": torch.zeros(1)}, foreign, metadata={"quasar": json.dumps(about)})
        with pytest.raises(DamagedInputError, match=message):
            Checkpoint.load(foreign)


def test_weights_that_do_not_fit_their_space_are_refused(saved):
    checkpoint = Checkpoint.load(saved)
    wrong = dataclasses.replace(checkpoint, model={k: v for k, v in checkpoint.model.items() if k != "cls_token"})
    with pytest.raises(DamagedInputError, match=r"do not fit the space they claim: .*cls_token"):
        wrong.build(source="c.safetensors")


def test_evaluate_counts_by_hand(supernet, space, splits):
    module = extract(supernet, space.smallest())
    result = evaluate(module, splits[1], batch_size=50, limit=120)
    images, labels = next(splits[1].batches(120, limit=120))
    with torch.no_grad():
        logits = module(images)
    assert result.images == 120
    assert result.accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert result.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": -1}, "epochs must not be negative"),
        ({"accumulate": 3}, "3 parts do not divide batch_size 64"),
        ({"batch_size": 63, "mixup": 0.8}, "batch_size must be even"),
        ({"ema_decay": 1.0}, "ema_decay must lie between 0 and 1"),
        ({"drop_path": 1.0}, r"drop_path must lie in \[0, 1\)"),
        ({"spike_factor": 1.0}, "spike_factor must be above 1"),
        ({"float_epochs": 4}, r"float_epochs \(4\) must not be more than epochs \(3\)"),
        ({"max_rollbacks": -1}, "max_rollbacks must not be negative"),
        ({"distill": DistillConfig(kind="kl")}, "nothing teaches: choose sampling.strategy sandwich"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\)"),
        ({"warmup_epochs": 3}, "must be fewer than epochs"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)
