"""`search.executor=ray`: the same result as without, after kills too; and clusters that do not answer."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from hwmodel.errors import QuasarError
from quasar.config import changed_settings, load_config
from quasar.ray_cluster import check_answers

SETTINGS = ("search.evaluations=300", "search.racing.images=1", "search.batch_size=16", "search.top=2")
RAY = ("search.executor=ray", "search.workers=2")
FILES = ("search/front.json", "search/trials.jsonl", "evaluations.jsonl")


@pytest.fixture
def trained(finished, config):
    """Copies of a run that has not been searched, by name."""

    def copy(name):
        folder = Path("runs", name)
        shutil.copytree(finished[0], folder)
        for item in ("search", "export"):
            shutil.rmtree(folder / item)
        (folder / "evaluations.jsonl").unlink()
        return folder

    return copy


def search(*arguments):
    pytest.importorskip("ray")
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "quasar", "search", *map(str, arguments), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )


def finish(process):
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["accuracy", "kl"])
def test_ray_gives_the_files_that_a_local_search_gives(cli, trained, signal):
    here, there = trained("here"), trained("there")
    settings = (*SETTINGS, f"search.signal={signal}")
    expected = cli("search", here, *settings, "--json").document
    assert finish(search(there, *settings, *RAY)) == expected
    assert [(here / file).read_bytes() == (there / file).read_bytes() for file in FILES] == [True, True, True]


@pytest.mark.slow
def test_a_search_by_ray_that_is_killed_goes_on_to_the_same_front(cli, trained):
    whole, killed = trained("whole"), trained("killed")
    count = cli("search", whole, *SETTINGS, "--json").document["evaluations"]
    process, journal = search(killed, *SETTINGS, *RAY), killed / "search" / "trials.jsonl"
    end = time.monotonic() + 300
    while not (journal.exists() and journal.read_text().count("\n") > 20):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert journal.read_text().count("\n") < count
    finish(search(killed, *SETTINGS, *RAY, "--resume"))
    digests = [json.loads(line)["digest"] for line in journal.read_text().splitlines()]
    assert len(digests) == len(set(digests)) == count
    assert [(whole / file).read_bytes() == (killed / file).read_bytes() for file in FILES[:2]] == [True, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["search.workers=3"], "search.workers: the Ray cluster has room for 2, with 1 CPU core for each"),
        (["search.workers=2", "threads=2"], "has room for 1, with 2 CPU cores for each"),
    ],
)
def test_more_workers_than_the_cluster_has_room_for_are_refused(refused, run, monkeypatch, settings, message):
    pytest.importorskip("ray")
    monkeypatch.setattr("quasar.search_evaluator.cluster", lambda **_: nullcontext({"CPU": 2.0}))
    assert message in refused(2, "search", run, "search.executor=ray", *settings, "--overwrite")


def test_missing_ray_is_named_before_anything_is_touched(refused, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    error = refused(2, "search", run, "search.executor=ray", "--overwrite")
    assert "search.executor=ray needs Ray" in error
    assert "pip install 'quasar-nas[ray]'" in error


def test_a_dead_address_costs_nothing(refused, run, monkeypatch):
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    error = refused(1, "search", run, "search.executor=ray", "--overwrite")
    assert f"Ray cannot be reached at RAY_ADDRESS={address}: connection refused (waited 0 s of at most 10 s)" in error


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "no answer"),
        (None, "timed out (waited 0 s of at most 0 s)"),
        (b"HTTP/1.1 400 Bad Request\r\n", "what answers is not Ray"),
        (bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]), None),
    ],
)
def test_only_a_server_of_grpc_is_ray(answer, message):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                if answer is None:
                    time.sleep(0.5)
                else:
                    connection.recv(24)
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"ray://127.0.0.1:{server.getsockname()[1]}"
        within_s = 0.3 if answer is None else 10
        if message is None:
            check_answers(address, within_s=within_s)
        else:
            with pytest.raises(QuasarError, match="Ray cannot be reached") as caught:
                check_answers(address, within_s=within_s)
            assert message in str(caught.value)
        thread.join()


def test_addresses_without_a_port_are_left_to_ray_and_bad_ones_are_named():
    check_answers("auto")
    with pytest.raises(QuasarError, match=r"RAY_ADDRESS=127\.0\.0\.1:x: Port could not be cast"):
        check_answers("127.0.0.1:x")


def test_executor_and_workers_are_no_part_of_what_a_search_is(config):
    assert changed_settings(load_config(config), load_config(config, list(RAY))) == []


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("search.workers=2", "workers: 2 of them need executor: ray"),
        ("search.workers=0", "workers must be at least 1 or null, not 0"),
    ],
)
def test_impossible_workers(refused, config, setting, message):
    assert message in refused(2, "train", config, setting)
