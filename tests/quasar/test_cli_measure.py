"""`quasar hw measure`, with plans of a second, and what the other commands make of CPUs and GPUs."""

import dataclasses
import json

import numpy as np
import pytest
import yaml

from hwmodel.device import load_hardware
from hwmodel.measured import OPERATORS
from hwmodel.processor_cost import RooflineCostModel
from quasar.measuring import measure as measuring
from quasar.measuring import plan as plans
from quasar.measuring.plan import FULL, QUICK, Networks
from supernet.lowering import lower

TINY = dataclasses.replace(
    QUICK,
    tokens=(1, 10),
    widths=(2, 64),
    hidden=(2, 256),
    grids=(1, 3),
    heads=(1, 4),
    head_dims=(2, 16),
    patch_grids=(1, 3),
    patch_sizes=(1, 4),
    embed_widths=(2, 64),
    rounds=2,
    burst_s=0.0,
    most_macs=5e6,
    most_weights=1e6,
)


@pytest.fixture
def tiny(monkeypatch, here):
    monkeypatch.setattr(plans, "QUICK", TINY)
    monkeypatch.setattr(plans, "FITTED", 2)
    monkeypatch.setattr(plans, "CHECKED", 3)
    return here


@pytest.fixture
def subnet(here, space):
    path = here / "subnet.yaml"
    path.write_text(yaml.safe_dump(space.largest().to_dict()))
    return path


def measure(cli, *arguments, runtime="torch", out="host.yaml"):
    return cli("hw", "measure", "--runtime", runtime, "--quick", "--threads", 1, "--out", out, *arguments)


class TestMeasure:
    @pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
    def test_a_host_file_estimates_networks(self, tiny, cli, subnet, runtime):
        result = measure(cli, "--power-w", 20, "--json", runtime=runtime)
        assert result.code == 0, result
        document = json.loads(result.out)
        assert (document["device"], document["clock"]) == ("host.yaml", "CPU time of one thread")
        assert len(document["check_ms"]) == 3
        assert list(tiny.glob(".host*")) == []
        host = load_hardware(tiny / "host.yaml")
        assert host.name == "host"
        assert host.host.versions.keys() == {runtime}
        assert set(host.operators) == set(OPERATORS)
        assert host.operators["linear_up"].time_us.shape == (2, 2, 2)
        assert host.operators["attention"].time_us.shape == (2, 2, 2)
        assert all(np.isfinite(grid.time_us).all() for grid in host.operators.values())
        assert host.operators["linear_up"].time_us[1, 1, 1] > host.operators["linear_up"].time_us[0, 0, 0] > 0
        assert all(network.measured_ms > 0 for network in host.check)
        estimate = cli("hw", "estimate", subnet, "--device", "host.yaml", "--json")
        assert estimate.code == 0, estimate
        cost = json.loads(estimate.out)
        assert cost["energy_mj"] == pytest.approx(20 * cost["latency_ms"])
        # ten tokens were measured, and the largest subnet has seventeen
        assert any(
            "tokens 17 of blocks.0.qkv lie outside 1 to 10, where linear_up" in sentence
            for sentence in cost["violations"]
        )

    def test_it_says_how_good_the_table_is(self, tiny, cli):
        result = measure(cli)
        assert result.code == 0, result
        for words in ("plain float32", "points of 8 operators", "check: 3 other networks", "wrote host.yaml"):
            assert words in result.out
        host = load_hardware(tiny / "host.yaml")
        assert f"error {host.median_error:.1%} in the median" in result.out
        assert ("warning: the median error" in result.err) == (host.median_error > 0.1)

    def test_a_stopped_measurement_goes_on(self, tiny, cli, monkeypatch):
        timed = []
        burst = measuring.burst_us

        def stopping(run, clock, *, burst_s):
            timed.append(run)
            if len(timed) == stop:
                raise KeyboardInterrupt
            return burst(run, clock, burst_s=burst_s)

        monkeypatch.setattr(measuring, "burst_us", stopping)
        stop = 2
        assert measure(cli).code == 130  # within the first round, of which nothing is kept
        timed.clear()
        stop = None
        assert measure(cli, "--resume", out="all.yaml").code == 0
        a_round = len(timed) // TINY.rounds
        timed.clear()
        stop = a_round + 5
        stopped = measure(cli, "--resume")
        assert (stopped.code, "continue with --resume" in stopped.err) == (130, True)
        journal = tiny / ".host.yaml.rounds.jsonl"
        assert len(journal.read_text().splitlines()) == 2
        refused = measure(cli)
        assert (refused.code, "use --resume to go on or --overwrite" in refused.err) == (2, True)
        with journal.open("a") as file:
            file.write("[1.0, 2.")  # what a kill leaves
        timed.clear()
        stop = None
        assert measure(cli, "--resume").code == 0
        assert len(timed) == a_round
        assert not journal.exists()

    def test_a_journal_of_something_else_is_refused(self, tiny, cli):
        journal = tiny / ".host.yaml.rounds.jsonl"
        for text, code, problem in (
            ('{"host": {}}\n', 2, "is of another host, version or plan; use --overwrite"),
            ("[1, 2]\nnonsense\n", 3, "cannot be read as rounds of a measurement; use --overwrite"),
            ("", 3, "cannot be read as rounds of a measurement; use --overwrite"),
        ):
            journal.write_text(text)
            result = measure(cli, "--resume")
            assert (result.code, problem in result.err) == (code, True), result
            assert journal.read_text() == text
        assert measure(cli, "--overwrite").code == 0

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (["--out", "host.txt"], "--out must end in .yaml or .yml, not 'host.txt'"),
            (["--out", "there.yaml"], "there.yaml: exists; give another --out, or --overwrite"),
            (["--power-w", "0"], "--power-w must be positive, not 0.0"),
            (["--seed", "-1"], "--seed must not be negative"),
            (["--resume", "--overwrite"], "--resume and --overwrite exclude each other"),
            (["--runtime", "tensorrt"], "--runtime must be onnxruntime or torch, not 'tensorrt'"),
        ],
    )
    def test_mistakes_get_one_line(self, here, cli, arguments, problem):
        (here / "there.yaml").write_text("name: x\n")
        result = measure(cli, *arguments)
        assert (result.code, result.out) == (2, "")
        assert problem in result.err
        assert len(result.err.strip().splitlines()) == 1
        assert [path.name for path in here.iterdir()] == ["there.yaml"]


