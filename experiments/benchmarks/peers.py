"""Our cost model in a race with SCALE-Sim and ZigZag: CPU time, and compute cycles side by side.

    python experiments/benchmarks/peers.py [--quick]

All three get the 8 different products of DeiT-tiny (224 pixels, patches of 16: 197 tokens) at 8 bits on an array of
32 x 32. The last line is JSON: `scalesim_cpu_s`, `zigzag_cpu_s` and `quasar_cpu_s` are CPU seconds for the 8 products,
on one thread, without `..._start_up_s` (interpreter and imports); null where a peer could not be run.

The peers answer wider questions than we do. SCALE-Sim simulates every access of a systolic array to its memories,
cycle by cycle, and reports bandwidths; ZigZag searches mappings for an accelerator that the user describes, with its
energy, and its time is that of the search. Ours evaluates one closed form about one engine, so it must be faster; the
race says by how much, and whether the cycles agree where the assumptions do.

How each is run. Every competitor is a process of its own that runs this file with `--drive`; its CPU time is what the
system reports for that process. Peers live in virtual environments under `$XDG_CACHE_HOME/quasar/peers` (by default
`~/.cache`), made when absent, and are driven through their public interfaces:

    SCALE-Sim  configuration and topology files of the class `scalesim`; traces are not saved (its command line would
               save them), bandwidth is calculated, not limited, so nothing stalls. `scalesim_cpu_s` is the
               weight-stationary dataflow, the one that resembles ours; output-stationary is a second process
    ZigZag     `get_hardware_performance_zigzag` with files for accelerator, mapping and workload. Rows and inputs are
               unrolled over the array as in ours; the temporal mapping is searched with its defaults, for latency
    ours       `FpgaCostModel.estimate`, one network at a time, the mean of many calls

All streams are wide enough for compute to bind: a tile of weights arrives in one cycle, a row of results leaves in one.
With a narrow stream of weights ours would add the stalls. `--quick` installs nothing.

This module imports nothing but the standard library, since it also runs in the environments of the peers.
"""

import argparse
import csv
import importlib
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ARRAY = 32
MEMORY_BYTES = 2**20  # of each kind, for the peers; the largest operand of a product has 151 KB
RUNS = 1000  # of ours: one takes too little time to be measured
LIMIT_S = 900
REQUIREMENTS = {
    # SCALE-Sim makes numbers of one-element arrays, which numpy 2.4 refuses; ZigZag needs six and does not say so
    "scalesim": ("scalesim==3.0.0", "numpy==2.3.5"),
    "zigzag": ("zigzag-dse==3.9.1", "six==1.17.0"),
}
VERSIONS = {peer: pins[0].partition("==")[2] for peer, pins in REQUIREMENTS.items()}


@dataclass(frozen=True, kw_only=True)
class Product:
    """One product of `tokens` x `inputs` by `inputs` x `rows`, executed `count` times for an image."""

    name: str
    tokens: int
    inputs: int
    rows: int
    count: int

    @property
    def macs(self) -> int:
        return self.tokens * self.inputs * self.rows

    @property
    def tiles(self) -> int:
        """Tiles of weights, each 32 rows x 32 inputs."""
        return math.ceil(self.inputs / ARRAY) * math.ceil(self.rows / ARRAY)


class NotRunError(Exception):
    """A competitor could not be run; the message is one line that ends with the remedy."""


# --- the drivers: each runs in the environment of its competitor, reads products.json and writes result.json ---


