"""`quasar follow` and `quasar serve`: what they print, and how they end."""

import shutil
import sys

import pytest

from quasar.runtime.listen import bound

FAST, LARGE = 1e-6, 1e6


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(f"time_s,latency_ms\n0,{LARGE}\n1,{FAST}\n2,{LARGE}\n")
    return path


@pytest.fixture
def folders(bundles):
    return [bundle.folder for bundle in bundles]


def test_follow_reports_the_trace_beside_every_subnet(cli, trace, folders, bundles):
    result = cli("follow", trace, *folders, "--json")
    assert result.code == 0
    document = result.document
    cost = {bundle.folder.name: bundle.manifest.cost for bundle in bundles}
    fastest = min(cost, key=lambda name: cost[name]["latency_ms"])
    assert document["limited"] == "latency_ms"
    assert document["accuracy_of"] == "validation"
    assert document["best_static"] is None
    assert document["controller"]["missed"] == 1
    assert document["controller"]["switches"] == 2
    assert {name: use["images"] for name, use in document["controller"]["subnets"].items()} == {"s4": 2, fastest: 1}
    energy = 2 * cost["s4"]["energy_mj"] + cost[fastest]["energy_mj"]
    assert document["controller"]["energy_mj"] == pytest.approx(energy)
    assert set(document["static"]) == set(cost)

    text = cli("follow", trace, *folders, "--fps", 10)
    assert text.code == 0
    assert "2 switches; no subnet alone meets every budget" in text.out
    assert "s4: 11 images" in text.out


def test_a_run_folder_stands_for_its_bundles(cli, trace, folders, tmp_path):
    for folder in folders[:2]:
        shutil.copytree(folder, tmp_path / "run" / "export" / folder.name)
    assert set(cli("follow", trace, tmp_path / "run", "--json").document["static"]) == {"s0", "s1"}


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("time_s,latency_ms\n0,1\n0,1\n", 3, "trace.csv, line 3: time_s 0 does not come after 0"),
        ("time_s,latency_ms\n0,nan\n", 3, "trace.csv, line 2: latency_ms must be finite"),
    ],
)
def test_bad_traces_end_with_file_and_line(cli, trace, folders, text, code, message):
    trace.write_text(text)
    result = cli("follow", trace, *folders)
    assert result.code == code
    assert message in result.error


def test_folders_that_are_no_bundles_are_refused(cli, trace, tmp_path):
    assert cli("follow", trace, tmp_path / "nothing").code == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    result = cli("follow", trace, empty)
    assert result.code == 3
    assert "manifest.json: is missing" in result.error


def test_a_missing_package_is_named_with_the_command_that_installs_it(cli, folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = cli("serve", *folders)
    assert result.code == 2
    assert "pip install 'quasar-nas[serve]'" in result.error


def test_an_address_in_use_is_refused_at_once(cli, folders):
    with bound("127.0.0.1", 0) as listener:
        listener.socket.listen()
        result = cli("serve", *folders, "--port", listener.socket.getsockname()[1])
    assert result.code == 2
    assert "cannot be listened on" in result.error
    assert "--port" in result.error


def test_options_out_of_range_are_refused(cli, folders):
    for option in (("--latency-ms", 0), ("--energy-mj", "nan"), ("--max-megapixels", 0)):
        result = cli("serve", folders[0], "--port", 0, *option)
        assert result.code == 2
        assert "must be" in result.error
