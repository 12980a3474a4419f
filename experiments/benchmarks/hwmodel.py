"""How fast the cost model is: populations, single networks, and grids of accelerators.

    python experiments/benchmarks/hwmodel.py [--quick]

All times are CPU seconds of one process on one thread, the best of several runs. `--quick` leaves out the race with
SCALE-Sim and ZigZag. The last line is JSON, and the exit status 1 if a mark is missed (`missed` names them):

    subnets_per_s             `estimate_many` on 10,000 random subnets of 12 blocks (mark: 400,000)
    lower_and_estimate_per_s  the same from genotypes on: arrays, lowering and estimation (mark: 400,000)
    estimate_us               `FpgaCostModel.estimate` of one network of 12 blocks, layer by layer (mark: 200 us)
    dse_configs_per_s         designs that `explore` compares, fitting or not; the slowest of two boards, activations on
                              chip and in memory, one network and three (mark: 10,000)
    over_plain_python         how many times as long a loop in plain Python takes for a network; it computes the cycles
                              of the products alone, the same integers, and `estimate_many` vectors and energy besides
    scalesim_cpu_s, zigzag_cpu_s   see peers.py
"""

# ruff: noqa: E402  (what comes before NumPy and before the package has to)

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # before NumPy comes
# The folder of a script comes first on the path, and there this file hides the package that it measures.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
if __name__ == "hwmodel":  # another script of this folder asked for the package: it gets it
    del sys.modules["hwmodel"]
    import hwmodel  # noqa: F401

import numpy as np

from hwmodel.accelerator import BACKENDS, AcceleratorColumns, AcceleratorConfig
from hwmodel.cost import FpgaCostModel
from hwmodel.cycles import gemm_cycles
from hwmodel.device import load_device
from hwmodel.explore import best_accelerator, design_grid, explore
from hwmodel.workload import Gemm, Workload
from supernet.lowering import lower, lower_many
from supernet.space import SearchSpace

SPACE = SearchSpace(
    num_classes=1000,
    in_chans=3,
    patch_size=16,
    head_dim=64,
    image_size=(224,),
    embed_dim=(192, 216, 240),
    depth=(12,),
    num_heads=(3, 4),
    mlp_ratio=(3.5, 4.0),
    high_precision_ratio=(0.0, 0.25, 0.5, 1.0),
)
SUBNETS = 10_000
LOOPED = 50  # of them, in plain Python

#: figure, whether it must be at least or at most the mark, the mark
MARKS = [
    ("subnets_per_s", "at least", 400_000),
    ("lower_and_estimate_per_s", "at least", 400_000),
    ("estimate_us", "at most", 200),
    ("dse_configs_per_s", "at least", 10_000),
]


def cpu_s(call: Callable[[], object], *, repeats: int = 7) -> float:
    """CPU seconds of one call: the best of `repeats`, after one that does not count."""
    call()
    best = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        call()
        best = min(best, time.process_time() - started)
    return best


