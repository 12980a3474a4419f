import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from hwmodel.errors import UsageError
from supernet.data.config import DataConfig
from supernet.data.registry import DATASETS
from supernet.validation import validate


def test_pydantic_validates_the_dataclass():
    config = TypeAdapter(DataConfig).validate_python({"name": "digits", "mean": [0.5], "std": [0.25]})
    assert config == DataConfig(name="digits", mean=(0.5,), std=(0.25,))


@pytest.mark.parametrize("bad", [{}, {"name": "digits", "val_fractoin": 0.1}, {"name": "digits", "workers": "two"}])
def test_pydantic_refuses_missing_unknown_and_ill_typed_keys(bad):
    with pytest.raises(ValidationError):
        TypeAdapter(DataConfig).validate_python(bad)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("val_fraction", 0.0),
        ("val_fraction", 1.0),
        ("val_fraction", float("nan")),
        ("test_fraction", 0.0),
        ("test_fraction", 1.0),
        ("split_seed", -1),
        ("split_seed", 2**32),
        ("crop_padding", -1),
        ("workers", -1),
        ("max_unreadable", -1),
        ("random_erasing", 1.5),
        ("random_erasing", float("nan")),
        ("min_crop_scale", 0.0),
        ("min_crop_scale", 1.5),
        ("test_split", "train"),
        ("mean", (0.5,)),
    ],
)
def test_values_out_of_range_name_their_key(key, value):
    with pytest.raises(UsageError, match=key):
        validate(DataConfig, {"name": "digits", key: value}, source="run.yaml: data")


def test_std_must_be_positive():
    with pytest.raises(UsageError, match="std must be positive"):
        DataConfig(name="digits", mean=(0.5,), std=(0.0,))


def test_unknown_data_set_suggests_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'digits'"):
        DATASETS.get("digit")


def test_names_cost_no_heavy_import():
    code = (
        "import sys; from supernet.data.registry import DATASETS; DATASETS.names(); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'timm', 'sklearn')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
