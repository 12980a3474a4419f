"""`quasar search --devices`: several devices, each with a front of its own, and what other commands do with them."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from measured_hosts import measured_host

TWO = ("--devices", "zcu102,jetson_tx2")
TARGETS = (
    "zcu102:search.targets=[{latency_ms: 0.006}, {fps: 250000}]",
    "jetson_tx2:search.targets=[{latency_ms: 0.2}]",
)


def front_of(folder):
    return json.loads((folder / "search" / "front.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def searched_once(cli, finished, tmp_path_factory):
    """A run searched for two devices, beside its own search, and the result."""
    folder = tmp_path_factory.mktemp("devices") / "tiny"
    shutil.copytree(finished[0], folder)
    return folder, cli("search", folder, *TWO, *TARGETS)


@pytest.fixture
def searched(searched_once, here):
    """A copy of it that the test may spoil, with its result."""
    return Path(shutil.copytree(searched_once[0], "runs/tiny")), searched_once[1]


def test_each_device_has_the_front_that_a_search_for_it_alone_has(searched, cli, finished, contents):
    run, result = searched
    assert result.code == 0, result
    assert [line.split()[:2] for line in result.out.splitlines()[3:6]] == [
        ["zcu102", "0.006"],
        ["zcu102", "250000"],
        ["jetson_tx2", "0.2"],
    ]
    devices = run / "devices"
    assert (devices / "fronts.png").read_bytes().startswith(b"\x89PNG")
    assert contents(run / "search") == contents(finished[0] / "search")
    # The run's own search is for the ZCU102 and these targets.
    assert (devices / "zcu102" / "search" / "front.json").read_bytes() == (run / "search" / "front.json").read_bytes()
    alone = ("hardware.device=jetson_tx2", "hardware.array=null", "hardware.backend=null")
    assert cli("search", run, "--overwrite", *alone, "search.targets=[{latency_ms: 0.2}]").code == 0
    for name in ("front.json", "trials.jsonl", "front.png"):
        assert (devices / "jetson_tx2" / "search" / name).read_bytes() == (run / "search" / name).read_bytes(), name


def test_nothing_is_measured_twice(searched):
    run, _ = searched
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    measured = [(row["subnet"], row["precision"]) for row in rows]
    assert len(measured) == len(set(measured))
    journals = list(run.glob("devices/*/search/trials.jsonl"))
    trials = [json.loads(line)["digest"] for journal in journals for line in journal.read_text().splitlines()]
    assert len(journals) == 2
    assert len(trials) > len(set(trials))


def test_quantiles_are_targets_that_fit_each_device(cli, run):
    budget = ("search.evaluations=4", "search.population=4")
    document = cli("search", run, *TWO, "--quantiles", "0.2,1", *budget, "--json").document
    shares = []
    for name, front in document["devices"].items():
        low, high = (target["latency_ms"] for target in front["targets"])
        assert front["fastest_latency_ms"] < low < high
        assert high == pytest.approx(front["slowest_latency_ms"], rel=0.01)
        profile = cli("search", document["folders"][name], "--profile", "--json").document
        shares.append([target["share_of_random_subnets"] for target in profile["targets"]])
    assert all(0.2 <= share < 0.5 for share, _ in shares)  # many subnets of a small space are equally fast
    assert [share for _, share in shares] == [1, 1]


def test_a_device_of_the_run_is_a_run(searched, cli):
    run, _ = searched
    board = run / "devices" / "zcu102"
    assert cli("export", board, "--format", "qdq").code == 0
    assert cli("verify", board).code == 0
    assert cli("evaluate", board, "--subnet", "latency-0.006ms").code == 0
    assert "zcu102" in cli("search", board, "--resume").out
    report = cli("report", run, "--json").document
    assert list(report["devices"]) == ["jetson_tx2", "zcu102"]
    assert "jetson_tx2 is no FPGA board" in (run / "devices" / "jetson_tx2" / "report.html").read_text()
    compared = cli("compare", run)
    assert compared.code == 0, compared
    assert "note: the runs have different devices: jetson_tx2, zcu102" in compared.out


def test_other_commands_say_where_the_results_are(searched, refused):
    run, _ = searched
    assert "runs/tiny/devices/jetson_tx2" in refused(2, "evaluate", run, "--subnet", "latency-0.2ms")
    shutil.rmtree(run / "search")
    shutil.rmtree(run / "export")
    assert "give the folder of one: runs/tiny/devices/jetson_tx2, runs/tiny/dev" in refused(2, "export", run)
    device = run / "devices" / "zcu102"
    for command in ("train", "run"):
        assert "holds the search of a device" in refused(2, command, device, "--overwrite")
    assert "give the run, runs/tiny" in refused(2, "search", device, *TWO)


def test_a_later_device_joins_and_a_new_supernet_ends_them(searched, cli, contents):
    run, _ = searched
    before = contents(run / "devices")
    again = cli("search", run, "--devices", "jetson_tx2,raspberry_pi_5", "search.targets=[{latency_ms: 0.2}]")
    assert "devices/jetson_tx2: has been searched; use --resume" in again.error
    joined = ("--devices", "jetson_tx2,raspberry_pi_5", "raspberry_pi_5:search.targets=[{latency_ms: 0.1}]")
    result = cli("search", run, *joined, "--resume")
    assert result.code == 0, result
    assert front_of(run / "devices" / "raspberry_pi_5")["device"] == "raspberry_pi_5"
    after = contents(run / "devices")
    assert all(after[name] == before[name] for name in before if "/search/" in name)
    assert cli("train", run, "--overwrite").code == 0
    assert not (run / "devices").exists()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["quasar.search_stage:run_search", "search.run:append_line"])
def test_a_killed_search_goes_on_to_the_same_fronts(searched, run_copy, start_stopping, cli, contents, where):
    expected = contents(searched[0] / "devices")
    process = start_stopping("search", run_copy, *TWO, *TARGETS, where=where, count=2 if "stage" in where else 15)
    assert process.end(signal.SIGKILL).code == -signal.SIGKILL
    assert cli("search", run_copy, *TWO, *TARGETS).code == 2
    assert cli("search", run_copy, *TWO, "--resume").code == 0  # with the settings of the first call
    found = contents(run_copy / "devices")
    assert {name: found[name] for name in expected if not name.endswith(("timing.json", "config.yaml"))} == {
        name: expected[name] for name in expected if not name.endswith(("timing.json", "config.yaml"))
    }


@pytest.fixture
def run_copy(finished, here):
    """A finished run that was not searched for devices."""
    return Path(shutil.copytree(finished[0], "other/tiny"))


@pytest.mark.parametrize(
    ("code", "arguments", "problem"),
    [
        (2, ["--devices", "zcu102,jetson_tx"], "--devices: unknown device 'jetson_tx': did you mean 'jetson_tx2'"),
        (2, ["--devices", "zcu102, zcu102"], "is named zcu102, as zcu102 is; give each once"),
        (2, ["--devices", ","], "give names of devices by commas"),
        (2, ["--quantiles", "0.5"], "--quantiles is for searches with --devices"),
        (2, [*TWO, "--quantiles", "0,1"], "--quantiles must be shares in (0, 1] by commas"),
        (2, [*TWO, "--quantiles", "half"], "not 'half'"),
        (2, [*TWO, "--quantiles", "0.5", "search.targets=[{latency_ms: 1}]"], "give one of them"),
        (2, [*TWO, "--quantiles", "0.5,0.5"], "the same limit is given twice"),
        (2, [*TWO, "hardware.device=v100"], "devices and their folders are those of --devices"),
        (2, [*TWO, "output_dir=elsewhere"], "devices and their folders are those of --devices"),
        (2, [*TWO, "v100:search.targets=[{fps: 9}]"], "unknown device of --devices 'v100'"),
        (2, [*TWO, "zcu102:search.population=9"], "give search.population=9 for all"),
        (2, [*TWO, "jetson_tx2:hardware.array=[8,8]"], "hardware.array is about accelerators"),
        (2, [*TWO, "train.epochs=9"], "train.epochs was settled when the supernet was trained"),
        (2, [*TWO, "--resume", "--overwrite"], "exclude each other"),
        (4, [*TWO], "jetson_tx2: no subnet of the space meets 0.006 ms"),
        (4, [*TWO, "--quantiles", "0.5", "search.limits.latency_ms=1e-6"], "zcu102: none of 4000 random subnets"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_searched(refused, run, code, arguments, problem):
    assert problem in refused(code, "search", run, *arguments)


def test_a_profile_of_each_device(cli, config, here):
    measured_host().save(here / "host.yaml")
    result = cli("search", config, "--profile", "--devices", "zcu102,host.yaml", "--quantiles", "0.5", "--json")
    assert list(result.document["devices"]) == ["zcu102", "host"]
    assert [found["targets"][0]["status"] for found in result.document["devices"].values()] == ["ok", "ok"]
    text = cli("search", config, "--profile", "--devices", "zcu102,host.yaml", "--quantiles", "0.5")
    assert "on zcu102" in text.out
    assert "on host" in text.out


def test_a_study_for_each_device(cli, run):
    import optuna

    storage = "search.study.storage=sqlite:///studies.db"
    assert cli("search", run, *TWO, *TARGETS, storage, "search.evaluations=4", "search.population=4").code == 0
    assert optuna.get_all_study_names("sqlite:///studies.db") == ["tiny-zcu102", "tiny-jetson_tx2"]