def plain_product(config: AcceleratorConfig, gemm: Gemm, high_bits: int, low_bits: int) -> int:
    """Cycles of one product by the formula of `hwmodel.cycles`, written down once more, for activations on chip."""
    backend = BACKENDS[config.backend]
    k_tiles = -(-gemm.inputs // config.array_inputs)
    tokens = max(gemm.tokens, 2)
    levels = config.array_inputs if config.backend == "atomic" else (config.array_inputs - 1).bit_length()
    latency = 5 + levels
    cycles, last_drain = 0, 0
    for rows, bits in ((gemm.rows_high, high_bits), (gemm.rows_low, low_bits)):
        tile_rows = (backend.narrow_rows if bits <= 4 else backend.wide_rows) * config.array_rows
        groups = -(-8 * tile_rows // config.output_stream_bits)
        header = groups * -(-7 * config.output_stream_bits // config.weight_stream_bits)
        weights = -(-(4 if bits <= 4 else 8) * tile_rows * config.array_inputs // config.weight_stream_bits)
        drain = gemm.tokens * groups
        for _ in range(-(-rows // tile_rows)):
            steps = (k_tiles - 1) * max(tokens, weights)
            if cycles:
                cycles += max(max(tokens, header + weights) + steps, latency + last_drain)
            else:
                cycles = 1 + header + weights + steps
            last_drain = drain
    return (cycles + latency + last_drain + 9) * gemm.count if cycles else 0


def plain_network(config: AcceleratorConfig, workload: Workload) -> int:
    return sum(plain_product(config, gemm, workload.high_bits, workload.low_bits) for gemm in workload.gemms)


def population_figures() -> dict[str, float]:
    """Figures of populations and of single networks, on the best accelerator of the ZCU102."""
    device, largest = load_device("zcu102"), lower(SPACE.largest())
    config = best_accelerator([largest], device)
    model = FpgaCostModel(device, config)
    genotypes = SPACE.sample(np.random.default_rng(0), SUBNETS)
    population = lower_many(SPACE.arrays(genotypes))
    workloads = [population.workload(index, name=str(index)) for index in range(LOOPED)]

    products = population.gemm_totals(gemm_cycles(AcceleratorColumns.one(config), population)[0])
    plain = [plain_network(config, workload) for workload in workloads]
    if plain != products[:LOOPED].tolist():
        raise AssertionError("the loop in plain Python and the cost model disagree about cycles")

    many_s = cpu_s(lambda: model.estimate_many(population)) / SUBNETS
    whole_s = cpu_s(lambda: model.estimate_many(lower_many(SPACE.arrays(genotypes)))) / SUBNETS
    one_s = cpu_s(lambda: [model.estimate(workload) for workload in workloads], repeats=40) / LOOPED
    plain_s = cpu_s(lambda: [plain_network(config, workload) for workload in workloads], repeats=3) / LOOPED
    return {
        "subnets_per_s": 1 / many_s,
        "lower_and_estimate_per_s": 1 / whole_s,
        "estimate_us": 1e6 * one_s,
        "over_plain_python": plain_s / many_s,
    }


def exploration_figures() -> dict[str, float]:
    """Designs per second, the least of several explorations."""
    genotypes = SPACE.sample(np.random.default_rng(1), 3)
    workloads = [lower(SPACE.decode(genotype)) for genotype in genotypes]
    slowest = float("inf")
    for board in ("zcu102", "u50"):
        device = load_device(board)
        for activations in ("onchip", "ddr"):
            for networks in (workloads[:1], workloads):
                grid = design_grid(networks, device, clock_mhz=device.clock_mhz, activations=activations)
                seconds = cpu_s(
                    lambda device=device, activations=activations, networks=networks: explore(
                        networks, device, activations=activations
                    ),
                    repeats=2,
                )
                print(
                    f"explore {board:7} {activations:7} {len(networks)} network(s) {grid.size:8,} designs "
                    f"{seconds:7.3f} s {grid.size / seconds:12,.0f} designs/s"
                )
                slowest = min(slowest, grid.size / seconds)
    return {"dse_configs_per_s": slowest}


# ---- the race with SCALE-Sim and ZigZag ------------------------------------------------------------------------------


def peer_figures() -> dict[str, float | None]:
    """CPU seconds of the peers, by `peers.py`."""
    script = Path(__file__).with_name("peers.py")
    lines = subprocess.run([sys.executable, script], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    print(*lines[:-1], sep="\n")
    figures = json.loads(lines[-1])
    return {name: figures[name] for name in ("scalesim_cpu_s", "zigzag_cpu_s")}


# ----------------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave out the race with SCALE-Sim and ZigZag")
    quick = parser.parse_args().quick
    figures: dict[str, float | None] = {**exploration_figures(), **population_figures()}
    missed = []
    for name, side, mark in MARKS:
        value = figures[name]
        if value < mark if side == "at least" else value > mark:
            missed.append(name)
        print(f"{name:26} {value:14,.1f}   {side} {mark:,}{'   MISSED' if name in missed else ''}")
    print(f"{'over_plain_python':26} {figures['over_plain_python']:14,.1f}")
    if not quick:
        figures |= peer_figures()
    rounded = {name: value and round(value, 4) for name, value in figures.items()}
    print(json.dumps(rounded | {"missed": missed}))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
