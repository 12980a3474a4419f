"""A study of a few seconds."""

import copy

import pytest
import yaml

from quasar.config import apply_override
from quasar.scaling.plan import load_study

STUDY = {
    "name": "tiny",
    "threads": 1,
    "data": {"name": "digits", "val_fraction": 0.2},
    "space": {
        "num_classes": 10,
        "in_chans": 1,
        "patch_size": 4,
        "head_dim": 8,
        "image_size": [8, 12],
        "embed_dim": [8, 16, 24],
        "depth": [1, 2, 3],
        "num_heads": "embed",
        "mlp_ratio": [1, 2],
        "high_precision_ratio": [1.0],
    },
    "train": {"epochs": 1, "batch_size": 256, "lr": 3e-3, "warmup_epochs": 0.5},
    "hardware": {"array": [8, 16], "backend": "dual"},
    "scale": {
        "budgets": [{"macs": 10e3}, {"macs": 40e3}],
        "baseline": {
            "depth": 1,
            "embed_dim": 16,
            "num_heads": 2,
            "mlp_ratio": 1,
            "image_size": 8,
            "patch_size": 4,
        },
        "tolerance": 0.3,
        "candidates": 3,
        "best": 2,
        "confirm_seeds": 1,
    },
}


@pytest.fixture(scope="session")
def study_settings():
    """The study as plain data."""
    return STUDY


@pytest.fixture
def write_study(tmp_path):
    """Writes the study with overrides, and gives the path of the file."""

    def write(*overrides):
        data = copy.deepcopy(STUDY)
        for override in overrides:
            apply_override(data, override)
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        return path

    return write


@pytest.fixture
def study(write_study):
    """The study, read."""
    return lambda *overrides: load_study(write_study(*overrides))
