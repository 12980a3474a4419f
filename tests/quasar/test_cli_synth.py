"""`quasar hw synth`; the syntheses themselves are tested in tests/hwmodel/test_synth.py."""

import json

import pytest

from hwmodel import synth
from hwmodel.calibrate import design_config
from hwmodel.synth import ENGINE, VECTOR_UNIT, Counts, Synthesis


@pytest.fixture
def synthesised(monkeypatch):
    """A synthesis that finds what the model says, but for the block RAMs of the engine, which are `extra` more."""

    def install(extra=0):
        def synthesize(config):
            rows = synth.compare(config, Synthesis(tool="", tops=dict.fromkeys((ENGINE, VECTOR_UNIT), NOTHING)))
            counts = {top: {name: model for name, (model, _) in rows[top].items()} for top in (ENGINE, VECTOR_UNIT)}
            counts[ENGINE]["bram18"] += extra
            return Synthesis(tool="Yosys 0.23", tops={top: Counts(**values) for top, values in counts.items()})

        monkeypatch.setattr(synth, "synthesize", synthesize)

    return install


NOTHING = Counts(dsp=0, bram18=0, lut=1, ff=1)


def test_both_sides(cli, synthesised):
    synthesised()
    result = cli("hw", "synth", "--array", "8x8", "--backend", "dual")
    assert result.code == 0, result
    lines = {line.split()[0]: line.split() for line in result.out.splitlines()}
    assert lines["DSP"][1:5] == ["134", "134", "exact", "2,520"]  # 8*8 + 2*8 + 3*16 + 6
    assert lines["BRAM18"][3] == "exact"
    assert lines["LUT"][3] == "+0.0%"
    assert "estimate, +- " in result.out
    assert "Yosys 0.23" in result.out


def test_a_difference_is_shown_and_is_no_error(cli, synthesised):
    synthesised(extra=3)
    result = cli("hw", "synth", "--array", "8x8", "--backend", "dual")
    assert result.code == 0
    assert next(line for line in result.out.splitlines() if line.startswith("BRAM18")).split()[3] == "-3"


def test_json(cli, synthesised):
    synthesised(extra=1)
    document = json.loads(cli("hw", "synth", "--array", "4x8", "--backend", "atomic", "--json").out)
    assert document["accelerator"] == design_config(array=(4, 8), backend="atomic").to_dict()
    assert document["exact"] is False
    assert document["total"]["dsp"] == {"model": 102, "synthesis": 102}
    assert document[ENGINE]["bram18"]["synthesis"] == document[ENGINE]["bram18"]["model"] + 1
    assert set(document["fit_errors"]) == {"lut", "ff"}


def test_mistakes_are_one_line(cli, synthesised, monkeypatch):
    synthesised()
    assert cli("hw", "synth", "--array", "8x8").code == 2
    monkeypatch.undo()
    result = cli("hw", "synth", "--array", "64x32", "--backend", "dual")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "use at most 512 DSPs" in result.err