def drive_quasar(folder: Path) -> dict[str, Any]:
    from hwmodel.accelerator import AcceleratorConfig
    from hwmodel.cost import FpgaCostModel
    from hwmodel.device import load_device
    from hwmodel.workload import Gemm, Workload

    gemms = tuple(
        Gemm(name=p.name, kind=p.name, tokens=p.tokens, inputs=p.inputs, rows_high=p.rows, rows_low=0)
        for p in read_products(folder)
    )
    workload = Workload(name="products", gemms=gemms, vectors=(), activation_bytes=0)

    def model(backend: str, rows_per_dsp: int, weight_stream_bits: int) -> FpgaCostModel:
        return FpgaCostModel(
            load_device("zcu102"),
            AcceleratorConfig(
                array_rows=ARRAY,
                array_inputs=ARRAY,
                backend=backend,
                clock_mhz=150.0,
                weight_stream_bits=weight_stream_bits,
                activation_stream_bits=8 * ARRAY,
                output_stream_bits=8 * ARRAY * rows_per_dsp,
                activations="onchip",
                activation_buffer_bytes=MEMORY_BYTES,
                max_tokens=256,
                vector_lanes=ARRAY,
            ),
        )

    tile_bits = 8 * ARRAY * ARRAY
    models = {
        "atomic": model("atomic", 1, tile_bits),
        "dual": model("dual", 2, 2 * tile_bits),
        "atomic-128": model("atomic", 1, 128),
    }
    cycles = {f"quasar {name}": [layer.cycles for layer in m.estimate(workload).layers] for name, m in models.items()}
    start_up_s = time.process_time()
    for _ in range(RUNS):
        models["atomic"].estimate(workload)
    return {"start_up_s": start_up_s, "runs": RUNS, "cycles": cycles}


def drive_lowering(folder: Path) -> dict[str, Any]:
    """The different products of DeiT-tiny, from the lowering that all our estimates use."""
    from supernet.lowering import lower
    from supernet.subnet import BlockChoice, Subnet

    block = BlockChoice(
        num_heads=3, mlp_ratio=4.0, operator="attention", qkv_ratio=1.0, proj_ratio=1.0, fc1_ratio=1.0, fc2_ratio=1.0
    )
    deit_tiny = Subnet(
        image_size=224, patch_size=16, in_chans=3, num_classes=1000, embed_dim=192, head_dim=64, blocks=(block,) * 12
    )
    counts: dict[tuple[str, int, int, int], int] = {}
    for gemm in lower(deit_tiny).gemms:
        shape = (gemm.kind, gemm.tokens, gemm.inputs, gemm.rows)
        counts[shape] = counts.get(shape, 0) + gemm.count
    return {
        "products": [
            asdict(Product(name=name, tokens=tokens, inputs=inputs, rows=rows, count=count))
            for (name, tokens, inputs, rows), count in counts.items()
        ]
    }


SCALESIM_CONFIG = f"""\
[general]
run_name = race
[architecture_presets]
ArrayHeight = {ARRAY}
ArrayWidth = {ARRAY}
IfmapSramSzkB = {MEMORY_BYTES // 1024}
FilterSramSzkB = {MEMORY_BYTES // 1024}
OfmapSramSzkB = {MEMORY_BYTES // 1024}
IfmapOffset = 0
FilterOffset = 10000000
OfmapOffset = 20000000
Dataflow = %s
ReadRequestBuffer = 32
WriteRequestBuffer = 32
[layout]
IfmapCustomLayout = False
IfmapSRAMBankBandwidth = 10
IfmapSRAMBankNum = 10
IfmapSRAMBankPort = 2
FilterCustomLayout = False
FilterSRAMBankBandwidth = 10
FilterSRAMBankNum = 10
FilterSRAMBankPort = 2
[sparsity]
SparsitySupport = False
[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
"""


def drive_scalesim(folder: Path, dataflow: str) -> dict[str, Any]:
    simulator = importlib.import_module("scalesim.scale_sim").scalesim
    start_up_s = time.process_time()
    config, topology, layout = folder / "array.cfg", folder / "topology.csv", folder / "layout.csv"
    config.write_text(SCALESIM_CONFIG % dataflow, encoding="utf-8")
    lines = [f"{p.name},{p.tokens},{p.rows},{p.inputs}," for p in read_products(folder)]
    topology.write_text("\n".join(["Layer,M,N,K,", *lines, ""]), encoding="utf-8")
    layout.write_text("Layer,\n", encoding="utf-8")  # must exist; custom layouts are off
    simulator(
        save_disk_space=True,
        verbose=False,
        config=str(config),
        topology=str(topology),
        layout=str(layout),
        input_type_gemm=True,
    ).run_scale(top_path=str(folder))
    with (folder / "race" / "COMPUTE_REPORT.csv").open(encoding="utf-8") as report:
        rows = list(csv.DictReader(report, skipinitialspace=True))
    return {
        "start_up_s": start_up_s,
        "cycles": [int(float(row["Total Cycles"])) for row in rows],  # without the prefetch before the first
    }