class TestPlans:
    @pytest.mark.parametrize("plan", [FULL, QUICK], ids=["full", "quick"])
    def test_networks_lie_within_what_is_measured_and_far_apart(self, plan):
        networks = Networks.of(plan, seed=1)
        assert networks != Networks.of(plan, seed=2)
        assert len(networks.fitted) == 18
        assert len(networks.checked) == 30
        assert not set(networks.fitted) & set(networks.checked)
        macs = [lower(subnet).macs for subnet in networks.checked]
        assert max(macs) > 100 * min(macs)
        assert max(macs) <= plan.most_macs
        for subnet in (*networks.fitted, *networks.checked):
            assert subnet.tokens <= plan.tokens[-1]
            assert max(subnet.embed_dim, subnet.num_classes) <= min(plan.widths[-1], plan.embed_widths[-1])
            assert subnet.image_size // subnet.patch_size <= min(plan.grids[-1], plan.patch_grids[-1])
            assert subnet.patch_size <= plan.patch_sizes[-1]
            assert subnet.head_dim <= plan.head_dims[-1]
            for block in subnet.blocks:
                inner = block.num_heads * subnet.head_dim
                assert max(block.mlp_ratio * subnet.embed_dim, 3 * inner) <= plan.hidden[-1]
                assert block.num_heads <= plan.heads[-1]


class TestProcessors:
    def test_devices_of_all_kinds_are_listed(self, cli):
        devices = json.loads(cli("hw", "devices", "--json").out)
        kinds = {name: device["kind"] for name, device in devices.items()}
        assert kinds["zcu102"] == "fpga"
        assert {"jetson_tx2", "jetson_nano", "v100", "h100", "raspberry_pi_5"} <= kinds.keys()
        assert {kinds[name] for name in ("jetson_tx2", "h100")} == {"roofline"}
        assert devices["v100"]["peak_gops"]["fp16"] == 125000
        text = cli("hw", "devices").out
        assert "NVIDIA Jetson TX2 module" in text
        assert "AMD ZCU102" in text

    def test_an_estimate_is_that_of_the_model(self, cli, subnet, space):
        result = cli("hw", "estimate", subnet, "--device", "jetson_tx2", "--json")
        assert result.code == 0, result
        cost = RooflineCostModel(load_hardware("jetson_tx2")).estimate(lower(space.largest()))
        document = json.loads(result.out)
        assert document["latency_ms"] == cost.latency_ms
        assert "dsp" not in document
        assert "accelerator" not in document
        text = cli("hw", "estimate", subnet, "--device", "jetson_tx2").out
        for words in ("layernorm", "launch", "FPS", "a roofline at fp16", "nothing here was measured"):
            assert words in text

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (["estimate", "{subnet}", "--device", "h100", "--array", "8x8"], "--array is about the accelerator"),
            (["estimate", "{subnet}", "--device", "h100", "--plot", "p.png"], "--plot is about the accelerator"),
            (["explore", "{subnet}", "--device", "h100"], "h100 is no FPGA board"),
            (["synth", "--array", "8x8", "--backend", "dual", "--device", "h100"], "h100 is no FPGA board"),
            (["estimate", "{subnet}", "--device", "h10"], "did you mean 'h100'"),
        ],
    )
    def test_what_is_about_boards_says_so(self, cli, subnet, arguments, problem):
        result = cli("hw", *(argument.format(subnet=subnet) for argument in arguments))
        assert (result.code, result.out) == (2, "")
        assert problem in result.err
        assert len(result.err.strip().splitlines()) == 1

    def test_a_table_of_another_host_warns(self, tiny, cli, subnet):
        assert measure(cli).code == 0
        path = tiny / "host.yaml"
        path.write_text(path.read_text().replace("cpu: ", "cpu: Another "))
        result = cli("hw", "estimate", subnet, "--device", "host.yaml", "--json")
        assert result.code == 0
        assert result.err.startswith("warning: host was measured on Another ")
        assert "measure again with 'quasar hw measure --runtime torch'" in result.err
        assert len(result.err.strip().splitlines()) == 1
        assert json.loads(result.out)["latency_ms"] > 0
