"""Runs over a space that pools patches between blocks."""

import json
from pathlib import Path

import pytest
import yaml

from quasar.run_folder import RunFolder

POOLING = ("space.depth=[2]", "space.pooling=[[],[1]]", "search.targets=[{latency_ms: 0.0066}, {latency_ms: 1}]")
ON_TX2 = ("hardware.device=jetson_tx2", "hardware.array=null", "hardware.backend=null")
RUN = Path("runs/tiny")


@pytest.fixture
def trained(cli, config):
    result = cli("train", config, *POOLING)
    assert result.code == 0, result
    return RUN


def test_a_space_that_pools_is_trained_and_searched(cli, trained):
    assert yaml.safe_load((trained / "config.yaml").read_text())["space"]["pooling"] == [[1], []]
    result = cli("search", trained, "search.algorithm=random")
    assert result.code == 0, result
    genotypes = [
        json.loads(line)["genotype"] for line in (trained / "search" / "trials.jsonl").read_text().splitlines()
    ]
    assert {len(genotype) for genotype in genotypes} == {4 + 2 * 7}
    assert {genotype[3] for genotype in genotypes} == {0, 1}
    assert cli("report", trained).code == 0
    front = json.loads((trained / "search" / "front.json").read_text())
    pooled = [target for target in front["targets"] if "pooling" in target["subnet"]]
    assert ("pools before block" in (trained / "report.html").read_text()) == bool(pooled)
    for target in front["targets"]:
        assert (target["val_accuracy_integer"] is None) == ("pooling" in target["subnet"])


def test_a_subnet_that_pools_is_evaluated_and_not_exported(cli, trained):
    assert cli("evaluate", trained, "--subnet", "min", "--json").document["accuracy"] > 0
    result = cli("export", trained, "--subnet", "min")
    assert (result.code, result.out) == (2, "")
    assert "pooling of patches, here before block 1, has no integer form" in result.error
    assert not (trained / "export" / "min").exists()
    assert cli("export", trained, "--subnet", "max", "--format", "qdq").code == 0


def test_another_pooling_cannot_be_resumed(cli, config, trained, refused):
    error = refused(2, "train", config, POOLING[0], POOLING[2], "--resume")
    assert "pooling" in error


def test_mistakes_name_the_key(refused, config):
    assert "space" in (error := refused(2, "train", config, "space.pooling=[[1]]"))
    assert "pooling: a choice needs at least two blocks, and a network has one, not [1]" in error


def test_a_subnet_file_with_pooling_is_estimated(cli, trained, here):
    from supernet.checkpoint import Checkpoint

    space = Checkpoint.load(trained / "train" / "checkpoints" / "last.safetensors").space
    space.smallest().save(here / "pooled.yaml")
    result = cli("hw", "estimate", "pooled.yaml", "--array", "8x16", "--backend", "dual", "--json")
    assert result.code == 0, result
    assert "pools.1.merge" in {layer["name"] for layer in result.document["layers"]}


def test_what_can_be_exported_is(cli, trained):
    assert (
        cli("search", trained, "search.algorithm=random", "search.targets=[{latency_ms: 0.5}, {latency_ms: 1}]").code
        == 0
    )
    path = trained / "search" / "front.json"
    front = json.loads(path.read_text())
    space = RunFolder(trained).config().space
    subnets = [space.smallest(), space.largest()]
    assert [bool(subnet.pooling) for subnet in subnets] == [True, False]
    for target, subnet in zip(front["targets"], subnets, strict=True):
        target["subnet"] = subnet.to_dict()
    path.write_text(json.dumps(front))
    result = cli("export", trained)
    assert result.code == 0, result
    assert "warning: latency-0.5ms is not exported: pooling of patches, here before block 1" in result.err
    assert [bundle.name for bundle in (trained / "export").iterdir()] == ["latency-1ms"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("space.depth=[2]", "space.pooling=[[1]]", "search.targets=[{latency_ms: 1}]"), "pooling of patches"),
        ((*ON_TX2, "search.targets=[{latency_ms: 0.2}]"), "jetson_tx2 is no FPGA board"),
    ],
)
def test_a_run_of_which_nothing_can_be_exported_has_a_report(cli, config, settings, reason):
    result = cli("run", config, *settings)
    assert result.code == 0, result
    assert f"warning: nothing is exported: {reason}" in result.err
    assert (RUN / "report.html").exists()
    assert not (RUN / "export").exists()
