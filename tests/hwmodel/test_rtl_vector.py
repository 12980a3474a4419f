"""The vector unit in simulation: outputs against the integer reference, cycles against the closed form.

The first run builds the units, into the user's cache (see `hwmodel.rtl_build`); later runs find them there.
"""

import shutil
import subprocess

import numpy as np
import pytest

import hwmodel.rtl_build
from hwmodel.errors import QuasarError, UsageError
from hwmodel.integer_vector import (
    IntegerLayerNorm,
    IntegerResidual,
    IntegerSoftmax,
    LayerNormConstants,
    exponential_table,
)
from hwmodel.simulate_vector import VectorJob, simulate_vector
from hwmodel.vector_cycles import vector_operation_cycles

needs_tools = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("verilator", "g++", "make")),
    reason="verilator, g++ and make simulate the RTL; apt-get install verilator g++ make",
)

OPERATIONS = (IntegerResidual, IntegerSoftmax, IntegerLayerNorm)
UNIT = {"lanes": 8, "stream_bits": 64, "max_tokens": 256}


def random_jobs(count, *, lanes, seed):
    """All operations in turn: one row and many, one beat and many, ragged; a third of them with pausing streams."""
    rng = np.random.default_rng(seed)
    jobs = []
    for index in range(count):
        operation = OPERATIONS[index % 3]
        widest = 256 if operation is IntegerSoftmax else 1024
        widths = [1, lanes, int(rng.integers(1, 2 * lanes + 1)), int(rng.integers(1, 257)), 197, widest]
        width = int(rng.choice(widths))
        rows = min(int(rng.choice([1, 2, 3, int(rng.integers(1, 201)), 200])), max(1, 30_000 // width))
        jobs.append(
            VectorJob(
                operation=operation.random(rng, rows=rows, width=width),
                stall=0.3 if index // 3 % 3 == 2 else 0.0,
                seed=index,
                reset_after=int(rng.integers(1, 400)) if index % 7 == 0 else None,
            )
        )
    return jobs


def differing(jobs, results):
    """Operations whose outputs differ, whose cycles differ without stalls, or that gained from stalls."""
    return [
        (job.kind, job.operation.rows, job.operation.width, job.stall, result)
        for job, result in zip(jobs, results, strict=True)
        if result.mismatching_outputs
        or (not job.stall and result.simulated_cycles != result.predicted_cycles)
        or result.simulated_cycles < result.predicted_cycles
    ]


@pytest.mark.parametrize(
    ("kind", "rows", "width", "lanes", "stream_bits", "cycles"),
    [
        ("residual", 197, 192, 16, 128, 197 * 12 + 3),
        ("softmax", 197, 197, 16, 128, 198 * 13 + 29 + 8),
        ("softmax", 1, 1, 1, 8, 2 + 29),
        # parameters are there before they are needed
        ("layernorm", 197, 192, 16, 128, (24 + 66) + 196 * 12 + 7),
        # 6 beats for each of 12 groups, and 2 cycles, against 90
        ("layernorm", 197, 192, 16, 64, (144 + 2) + 196 * 12 + 7),
        ("layernorm", 1, 1, 1, 8, 64 + 7),
    ],
)
def test_cycles_by_hand(kind, rows, width, lanes, stream_bits, cycles):
    assert vector_operation_cycles([kind], rows, width, lanes, stream_bits) == [cycles]


def test_cycles_of_many_units_at_once():
    lanes, widths = np.array([[8], [16], [12]]), np.array([64, 197])
    table = vector_operation_cycles(["softmax", "softmax"], 10, widths, lanes, 64)
    assert table.tolist() == [[11 * 8 + 35, 11 * 25 + 35], [11 * 4 + 37, 11 * 13 + 37], [11 * 6 + 37, 11 * 17 + 37]]


def test_cycles_of_an_unknown_operation():
    with pytest.raises(UsageError, match="vector operation 'gelu' is unknown; known: residual, softmax, layernorm"):
        vector_operation_cycles(["gelu"], 1, 1, 8, 64)


@needs_tools
@pytest.mark.slow
@pytest.mark.parametrize(
    ("lanes", "stream_bits", "count"), [(8, 64, 90), (16, 128, 90), (32, 512, 60), (1, 8, 30), (3, 40, 45)]
)
def test_random_operations(lanes, stream_bits, count):
    jobs = random_jobs(count, lanes=lanes, seed=lanes)
    results = simulate_vector(lanes=lanes, stream_bits=stream_bits, max_tokens=256, jobs=jobs)
    assert differing(jobs, results) == []


@needs_tools
@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_rows_of_one_beat_follow_each_other(operation):
    rng = np.random.default_rng(0)
    jobs = [VectorJob(operation=operation.random(rng, rows=200, width=width)) for width in (1, 7, 8)]
    assert differing(jobs, simulate_vector(**UNIT, jobs=jobs)) == []


@needs_tools
@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_reset_at_any_time_leaves_nothing_behind(operation):
    rng = np.random.default_rng(0)
    jobs = [
        VectorJob(operation=operation.random(rng, rows=3, width=30), reset_after=cycles, seed=cycles)
        for cycles in range(1, 110)
    ]
    assert differing(jobs, simulate_vector(**UNIT, jobs=jobs)) == []


@needs_tools
@pytest.mark.slow
def test_extremes():
    rng = np.random.default_rng(0)
    jobs = []
    for width in (1, 9, 1000, 1023, 1024):
        x = np.stack(
            [
                *(np.full(width, value) for value in (-32768, -1, 0, 1, 32767)),
                rng.choice([-32768, 32767], width),
                np.where(np.arange(width) == width // 2, 32767, 0),
                np.where(np.arange(width) == width - 1, -32768, 1),
            ]
        ).astype(np.int16)
        jobs.append(VectorJob(operation=IntegerResidual(x=x, y=x[::-1].copy())))
        for gain, bias, shift, epsilon in (
            (32767, 2**31 - 1, 31, 1),
            (-32768, -(2**31), 1, 2**40 - 1),
            (-32768, 2**31 - 1, 24, 1),
            (1, 0, 1, 1),
            (4096, -5, 18, 2**20),
        ):
            constants = LayerNormConstants(
                gain=np.full(width, gain, dtype=np.int16),
                bias=np.full(width, bias, dtype=np.int32),
                shift=shift,
                epsilon=epsilon,
            )
            jobs.append(VectorJob(operation=IntegerLayerNorm(x=x, constants=constants)))
    for width in (1, 9, 256):
        scores = np.stack([np.full(width, -128), np.full(width, 127), rng.choice([-128, 127], width)]).astype(np.int8)
        one = np.eye(1, 256, dtype=np.uint8)[0]
        for table, numerator, exponent in (
            (exponential_table(0.001), 2**16 - 1, 1),
            (exponential_table(9.0), 2**15, 23),
            (one, 2**15, 1),
            (one, 2**16 - 1, 38),
        ):
            operation = IntegerSoftmax(scores=scores, table=table, numerator=numerator, exponent=exponent)
            jobs.append(VectorJob(operation=operation))
    assert differing(jobs, simulate_vector(**UNIT, jobs=jobs)) == []


@needs_tools
@pytest.mark.slow
def test_a_cycle_cap_ends_a_simulation():
    operation = IntegerResidual.random(np.random.default_rng(0), rows=4, width=80)
    with pytest.raises(QuasarError, match="operation 1 is not done after 20 cycles; raise its cycle cap"):
        simulate_vector(**UNIT, jobs=[VectorJob(operation=operation), VectorJob(operation=operation, cycle_cap=20)])


@needs_tools
@pytest.mark.parametrize(("lanes", "stream_bits"), [(8, 64), (1, 8), (3, 40), (64, 128)])
def test_lint(lanes, stream_bits):
    folder = hwmodel.rtl_build.RTL_FOLDER
    command = ["verilator", "--lint-only", "-Wall", "--top-module", "quasar_vector", f"-GLANES={lanes}"]
    sources = [*sorted(folder.glob("*.vlt")), *hwmodel.rtl_build.modules_under("quasar_vector")]
    lint = subprocess.run([*command, f"-GPW={stream_bits}", *sources], capture_output=True, text=True, check=False)
    assert lint.stderr == ""
    assert lint.returncode == 0


def test_what_does_not_fit_the_unit():
    operation = IntegerSoftmax.random(np.random.default_rng(0), rows=1, width=257)
    with pytest.raises(UsageError, match="257 tokens exceed max_tokens 256"):
        simulate_vector(**UNIT, jobs=[VectorJob(operation=operation)])
    with pytest.raises(UsageError, match="lanes and whole bytes of a stream, not 8 and 60 bits"):
        simulate_vector(lanes=8, stream_bits=60, max_tokens=256, jobs=[])


@pytest.mark.parametrize("values", [{"stall": 1.0}, {"stall": -0.1}, {"seed": -1}, {"cycle_cap": 0}])
def test_bad_jobs(values):
    operation = IntegerResidual.random(np.random.default_rng(0), rows=1, width=1)
    with pytest.raises(UsageError, match=f"{next(iter(values))} must be"):
        VectorJob(operation=operation, **values)


MUTATIONS = {
    "rounding of zeta": ("quasar_layernorm.sv", "43'd1 << (shift2 - 6'd1)", "43'd0"),
    "clip of zeta": ("quasar_layernorm.sv", "zeta7 <= 18'sd131071", "zeta7 <= fine6[17:0]"),
    "rounding of the mean": ("quasar_statistics.sv", "(51'sd1 <<< ({1'b0, mean_shift} + 5'd15))", "51'sd0"),
    "epsilon": ("quasar_statistics.sv", "wide + 52'(epsilon)", "wide"),
    "wait for a group": ("quasar_layernorm.sv", "{1'b0, group} >= loaded", "1'b0"),
    "mask of the scores": ("quasar_softmax.sv", "in_keep[i] ? x_data[8*i+:8] : 8'h80", "x_data[8*i+:8]"),
    "wide quotients": ("quasar_softmax.sv", "quotient[16] ? quotient[16:1] : quotient[15:0]", "quotient[15:0]"),
    "factors in time": ("quasar_softmax.sv", "OUTPUT = LEVELS + 1 + FACTOR", "OUTPUT = LEVELS + FACTOR"),
    "clip of the sum": ("quasar_residual.sv", "sum[16] != sum[15]", "1'b0"),
}


@needs_tools
@pytest.mark.slow
@pytest.mark.parametrize("what", MUTATIONS)
def test_mistakes_in_the_rtl_are_found(what, monkeypatch, tmp_path):
    name, right, wrong = MUTATIONS[what]
    folder = tmp_path / "rtl"
    shutil.copytree(hwmodel.rtl_build.RTL_FOLDER, folder)
    text = (folder / name).read_text()
    assert text.count(right) == 1
    (folder / name).write_text(text.replace(right, wrong))
    monkeypatch.setattr(hwmodel.rtl_build, "RTL_FOLDER", folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rng = np.random.default_rng(5)
    jobs = random_jobs(45, lanes=2, seed=5)
    x = np.zeros((1, 1024), dtype=np.int16)
    x[0, 5] = 1  # 32 deviations: the only way to reach the clip
    constants = LayerNormConstants(
        gain=np.full(1024, 4096, dtype=np.int16), bias=np.zeros(1024, dtype=np.int32), shift=23, epsilon=1
    )
    jobs.append(VectorJob(operation=IntegerLayerNorm(x=x, constants=constants)))
    jobs.append(VectorJob(operation=IntegerLayerNorm.random(rng, rows=2, width=64)))
    try:
        found = bool(differing(jobs, simulate_vector(lanes=2, stream_bits=8, max_tokens=256, jobs=jobs)))
    except QuasarError as error:
        found = "broke the protocol of a stream" in str(error)
    assert found
