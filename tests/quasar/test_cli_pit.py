"""Commands about hardware on pooling ViTs: shape files and names of timm."""

import json

import pytest
import yaml
from measured_hosts import measured_host

SHAPE = {
    "image_size": 12,
    "patch_size": 2,
    "stride": 2,
    "in_chans": 1,
    "num_classes": 10,
    "widths": [8, 16],
    "depths": [1, 2],
    "heads": [2, 4],
}
FLAGS = ("--array", "8x16", "--backend", "dual")


@pytest.fixture
def shape(here):
    def write(**changes):
        path = here / "pit.yaml"
        path.write_text(yaml.safe_dump(SHAPE | changes))
        return path

    return write


def layers(cli, *arguments):
    result = cli("hw", "estimate", *arguments, "--json")
    assert result.code == 0, result
    document = json.loads(result.out)
    return document, {layer["name"]: layer for layer in document["layers"]}


def test_a_shape_file_is_estimated_on_a_board(cli, shape):
    document, by_name = layers(cli, shape(), *FLAGS)
    assert document["violations"] == []
    assert by_name["pools.1.merge"]["macs"] == 9 * 32 * 16


def test_a_shape_file_is_explored(cli, shape):
    result = cli("hw", "explore", shape(), "--array", "8x16", "--top", "2", "--json")
    assert result.code == 0, result
    assert [d["accelerator"]["array_rows"] for d in json.loads(result.out)["designs"]] == [8, 8]


def test_a_processor_and_a_measured_host_price_it(cli, shape, here):
    _, by_name = layers(cli, shape(), "--device", "jetson_tx2", "--ratio", "0.5")
    assert by_name["pools.1.merge"]["latency_us"] > 0
    assert by_name["pools.1.merge"]["weight_bytes"] == 16 * 32
    assert by_name["blocks.0.fc1"]["weight_bytes"] == 8 * (16 * 8 + 16 * 4) // 8  # of 32 rows
    path = here / "host.yaml"
    measured_host().save(path)
    document, by_name = layers(cli, shape(), "--device", path)
    # the host's proj, of 9 tokens, 32 inputs and 16 rows: see `measured_host`
    assert by_name["pools.1.merge"]["latency_us"] == pytest.approx(
        1 + 9 + 32 + 16 + 0.7 + 0.3 * 32 * 16 / 1000, abs=1e-3
    )
    assert document["violations"] == []
    result = cli("hw", "estimate", shape(pooling="depthwise"), "--device", path)
    assert (result.code, result.out) == (2, "")
    assert "layers of kind 'depthwise' were not measured on host" in result.error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": [1]}, "widths, depths and heads need one number for each stage, not 2, 1 and 2"),
        ({"pooling": "max"}, "pooling: Input should be 'merge' or 'depthwise' (given: 'max')"),
        ({"widhts": [8]}, "unknown key 'widhts': did you mean 'widths'?"),
    ],
)
def test_mistakes_name_the_file(cli, shape, changes, message):
    result = cli("hw", "estimate", shape(**changes), *FLAGS)
    assert (result.code, result.out) == (3, "")
    assert "pit.yaml: " in result.error
    assert message in result.error


def test_names_of_timm(cli):
    _, by_name = layers(cli, "pit_ti_224", "--device", "jetson_tx2")
    assert sum(layer["macs"] for layer in by_name.values()) == pytest.approx(0.7e9, rel=0.01)
    assert by_name["pools.1.conv"]["kind"] == "depthwise"
    result = cli("hw", "estimate", "pit_tiny_224")
    assert result.code == 2
    assert "'pit_tiny_224'" in result.error
    assert "pit_ti_224" in result.error
