"""`rtl`: the accelerator in SystemVerilog with a test bench that runs this network on it, without Python.

The sources and scripts are those of `hwmodel.rtl_folder`. What is the network's own is one text file, `network.txt`:
sizes, numbers of commands, and the places of all streams and tables in weights.bin and of all golden tensors in
vectors.npz, which so are the memory images of the test bench.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.device import load_device
from hwmodel.errors import QuasarError
from hwmodel.parameter_streams import ParameterStreams
from hwmodel.rtl_build import build
from hwmodel.rtl_folder import BENCH, rtl_files
from hwmodel.rtl_parameters import ACCELERATOR, accelerator_parameters
from hwmodel.simulate import LARGEST_ARRAY_DSPS
from quasar.export.checks import Begin, Subject, Verdict
from quasar.export.manifest import COST
from quasar.export.onnx_int import FACTOR_SUFFIX
from quasar.export.source import TENSORS, Source, array_places
from quasar.export.weights_file import PACKED_OPERATORS

RTL_FOLDER = "rtl"
NETWORK = "network.txt"
_HEAD = """\
# Generated: the network as network_bench.cpp runs it. Lines of a name, and pairs of a key and a number. Places are
# bytes: image, logits, golden and factors in ../vectors.npz, all others in ../weights.bin.
"""


class Rtl:
    """See the module's docstring."""

    name = "rtl"
    summary = "the accelerator in SystemVerilog, a test bench that runs this network on it, and scripts"
    packages: tuple[str, ...] = ()
    extra = ""
    needs = ("packed",)
    operators = PACKED_OPERATORS

    @property
    def checks(self) -> Mapping[str, Begin]:
        """In simulation it gives the network's integers, in the cycles of the cost model."""
        return {"RTL": _simulate}

    def files(self, source: Source) -> dict[str, bytes]:
        """Sources, scripts and the network."""
        info = source.info
        files = rtl_files(info.accelerator, load_device(info.device), device_name=info.device)
        return {f"{RTL_FOLDER}/{name}": content for name, content in files.items()} | {
            f"{RTL_FOLDER}/{NETWORK}": network_text(source).encode()
        }


def network_text(source: Source) -> str:
    """The content of network.txt."""
    assert source.packed is not None
    index, subnet, places = source.packed[1], source.network.subnet, array_places(source.vectors)
    lines: dict[str, dict[str, int]] = {
        "engine": _engine(source.info.accelerator),
        "network": {
            "depth": subnet.depth,
            "tokens": subnet.tokens,
            "width": subnet.embed_dim,
            "head_dim": subnet.head_dim,
            "channels": subnet.in_chans,
            "image_size": subnet.image_size,
            "patch_size": subnet.patch_size,
            "cycles": source.info.cost.cycles,
            "image": places["images"],
            "logits": places["logits"],
        },
    }
    lines |= {layer.name: {"cycles": layer.cycles} for layer in source.info.cost.layers}
    for name, array in source.tensors.items():
        layer = name.removesuffix(FACTOR_SUFFIX)
        if layer != name:
            lines[layer]["factors"] = places[TENSORS + name]
        elif layer in lines:  # the logits are no layer
            lines[layer] |= {"golden": places[TENSORS + name], "golden_bytes": array.itemsize}
    for name, command in index.commands.items():
        lines[name] |= command
    for section in index.sections:
        lines[section.layer] |= {section.content: section.offset, f"{section.content}_bytes": section.bytes}
    return _HEAD + "".join(
        " ".join((name, *(f"{key} {value}" for key, value in numbers.items()))) + "\n"
        for name, numbers in lines.items()
    )


def _engine(accelerator: AcceleratorConfig) -> dict[str, int]:
    order = ParameterStreams.of(accelerator)
    return {
        "tile_rows_high": order.tile_rows_high,
        "tile_rows_low": order.tile_rows_low,
        "tile_inputs": order.tile_inputs,
        "lanes": order.lanes,
        "vector_lanes": accelerator.vector_lanes,
        "beat_bytes": order.beat_bytes,
        "activation_beat_bytes": accelerator_parameters(accelerator)["PA"] // 8,
        "streamed": int(accelerator.activations == "ddr"),
    }


def _simulate(subject: Subject) -> Verdict:
    """Builds the bundle's own sources, by Verilator or yosys, and runs them."""
    if not subject.simulate:
        return Verdict(
            status="not checked", detail="--rtl simulates it; the first time it is built, which takes minutes"
        )
    config, cycles = subject.bundle.accelerator()
    if config.array_rows * config.array_inputs > LARGEST_ARRAY_DSPS:
        return Verdict(
            status="not checked",
            detail=f"an array of {config.array_rows} x {config.array_inputs} takes too long to build here; "
            f"make -C {subject.bundle.folder / RTL_FOLDER} does it all the same",
        )
    folder = subject.bundle.folder / RTL_FOLDER
    program = build(ACCELERATOR, parameters=accelerator_parameters(config), bench=BENCH, defines={}, folder=folder)
    done = subprocess.run(
        [program, folder / NETWORK, subject.bundle.folder], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        raise QuasarError(f"{folder}: the simulation broke off: {done.stderr.strip() or done.returncode}")
    layers = {name: tuple(map(int, numbers)) for name, *numbers in map(str.split, done.stdout.splitlines()[1:])}
    found_cycles, _, outputs, wrong = layers.pop("all")
    first = next((f", first in {name}" for name, (*_, own) in layers.items() if own), "")
    return Verdict(
        status="FAILED" if wrong or found_cycles != cycles or done.returncode else "passed",
        detail=f"{outputs:,} outputs of {len(layers)} layers, {wrong:,} wrong{first}; "
        f"{found_cycles:,} cycles, {COST} says {cycles:,}",
        figures={"rtl_outputs": outputs, "rtl_wrong_outputs": wrong, "rtl_cycles": found_cycles},
    )
