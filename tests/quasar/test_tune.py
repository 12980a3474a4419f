"""`quasar tune`: what a sweep may say, what its journal keeps, and sweeps by Ray that are killed and go on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hwmodel.errors import DamagedInputError, QuasarError, UsageError
from quasar.config import load_config
from quasar.pipeline import check_names
from quasar.ray_cluster import cluster
from quasar.sweep import Range, Sweep, check_sweep, distributions, load_sweep, parameter_keys, settings
from quasar.tune_journal import Journal

RECIPES = sorted((Path(__file__).parents[2] / "experiments").glob("tune-*.yaml"))

SWEEP = {
    "parameters": {
        "train.lr": {"min": 1e-3, "max": 3e-2, "log": True},
        "train.warmup_epochs": {"min": 0, "max": 3},
        "train.float_epochs": [0, 1],
    },
    "trials": 4,
    "reduction_factor": 2,
}


@pytest.fixture
def write(here):
    """Writes a sweep file; `changes` replace keys of SWEEP."""

    def to_file(**changes):
        path = here / "sweep.yaml"
        path.write_text(yaml.safe_dump(SWEEP | changes), encoding="utf-8")
        return path

    return to_file


def test_a_sweep_is_read_and_written_back(write, here):
    sweep = load_sweep(write(cpus_per_trial=2))
    assert sweep.parameters == {
        "train.lr": Range(min=1e-3, max=3e-2, log=True),
        "train.warmup_epochs": Range(min=0, max=3),
        "train.float_epochs": (0, 1),
    }
    assert (sweep.trials, sweep.concurrent, sweep.cpus_per_trial, sweep.metric) == (4, None, 2, "mean_accuracy")
    (here / "again.yaml").write_text(sweep.to_yaml())
    assert load_sweep(here / "again.yaml") == sweep


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trial": 3}, "unknown key 'trial': did you mean 'trials'?"),
        ({"trials": 0}, "trials must be positive, not 0"),
        ({"trials": "many"}, "trials: "),
        ({"gpus_per_trial": 1.5}, "a share of one GPU or a whole number"),
        ({"reduction_factor": 1}, "reduction_factor must be above 1"),
        ({"metric": "accuracy"}, "metric: "),
        ({"parameters": {}}, "at least one key"),
        ({"parameters": ["train.lr"]}, "parameters: "),
        (
            {"parameters": {"train.learning_rate": [1]}},
            "parameters.train.learning_rate: is no key that can be tuned: did you mean 'train.",
        ),
        ({"parameters": {"train.wieght_decay": [1]}}, "did you mean 'train.weight_decay'?"),
        ({"parameters": {"train.epochs": [1, 2]}}, "parameters.train.epochs: is no key that can be tuned"),
        ({"parameters": {"data.split_seed": [1, 2]}}, "parameters.data.split_seed: is no key that can be tuned"),
        ({"parameters": {7: [1, 2]}}, "parameters.7: is no key that can be tuned"),
        ({"parameters": {"train.lr": 1e-3}}, "parameters.train.lr: must be a list of choices, or min and max"),
        ({"parameters": {"train.lr": []}}, "parameters.train.lr: must be a list of choices"),
        ({"parameters": {"train.lr": [[1]]}}, "parameters.train.lr: a choice must be a single value, not [1]"),
        ({"parameters": {"train.lr": {"min": 1, "mx": 2}}}, "train.lr: unknown key 'mx': did you mean 'max'?"),
        ({"parameters": {"train.lr": {"min": 2, "max": 1}}}, "train.lr: min (2) must be below max (1)"),
        ({"parameters": {"train.lr": {"min": 0, "max": 1, "log": True}}}, "train.lr: min must be positive with log"),
    ],
)
def test_a_bad_sweep_is_one_line_with_file_and_key(write, changes, message):
    with pytest.raises(UsageError) as raised:
        load_sweep(write(**changes))
    assert str(raised.value).startswith(str(write()))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"train.lr": {"min": -1.0, "max": 1.0}}}, "parameters.train.lr=-1.0: train: lr must be"),
        ({"parameters": {"train.warmup_epochs": {"min": 0, "max": 9}}}, "parameters.train.warmup_epochs=9.0: "),
        ({"parameters": {"train.sampling.strategy": ["single", 3]}}, "parameters.train.sampling.strategy=3: "),
        ({"parameters": {"train.distill.kind": ["none", "kl"]}}, "distill.kind is kl, but nothing teaches"),
        ({"grace_epochs": 5}, r"grace_epochs (5) must not be more than train.epochs (4)"),
    ],
)
def test_extreme_values_are_tried_at_once(cli, config, write, here, changes, message):
    result = cli("tune", config, write(**changes), "train.epochs=4", "--json")
    assert result.code == 2
    assert message in result.error
    assert str(here / "sweep.yaml") in result.error
    assert not Path("runs").exists()


def test_a_value_that_needs_another_one_is_possible(config):
    alone = Sweep(parameters={"train.distill.kind": ("none", "kl")}, trials=1)
    with pytest.raises(UsageError, match="nothing teaches"):
        check_sweep(alone, load_config(config), source="s")
    both = Sweep(parameters={**alone.parameters, "train.sampling.strategy": ("single", "sandwich")}, trials=1)
    found = check_sweep(both, load_config(config), source="s")
    assert list(found) == [
        "s: parameters.train.distill.kind=none",
        "s: parameters.train.distill.kind=kl",
        "s: parameters.train.sampling.strategy=single",
        "s: parameters.train.sampling.strategy=sandwich",
    ]
    assert found["s: parameters.train.distill.kind=kl"].train.sampling.strategy == "sandwich"


@pytest.mark.parametrize(("compute", "gpus"), [("cuda", 0.0), ("cpu", 1.0)])
def test_gpus_of_a_trial_and_of_the_configuration_agree(config, compute, gpus):
    sweep = Sweep(parameters={"train.lr": (0.1,)}, trials=1, gpus_per_trial=gpus)
    with pytest.raises(UsageError, match=f"gpus_per_trial is {gpus:g}, but compute is {compute}"):
        check_sweep(sweep, load_config(config, [f"compute={compute}"]), source="s")


def test_all_keys_exist_and_can_be_set(config):
    base = load_config(config)
    for key in parameter_keys():
        section, *_ = key.split(".")
        assert section in ("train", "supernet", "data")
        value = base
        for name in key.split("."):
            value = getattr(value, name)
        assert settings(base, {key: value}, source="s") == base
    changed = settings(base, {"train.lr": 0.5, "train.sampling.random": 2, "data.crop_padding": 1}, source="s")
    assert (changed.train.lr, changed.train.sampling.random, changed.data.crop_padding) == (0.5, 2, 1)
    assert (changed.train.batch_size, changed.space) == (base.train.batch_size, base.space)


numbers = st.integers(-1000, 1000) | st.floats(-1000, 1000)
ranges = (
    st.tuples(numbers, numbers, st.booleans())
    .filter(lambda r: r[0] < r[1] and (r[0] > 0 or not r[2]))
    .map(lambda r: Range(min=r[0], max=r[1], log=r[2]))
)


@given(ranges | st.lists(st.integers() | st.text() | st.booleans() | st.none(), min_size=1).map(tuple))
def test_optuna_draws_what_the_sweep_says(parameter):
    from optuna import create_study, logging

    logging.set_verbosity(logging.WARNING)
    sweep = Sweep(parameters={"train.lr": parameter}, trials=1)
    value = create_study().ask(distributions(sweep)).params["train.lr"]
    if isinstance(parameter, Range):
        assert parameter.min <= value <= parameter.max
        assert isinstance(value, int) == (isinstance(parameter.min, int) and isinstance(parameter.max, int))
    else:
        assert value in parameter


def test_whole_ends_of_a_range_of_floats_are_floats(write):
    ends = {"min": 1, "max": 2}
    given = load_sweep(write(parameters={"train.lr": ends, "train.batch_size": ends}))
    assert isinstance(given.parameters["train.lr"].min, float)
    assert isinstance(given.parameters["train.batch_size"].min, int)


def test_a_journal_is_read_back_and_loses_half_a_line(tmp_path):
    path = tmp_path / "trials.jsonl"
    journal = Journal(path)
    journal.start({"train.lr": 0.1})
    journal.report(1, epoch=1, value=0.5)
    journal.report(1, epoch=1, value=0.5)  # known already
    journal.report(1, epoch=3, value=0.25)
    journal.start({"train.lr": 0.2})
    journal.end(1, "finished")
    with path.open("a") as file:
        file.write('{"trial": 2, "epo')
    again = Journal(path)
    assert again.trials == journal.trials
    assert (again.trials[1].epochs, again.trials[1].value) == (3, 0.25)
    assert [trial.number for trial in again.open] == [2]
    assert path.read_text().count("\n") == 5
    for damage in ("{}", '{"trial": 9, "parameters": {}}', '{"trial": 9, "epoch": 1, "value": 0}', "[]", "null"):
        path.write_text(damage + "\n")
        with pytest.raises(DamagedInputError, match=r"trials\.jsonl: line 1 is damaged"):
            Journal(path)


def test_missing_ray_is_named_with_its_remedy(cli, config, write, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = cli("tune", config, write(), "train.epochs=4")
    assert (result.code, result.out) == (2, "")
    assert "quasar tune needs Ray" in result.error
    assert "pip install 'quasar-nas[ray]'" in result.error
    assert not Path("runs").exists()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_fit_their_configuration_and_say_what_to_expect(path):
    header = path.read_text().split("\n\n")[0]
    for part in ("command: ", "duration: ", "hardware: ", "expected: "):
        assert f"# {part}" in header
    name = header.split("quasar tune ")[1].split()[0]
    for config in check_sweep(load_sweep(path), load_config(path.parents[1] / name), source=path.name).values():
        check_names(config)


@pytest.fixture
def tune():
    """The module, which needs Ray."""
    return pytest.importorskip("quasar.tune", exc_type=ImportError)


class Driver:
    """Does with a search what Ray Tune does, without a cluster."""

    def __init__(self, tune, base, journal, **changes):
        sweep = Sweep(
            parameters={"train.lr": Range(min=0.001, max=0.1), "train.warmup_epochs": Range(min=0, max=5)},
            **({"trials": 12} | changes),
        )
        self.scheduler = tune.ASHAScheduler(
            time_attr="epoch", metric="value", mode="max", max_t=4, reduction_factor=2, stop_last_trials=False
        )
        self.search = tune._Search(base, sweep, journal, self.scheduler, lambda done, total, text: None)
        self.names = iter("abcdefghijklmnopqrstuvwxyz")

    def next(self):
        name = next(self.names)
        return name, self.search.suggest(name)

    def report(self, name, **result):
        self.search.on_trial_result(name, {"training_iteration": 1} | result)


def test_a_search_writes_all_down_and_goes_on_from_it(tune, config, tmp_path):
    base = load_config(config, ["train.epochs=4"])
    journal = Journal(tmp_path / "trials.jsonl")
    driver = Driver(tune, base, journal)
    a, first = driver.next()
    driver.report(a, epoch=1, value=0.5)
    driver.report(a, epoch=4, value=0.9)
    driver.search.on_trial_complete(a, {"epoch": 4, "value": 0.9})
    b, second = driver.next()
    driver.search.on_trial_complete(b, {"epoch": 1, "value": 0.1})  # stopped for a result that no one else was told
    c, third = driver.next()
    driver.search.on_trial_complete(c, {"cause": "no luck"})
    d, fourth = driver.next()
    driver.report(d, epoch=1, value=0.7)
    e, fifth = driver.next()
    driver.search.on_trial_complete(e, None, error=True)
    ended = [trial for trial in journal.trials.values() if trial.state]
    impossible = [trial for trial in ended if trial.parameters["train.warmup_epochs"] >= 4]
    assert impossible, "the seed draws none: choose another"
    assert all(trial.state == "failed" and "warmup_epochs" in trial.cause for trial in impossible)
    states = {item["number"]: journal.trials[item["number"]].state for item in (first, second, third, fourth, fifth)}
    assert list(states.values()) == ["finished", "stopped", "failed", None, "failed"]
    assert journal.trials[third["number"]].cause == "no luck"
    assert "ended 3 times" in journal.trials[fifth["number"]].cause

    again = Driver(tune, base, Journal(tmp_path / "trials.jsonl"))
    name, continued = again.next()
    assert continued == fourth
    again.report(name, epoch=1, value=0.7)
    assert (tmp_path / "trials.jsonl").read_text().count('"value": 0.7') == 1
    # ASHA remembers 0.5, 0.1 and 0.7 after the first epoch: a newcomer with 0.3 is not among the better half.
    trial = tune.SimpleNamespace(trial_id="new")
    again.scheduler.on_trial_add(None, trial)
    assert again.scheduler.on_trial_result(None, trial, {"epoch": 1, "value": 0.3}) == "STOP"
    while again.next()[1] != "FINISHED":
        pass
    trials = Journal(tmp_path / "trials.jsonl").trials
    assert list(trials) == list(range(1, 13))
    assert len({json.dumps(trial.parameters) for trial in trials.values()}) == 12


def test_results_rank_and_name_the_best(tune, config, tmp_path):
    base = load_config(config, ["train.epochs=2"])
    sweep = Sweep(parameters={"train.lr": Range(min=0.001, max=0.1)}, trials=11)
    journal = Journal(tmp_path / "trials.jsonl")
    for number in range(1, 10):
        journal.start({"train.lr": number / 100})
        journal.report(number, epoch=2, value=number / 10)
        journal.end(number, "finished")
    journal.start({"train.lr": 0.1})
    journal.report(10, epoch=1, value=0.95)
    journal.end(10, "stopped")
    journal.start({"train.lr": 0.1})
    journal.end(11, "failed", cause="no luck")
    document = tune._write_results(tmp_path, base, sweep, list(journal.trials.values()))
    assert document == json.loads(json.dumps(document)) | {"trials": document["trials"]}
    assert [trial["trial"] for trial in document["trials"]] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 10, 11]
    assert document["importance"] == {"train.lr": pytest.approx(1)}
    best = load_config(tmp_path / "best.yaml")
    assert (best.name, best.train.lr) == (base.name, 0.09)
    assert (tmp_path / "tune.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(QuasarError, match=r"none of 1 trials has finished; trial 11: no luck"):
        tune._write_results(tmp_path, base, sweep, [journal.trials[11]])


def test_a_folder_is_new_continued_or_replaced(tune, config, here):
    base = load_config(config)
    sweep = Sweep(parameters={"train.lr": (0.1, 0.2)}, trials=3)

    def opened(sweep=sweep, base=base, resume=False, overwrite=False):
        with tune._open_folder(base, sweep, resume=resume, overwrite=overwrite) as folder:
            return {item.name for item in folder.iterdir()}

    assert opened() == {".lock", "config.yaml", "sweep.yaml"}
    with pytest.raises(UsageError, match="holds a sweep already; continue it with --resume"):
        opened()
    more = Sweep(parameters=sweep.parameters, trials=9, concurrent=1)
    opened(more, resume=True)
    assert load_sweep(Path("runs/tiny-tune/sweep.yaml")) == more
    with pytest.raises(UsageError, match="cannot resume: seed of the sweep differs"):
        opened(Sweep(parameters=sweep.parameters, trials=9, seed=1), resume=True)
    with pytest.raises(UsageError, match=r"cannot resume: train\.lr differs"):
        opened(more, load_config(config, ["train.lr=0.5"]), resume=True)
    Path("runs/tiny-tune/trials.jsonl").touch()
    Path("runs/tiny-tune/trials/1").mkdir(parents=True)
    assert opened(overwrite=True) == {".lock", "config.yaml", "sweep.yaml"}
    Path("runs/tiny-tune/config.yaml").unlink()
    Path("runs/tiny-tune/mine").touch()
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UsageError, match="is not the folder of a sweep but holds files"):
            opened(**flags)


@pytest.mark.parametrize(("address", "expected"), [(None, {"address": "local", "num_cpus": 3}), ("10.0.0.1:6379", {})])
def test_only_ray_address_names_a_cluster_of_others(monkeypatch, address, expected):
    ray = pytest.importorskip("ray")
    calls = []
    monkeypatch.setattr(ray, "init", lambda **options: calls.append(options))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3.0})
    monkeypatch.setattr("quasar.ray_cluster.check_answers", lambda address: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with cluster(cpus=3, worker_output=True) as has:
        assert has == {"CPU": 3.0}
    assert {key: calls[0][key] for key in calls[0] if key != "include_dashboard"} == expected


class Sweeping:
    """`quasar tune` in a process of its own, with a cluster of its own."""

    def __init__(self, *arguments):
        pytest.importorskip("ray.tune")
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quasar", "tune", *map(str, arguments), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | {"OMP_NUM_THREADS": "1"},
        )

    def wait_for(self, text):
        end = time.monotonic() + 300
        journal = Path("runs/tiny-tune/trials.jsonl")
        while not (journal.exists() and text in journal.read_text()):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)

    def document(self):
        out, err = self.process.communicate(timeout=400)
        assert self.process.returncode == 0, err
        # Ray may say that a worker died, and that alone.
        assert all(line.startswith("tune: ") or "(raylet)" in line for line in err.splitlines()), err
        return json.loads(out)


def epochs(trial):
    log = Path("runs/tiny-tune/trials", str(trial["trial"]), "train", "metrics.jsonl")
    return [json.loads(line)["epoch"] for line in log.read_text().splitlines()]


@pytest.mark.slow
def test_a_sweep_finds_settings_that_train_takes(cli, config, write):
    document = Sweeping(config, write(), "train.epochs=4").document()
    assert sorted(trial["trial"] for trial in document["trials"]) == [1, 2, 3, 4]
    assert json.loads(Path("runs/tiny-tune/tune.json").read_text()) == document
    for trial in document["trials"]:
        assert epochs(trial) == list(range(1, trial["epochs"] + 1))
        assert (trial["epochs"] == 4) == (trial["state"] == "finished")
    best = document["trials"][0]
    assert (document["best"], best["state"]) == (best["trial"], "finished")
    found = load_config(Path(document["config"]))
    assert found == settings(load_config(config, ["train.epochs=4"]), best["parameters"], source="s")
    # A trial is an ordinary run, and what it found is found again.
    result = cli("train", document["config"], "--json").document
    accuracies = [probe["accuracy"] for probe in result["probes"].values()]
    assert sum(accuracies) / len(accuracies) == pytest.approx(best["value"])
    assert cli("evaluate", f"runs/tiny-tune/trials/{best['trial']}", "--subnet", "max").code == 0
    again = cli("tune", config, write(), "train.epochs=4")
    assert again.code == 2
    assert "holds a sweep already; continue it with --resume" in again.error
    shown = cli("tune", config, write(), "train.epochs=4", "--resume")  # nothing is left to train
    assert "next:    quasar train runs/tiny-tune/best.yaml" in shown.out


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_repeats_no_trial(config, write):
    arguments = (config, write(), "train.epochs=12")
    killed = Sweeping(*arguments)
    killed.wait_for('"state"')
    killed.process.kill()
    killed.process.communicate()
    journal = Path("runs/tiny-tune/trials.jsonl")
    before = Journal(journal)
    ended = {n: trial for n, trial in before.trials.items() if trial.state}
    logs = {n: Path(f"runs/tiny-tune/trials/{n}/train/metrics.jsonl").read_text() for n in ended}
    document = Sweeping(*arguments, "--resume").document()
    assert sorted(trial["trial"] for trial in document["trials"]) == [1, 2, 3, 4]
    assert journal.read_text().count('"parameters"') == 4
    assert journal.read_text().count('"state"') == 4
    after = Journal(journal)
    for number, trial in ended.items():
        assert after.trials[number] == trial
        assert Path(f"runs/tiny-tune/trials/{number}/train/metrics.jsonl").read_text() == logs[number]
    for trial in document["trials"]:
        assert epochs(trial) == list(range(1, trial["epochs"] + 1))


@pytest.mark.slow
def test_a_killed_worker_is_replaced(config, write):
    running = Sweeping(config, write(trials=1, parameters={"train.lr": [3e-3]}), "train.epochs=30")
    running.wait_for('"epoch": 3,')
    os.kill(int(Path("runs/tiny-tune/trials/1/.lock").read_text()), signal.SIGKILL)
    (trial,) = running.document()["trials"]
    assert (trial["state"], trial["epochs"]) == ("finished", 30)
    assert epochs(trial) == list(range(1, 31))


@pytest.mark.slow
def test_a_trial_larger_than_the_cluster_is_refused(config, write):
    refused = Sweeping(config, write(cpus_per_trial=4096), "train.epochs=4")
    _, err = refused.process.communicate(timeout=300)
    assert refused.process.returncode == 2
    assert "cpus_per_trial is 4096, but the Ray cluster has" in err.splitlines()[-1]
