import json

import pytest

from hwmodel.accelerator import AcceleratorColumns, AcceleratorConfig
from hwmodel.errors import UsageError


def test_dictionary_round_trip(config):
    accelerator = config(backend="atomic", clock_mhz=187.5)
    assert AcceleratorConfig.from_dict(json.loads(json.dumps(accelerator.to_dict()))) == accelerator


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"backend": "duall"}, "unknown backend 'duall': did you mean 'dual'"),
        ({"backend": ["dual"]}, "unknown backend"),
        ({"activations": "drr"}, "unknown activations 'drr': did you mean 'ddr'"),
        ({"array_rows": 0}, "array_rows must be a whole number from 1 to 4096, not 0"),
        ({"array_inputs": 2.0}, "array_inputs must be a whole number"),
        ({"vector_lanes": True}, "vector_lanes must be a whole number"),
        ({"max_tokens": -5}, "max_tokens must be"),
        ({"weight_stream_bits": 12}, "weight_stream_bits must be a multiple of 8, not 12"),
        ({"clock_mhz": 0}, "clock_mhz must be a number above 0"),
        ({"clock_mhz": float("nan")}, "clock_mhz must be"),
        ({"clock_mhz": "fast"}, "clock_mhz must be"),
        ({"activations": "ddr", "activation_buffer_bytes": 2047}, "activation_buffer_bytes .* 2048"),
    ],
)
def test_an_impossible_value_names_its_key(config, changes, problem):
    with pytest.raises(UsageError, match=problem):
        config(**changes)


def test_unknown_and_missing_keys(config):
    values = config().to_dict()
    with pytest.raises(UsageError, match="unknown accelerator key 'array_row': did you mean 'array_rows'"):
        AcceleratorConfig.from_dict({**values, "array_row": 3})
    del values["backend"]
    with pytest.raises(UsageError, match="accelerator key 'backend' is missing"):
        AcceleratorConfig.from_dict(values)


@pytest.mark.parametrize(
    ("backend", "bits", "rows"),
    [("dual", 2, 3), ("dual", 4, 3), ("dual", 5, 2), ("dual", 8, 2), ("atomic", 4, 2), ("atomic", 5, 1)],
)
def test_rows_per_dsp(config, backend, bits, rows):
    assert AcceleratorColumns.one(config(backend=backend)).rows_per_dsp(bits) == rows


@pytest.mark.parametrize("bits", [1, 9, 16])
def test_bits_that_no_lane_holds(config, bits):
    with pytest.raises(UsageError, match=f"weights of {bits} bits .* use 2 to 8"):
        AcceleratorColumns.one(config()).rows_per_dsp(bits)


def test_columns_of_many_stack_those_of_one(config):
    many = AcceleratorColumns.of([config(), config(backend="atomic", array_rows=6)])
    assert many.array_rows.tolist() == [[2], [6]]
    assert many.rows_per_dsp(8).tolist() == [[2], [1]]
