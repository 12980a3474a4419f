"""Searches for row precisions alone, of a network that is not trained here."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from quasar.config import load_config
from quasar.pipeline import open_splits, open_test_split

ROWS = (
    "train.epochs=0",
    "space.embed_dim=[16]",
    "space.depth=[2]",
    "space.num_heads=[2]",
    "space.mlp_ratio=[2]",
    "space.high_precision_ratio=[0, 0.5, 1]",
    "search.algorithm=sensitivity",
    "search.signal=kl",
    "supernet.calibration_images=30",
    "search.targets=[{fps: 110000}, {fps: 1000}]",
)
RECIPE = Path(__file__).parents[2] / "experiments" / "vit-tiny-rows.yaml"
#: a folder with vit_tiny_patch16_224.safetensors and imagenet_1000.npz
DATA = os.environ.get("QUASAR_TEST_DATA")


@pytest.fixture
def searched(cli, config):
    result = cli("train", config, *ROWS)
    assert result.code == 0, result.err
    folder = Path("runs/tiny")
    result = cli("search", folder)
    assert result.code == 0, result.err
    return folder


def test_what_is_expected_of_rows_is_kept_and_read_again(cli, searched):
    front, expected = searched / "search" / "front.json", searched / "search" / "expected.json"
    nats = json.loads(expected.read_text(encoding="utf-8"))["nats"]
    assert len(nats) == 2 * 4
    assert all(np.diff(row).max() < 0 and row[-1] == 0 for row in nats.values())
    before, whole = front.read_bytes(), expected.read_bytes()
    assert json.loads(before)["algorithm"] == "sensitivity"
    for path in (front, searched / "search" / "trials.jsonl"):
        path.unlink()
    assert "rows: " not in cli("search", searched, "--resume").err
    assert front.read_bytes() == before
    expected.write_bytes(whole[:-20])
    front.unlink()
    result = cli("search", searched, "--resume")
    assert result.code == 3
    assert result.err.splitlines()[-1].startswith(f"error: {expected}: is not what a search expects of rows")


def test_other_spaces_are_refused_before_training(cli, config):
    result = cli("run", config, "search.algorithm=sensitivity")
    assert result.code == 2
    assert "space.embed_dim has 2 choices; leave one, or use search.algorithm=predictor" in result.error
    assert not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="QUASAR_TEST_DATA names no folder with a ViT-Tiny and images")
def test_a_pretrained_vit_from_weights_to_verified_bundles(cli, here):
    overrides = (
        f"supernet.init_from={DATA}/vit_tiny_patch16_224.safetensors",
        f"data.root={DATA}/imagenet_1000.npz",
        "search.targets=[{fps: 222.5}]",
        "search.evaluations=6",
        "supernet.calibration_images=40",
        "data.test_fraction=0.9",
        "name=rows",
        "threads=1",
    )
    config = load_config(RECIPE, overrides)
    splits = (*open_splits(config), open_test_split(config))
    images = [split._samples.images[split._indices] for split in splits]
    assert len(np.unique(np.concatenate(images), axis=0)) == sum(map(len, images)) == 1000
    assert cli("run", RECIPE, *overrides).code == 0
    (target,) = json.loads(Path("runs/rows/search/front.json").read_text(encoding="utf-8"))["targets"]
    assert target["cost"]["fps"] >= 222.5
    assert target["test_accuracy"] > 0.78  # 83.1 % in floats
    assert target["val_accuracy_integer"] > 0.7
    assert cli("verify", "runs/rows").code == 0