def zigzag_memory(bits: int, operand: str, dimensions: list[str], ports: list[tuple[str, int, str]]) -> dict[str, Any]:
    """A memory of ZigZag; energy and area do not matter here and are 1. Ports: kind, bits per cycle, direction."""
    return {
        "size": bits,
        "r_cost": 1.0,
        "w_cost": 1.0,
        "area": 1.0,
        "latency": 1,
        "operands": [operand],
        "served_dimensions": dimensions,
        "ports": [
            {
                "name": f"{kind[0]}_port_{index}",
                "type": kind,
                "bandwidth_min": width,
                "bandwidth_max": width,
                "allocation": [f"{operand}, {direction}"],
            }
            for index, (kind, width, direction) in enumerate(ports, start=1)
        ],
    }


def drive_zigzag(folder: Path) -> dict[str, Any]:
    performance = importlib.import_module("zigzag.api").get_hardware_performance_zigzag
    start_up_s = time.process_time()
    both, large = ["D1", "D2"], 8 * MEMORY_BYTES
    # From the array outwards, in this order: two weights in each DSP, partial sums of 512 tokens for each row (the
    # inputs of a row add up in one cycle), and a memory for each operand.
    memories = {
        "weight_registers": zigzag_memory(16, "I2", [], [("read", 8, "tl"), ("write", 8, "fh")]),
        "accumulators": zigzag_memory(
            32 * 512, "O", ["D2"], [("read", 32, "tl"), ("write", 32, "fl"), ("read", 32, "th"), ("write", 32, "fh")]
        ),
        "weight_memory": zigzag_memory(large, "I2", both, [("read", 8 * ARRAY * ARRAY, "tl")]),
        "activation_memory": zigzag_memory(large, "I1", both, [("read", 8 * ARRAY, "tl")]),
        "output_memory": zigzag_memory(large, "O", both, [("read", 32 * ARRAY, "tl"), ("write", 32 * ARRAY, "fl")]),
    }
    accelerator = {
        "name": "array",
        "memories": memories,
        "operational_array": {
            "input_precision": [8, 8],
            "unit_energy": 1.0,
            "unit_area": 1.0,
            "dimensions": both,
            "sizes": [ARRAY, ARRAY],
        },
    }
    mapping = [
        {
            "name": "default",
            "spatial_mapping": {"D1": [f"K, {ARRAY}"], "D2": [f"C, {ARRAY}"]},
            "memory_operand_links": {"O": "O", "W": "I2", "I": "I1"},
        }
    ]
    workload = [
        {
            "id": index,
            "name": p.name,
            "operator_type": "Gemm",
            "equation": "O[d][k]+=I[d][c]*W[c][k]",
            "loop_dims": ["D", "K", "C"],
            "loop_sizes": [p.tokens, p.rows, p.inputs],
            "operand_precision": {"W": 8, "I": 8, "O": 32, "O_final": 8},
            "operand_source": {"W": index, "I": index},
        }
        for index, p in enumerate(read_products(folder))
    ]
    files = {"accelerator": accelerator, "mapping": mapping, "workload": workload}
    paths = {name: str(folder / f"{name}.yaml") for name in files}
    for name, content in files.items():
        Path(paths[name]).write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML; the order is kept
    _, _, results = performance(
        **paths, opt="latency", dump_folder=str(folder / "zigzag"), loma_show_progress_bar=False
    )
    layers = [evaluation for evaluation, _ in results[0][1]]
    return {
        "start_up_s": start_up_s,
        "cycles": {
            "ideal": [int(layer.ideal_cycle) for layer in layers],
            "mapped": [int(layer.ideal_temporal_cycle) for layer in layers],
            "total": [math.ceil(layer.latency_total2) for layer in layers],
        },
    }


DRIVERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "lowering": drive_lowering,
    "quasar": drive_quasar,
    "scalesim": lambda folder: drive_scalesim(folder, "ws"),
    "scalesim-os": lambda folder: drive_scalesim(folder, "os"),
    "zigzag": drive_zigzag,
}


def read_products(folder: Path) -> list[Product]:
    return [Product(**values) for values in json.loads((folder / "products.json").read_text(encoding="utf-8"))]


# --- the race ---


def peer_python(peer: str, *, install: bool) -> Path:
    """The interpreter of a peer's environment, which is made in whole or not at all."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = cache / "quasar" / "peers" / REQUIREMENTS[peer][0].replace("==", "-")
    python = home / "bin" / "python"
    if python.exists():
        return python
    if home.exists():
        raise NotRunError(f"the environment has lost its Python; remove {home} and run again")
    if not install:
        raise NotRunError("it is not installed yet; run once without --quick")
    print(f"installing {' '.join(REQUIREMENTS[peer])} into {home}", file=sys.stderr)
    try:
        make_environment(home, REQUIREMENTS[peer])
    except OSError as error:
        if not python.exists():  # else another process was faster
            raise NotRunError(f"{home} cannot be made ({error.strerror}); set XDG_CACHE_HOME") from error
    return python


def make_environment(home: Path, requirements: tuple[str, ...]) -> None:
    """Built beside its place and moved there when complete: only bin/python is used, and that can be moved."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=f".{home.name}-", ignore_cleanup_errors=True) as folder:
        made = Path(folder) / "venv"
        run_quietly([sys.executable, "-m", "venv", str(made)], remedy="install Python's venv module; then run again")
        pip = [str(made / "bin" / "python"), "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        remedy = "PyPI must be reachable for this once; then run again"
        run_quietly([*pip, "--retries", "1", *requirements], remedy=remedy)
        made.rename(home)


def run_quietly(command: list[str], *, remedy: str, cwd: Path | None = None) -> None:
    """Runs a command on one thread without output; `NotRunError` with the last line that it had to say."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
            cwd=cwd,
            env=os.environ | threads,
        )
    except subprocess.TimeoutExpired as error:
        raise NotRunError(f"it took more than {LIMIT_S} s; {remedy}") from error
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        said = lines[-1].strip() if lines else f"exit status {done.returncode}"
        raise NotRunError(f"{said}; {remedy}")


def drive(driver: str, python: Path, products: list[Product]) -> dict[str, Any]:
    """What a driver found, with `cpu_s`: CPU seconds of its process for one run, start-up not counted."""
    ours = python == Path(sys.executable)
    # -P keeps the other benchmarks, some named like our packages, out of the imports; -I also PYTHONPATH
    flag = "-P" if ours else "-I"
    remedy = "install the project" if ours else f"remove {python.parents[1]} and run again"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "products.json").write_text(json.dumps([asdict(p) for p in products]), encoding="utf-8")
        before_s = children_cpu_s()
        command = [str(python), flag, str(Path(__file__).resolve()), "--drive", driver, str(folder)]
        run_quietly(command, remedy=remedy, cwd=folder)
        used_s = children_cpu_s() - before_s
        result = folder / "result.json"
        if not result.is_file():  # SCALE-Sim leaves with status 0 when it finds a mistake
            raise NotRunError(f"it ended without a result; {remedy}")
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if "start_up_s" in found:
        found["cpu_s"] = (used_s - found["start_up_s"]) / found.get("runs", 1)
    return found


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def race(*, install: bool = True) -> dict[str, Any]:
    """Runs all three.

    The figures are named as in the last line of the script. Beside them: `not_run` with the reason for each peer
    that lacks figures, and `layers`, one dictionary for each product with the cycles of one execution, by column.
    """
    here = Path(sys.executable)
    products = [Product(**values) for values in drive("lowering", here, [])["products"]]
    found = {"quasar": drive("quasar", here, products)}
    not_run: dict[str, str] = {}
    for driver in ("scalesim", "scalesim-os", "zigzag"):
        peer = driver.removesuffix("-os")
        if peer in not_run:
            continue
        try:
            found[driver] = drive(driver, peer_python(peer, install=install), products)
        except NotRunError as error:
            not_run[peer] = str(error)
            print(f"{peer} {VERSIONS[peer]} was not run: {error}", file=sys.stderr)
    result: dict[str, Any] = {}
    for driver in ("scalesim", "scalesim-os", "zigzag", "quasar"):
        for key in ("cpu_s", "start_up_s"):
            result[f"{driver.replace('-', '_')}_{key}"] = found.get(driver, {}).get(key)
    ours, zigzag = found["quasar"]["cycles"], found.get("zigzag", {}).get("cycles", {})
    columns: dict[str, list[int] | None] = {
        **ours,
        "SCALE-Sim ws": found.get("scalesim", {}).get("cycles"),
        "SCALE-Sim os": found.get("scalesim-os", {}).get("cycles"),
        **{f"ZigZag {kind}": zigzag.get(kind) for kind in ("ideal", "mapped", "total")},
    }
    layers = [
        {**asdict(p), **{name: cycles and cycles[index] for name, cycles in columns.items()}}
        for index, p in enumerate(products)
    ]
    return {**result, "not_run": not_run, "layers": layers}


# --- the tables ---

COLUMNS = (
    "quasar atomic",
    "quasar dual",
    "SCALE-Sim ws",
    "SCALE-Sim os",
    "ZigZag ideal",
    "ZigZag mapped",
    "ZigZag total",
)
#: of ours on atomic: the command, parameters and weights of the first tile, the adder cascade, registers at the output
FILL = 1 + 2 + (ARRAY + 5) + 9
SKEW = 2 * ARRAY - 2


def print_cycles(layers: list[dict[str, Any]]) -> None:
    print(f"Compute cycles of one execution, 8 bits, {ARRAY} x {ARRAY}, streams that do not bind\n")
    print(f"{'':12} {'':13} {'':5} {'MACs':>11}" + "".join(f" {name.split()[0]:>10}" for name in COLUMNS))
    header = f"{'layer':12} {'F x K x M':>13} {'times':>5} {f'/ {ARRAY**2:,}':>11}"
    print(header + "".join(f" {name.split()[1]:>10}" for name in COLUMNS))
    for layer in layers:
        p = product_of(layer)
        line = f"{p.name:12} {f'{p.tokens}x{p.inputs}x{p.rows}':>13} {p.count:5} {p.macs / ARRAY**2:11,.1f}"
        print(line + "".join(f" {number(layer[name]):>10}" for name in COLUMNS))
    macs = sum(layer["count"] * product_of(layer).macs for layer in layers)
    line = f"{'all products':12} {'':13} {'':5} {macs / ARRAY**2:11,.1f}"
    for name in COLUMNS:
        known = all(layer[name] is not None for layer in layers)
        line += f" {number(sum(layer['count'] * layer[name] for layer in layers) if known else None):>10}"
    print(line)
    more = [f"{layer['name']} {layer['quasar atomic-128'] - layer['quasar atomic']:+,}" for layer in layers]
    print(f"\nOurs on atomic with 128 bits of weights per cycle: {', '.join(more)}")


def print_reasons(layers: list[dict[str, Any]]) -> None:
    """Where the cycles beyond whole tiles go, in words, and in forms that are checked against the table."""
    a = ARRAY
    print(
        f"""
Why they differ. T tiles of {a} x {a} weights, F tokens each, take T * F cycles if nothing else costs time.

  atomic  T * F + {FILL}: command 1, first weights 2, adder cascade {a + 5}, output registers 9. Paid once: the other
          weights load into shadow registers while the array computes, and results drain beside the next tiles.
          With one token (head) nothing hides that latency: a row tile ends only after the drain of the one before.
  dual    two 8-bit rows on each DSP: half as many row tiles, rounded up (scores: 197 rows make 4 tiles of 64), and a
          tree of 5 levels for the cascade: {FILL - a + 5} for {FILL}.
  ws      T * (F + {a + SKEW}) - 1. SCALE-Sim's systolic array finishes one tile before it begins the next: {a} cycles
          to load weights, F tokens, {SKEW} to fill and drain the skewed pipeline.
  os      ceil(F / {a}) * ceil(M / {a}) * (K + {SKEW}) - 1. A tile is {a} tokens x {a} rows of results, with the same
          fill and drain for K inputs: it suffers from short K (scores), and from few tokens (head).
  ZigZag  ideal is MACs / {a**2:,}; mapped counts whole tiles: T * F; total adds stalls, the first load and the last
          write, for the best mapping found. Its array has no latency here, and its search may order loops in any
          way: new weights in every cycle, which this stream allows, leave little to write at the end.
"""
    )
    print(f"{'above T * F':12} {'T':>5} {'T * F':>8} {'atomic':>9} {'ws':>9} {'os':>9} {'ZigZag':>9}")
    for layer in layers:
        p = product_of(layer)
        line = f"{p.name:12} {p.tiles:5} {p.tiles * p.tokens:8,}"
        for name in ("quasar atomic", "SCALE-Sim ws", "SCALE-Sim os", "ZigZag total"):
            line += f" {'not run' if layer[name] is None else f'{layer[name] - p.tiles * p.tokens:+,}':>9}"
        print(line)
    wrong = [f"{name} of {layer['name']}" for layer in layers for name in unexplained(layer)]
    print(f"\nThe forms above are exact for all that was run, except: {', '.join(wrong) or 'none'}")


def unexplained(layer: dict[str, Any]) -> list[str]:
    """The columns whose cycles are not those of the form in the text."""
    p = product_of(layer)
    results = math.ceil(p.tokens / ARRAY) * math.ceil(p.rows / ARRAY)
    forms = {
        "quasar atomic": p.tiles * p.tokens + FILL,
        "SCALE-Sim ws": p.tiles * (p.tokens + ARRAY + SKEW) - 1,
        "SCALE-Sim os": results * (p.inputs + SKEW) - 1,
        "ZigZag ideal": math.ceil(p.macs / ARRAY**2),
        "ZigZag mapped": p.tiles * p.tokens,
    }
    return [name for name, cycles in forms.items() if layer[name] not in (None, cycles)]


def print_times(result: dict[str, Any]) -> None:
    ours_s = result["quasar_cpu_s"]
    rows = (
        ("quasar", "", "one estimate of the 8 products, with its energy"),
        ("scalesim", VERSIONS["scalesim"], "cycle-accurate simulation, weight-stationary"),
        ("scalesim_os", VERSIONS["scalesim"], "the same, output-stationary"),
        ("zigzag", VERSIONS["zigzag"], "search of the mappings for least latency, with its reports"),
    )
    print(f"\n{'':12} {'version':8} {'CPU s':>10} {'start-up s':>10} {'to ours':>9}  what")
    for name, version, what in rows:
        cpu_s, start_up_s = result[f"{name}_cpu_s"], result[f"{name}_start_up_s"]
        if cpu_s is None:
            print(f"{name:12} {version:8} {'not run':>10}")
        else:
            print(f"{name:12} {version:8} {cpu_s:10.3g} {start_up_s:10.2f} {cpu_s / ours_s:9,.0f}  {what}")


def product_of(layer: dict[str, Any]) -> Product:
    return Product(**{key: layer[key] for key in ("name", "tokens", "inputs", "rows", "count")})


def number(value: int | None) -> str:
    return "not run" if value is None else f"{value:,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="run only the peers that are installed already")
    parser.add_argument("--drive", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        driver, folder = arguments.drive
        found = DRIVERS[driver](Path(folder))
        (Path(folder) / "result.json").write_text(json.dumps(found), encoding="utf-8")
        return
    try:
        result = race(install=not arguments.quick)
    except NotRunError as error:
        sys.exit(f"quasar was not run: {error}")
    print_cycles(result["layers"])
    print_reasons(result["layers"])
    print_times(result)
    figures = {name: value for name, value in result.items() if name.endswith("_s")}
    print(json.dumps({name: None if value is None else float(f"{value:.4g}") for name, value in figures.items()}))


if __name__ == "__main__":
    main()
