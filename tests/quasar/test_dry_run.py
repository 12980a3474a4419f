from pathlib import Path

import pytest

from quasar.config import load_config
from quasar.hw_inputs import workload_of
from quasar.pipeline import check_names
from quasar.scaling.plan import load_study

RECIPES = [
    path for path in sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml")) if "tune-" not in path.name
]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid_and_say_what_to_expect(path):
    if path.stem.startswith("scale-"):
        check_names(load_study(path).config)
    elif path.stem.startswith("pit-"):
        assert workload_of(str(path), 0.5).macs == 711_565_824
    else:
        check_names(load_config(path))
    header = path.read_text().split("\n\n")[0]
    for part in ("command: ", "duration: ", "hardware: ", "expected: "):
        assert f"# {part}" in header


@pytest.mark.parametrize(
    "changes", [(), ("train.sampling.strategy=sandwich", "train.ema_decay=0.9", "train.mixup=0.8")]
)
def test_a_dry_run_needs_no_data_and_leaves_nothing(cli, config, here, changes):
    result = cli("train", config, "--dry-run", "--json", "data.name=folder", "data.root=/nowhere", *changes)
    assert result.code == 0, result.err
    document = result.document
    assert (document["workers"], document["images"], document["tokens"]) == (1, [128, 1, 8, 8], 5)
    assert document["images_per_second"] == pytest.approx(128 / document["seconds_per_step"]["sampled"])
    assert document["peak_memory_gib"] > 0.05
    assert [path.name for path in here.iterdir()] == [config.name]
    shown = cli("train", config, "--dry-run")
    assert shown.code == 0
    assert "1 worker(s) on cpu, 128 images of 1 x 8 x 8 each" in shown.out


def test_a_dry_run_says_what_cannot_work(cli, config):
    result = cli("train", config, "--dry-run", "search.targets=[{latency_ms: 1.0e-9}]")
    assert result.code == 4
    assert "no subnet of the space meets 1e-09 ms" in result.error
