"""`rtl/` of a bundle: its table of the network, and what its test bench says, with Verilator and make alone."""

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from hwmodel.errors import UsageError
from quasar.export.bundle import load_bundle
from quasar.export.checks import Subject, begun
from quasar.export.formats.registry import FORMATS, choose_formats
from quasar.export.onnx_int import expected_tensors
from quasar.export.write import write_bundle
from supernet.lowering import lower
from supernet.space import SearchSpace

#: two blocks of unlike heads, widths that fill no tile
SPACE = SearchSpace(
    num_classes=10,
    in_chans=3,
    patch_size=2,
    head_dim=6,
    image_size=(6,),
    embed_dim=(20,),
    depth=(2,),
    num_heads=(1, 2),
    mlp_ratio=(1.5,),
    high_precision_ratio=(0.0, 0.4, 1.0),
)
ACCELERATORS = {
    "dual": {"array_rows": 4, "array_inputs": 8},
    "atomic": {
        "backend": "atomic",
        "array_rows": 3,
        "array_inputs": 5,
        "weight_stream_bits": 24,
        "output_stream_bits": 56,
        "vector_lanes": 7,
    },
    "streamed": {"array_rows": 4, "array_inputs": 8, "activations": "ddr", "activation_stream_bits": 128},
}


@pytest.fixture(scope="module")
def exported(make_module, make_info, tmp_path_factory):
    """Gives the folder of a bundle with the RTL for an accelerator; each is made once."""
    folder, made = tmp_path_factory.mktemp("bundles with RTL"), {}
    subnet = next(
        subnet
        for subnet in map(SPACE.decode, SPACE.sample(np.random.default_rng(0), 200))
        if [block.num_heads for block in subnet.blocks] == [2, 1]
        and {subnet.blocks[0].qkv_ratio, subnet.blocks[0].fc1_ratio, subnet.blocks[1].fc2_ratio} == {0.0, 0.4, 1.0}
    )
    module, x = make_module(subnet, space=SPACE)

    def bundle(name):
        if name not in made:
            accelerator = dataclasses.replace(make_info(subnet).accelerator, **ACCELERATORS[name])
            cost = FpgaCostModel(load_device("zcu102"), accelerator).estimate(lower(subnet))
            info = make_info(subnet, accelerator=accelerator, cost=cost)
            made[name] = write_bundle(module, folder / name, info=info, images=x, formats=choose_formats(["rtl"]))
        return made[name]

    return bundle


def table(folder):
    lines = [line.split() for line in (folder / "rtl" / "network.txt").read_text().splitlines() if line[0] != "#"]
    return {name: dict(zip(pairs[::2], map(int, pairs[1::2]), strict=True)) for name, *pairs in lines}


@pytest.mark.parametrize("name", ACCELERATORS)
def test_places_are_those_of_the_tensors(exported, name):
    bundle = load_bundle(exported(name))
    records, vectors = table(bundle.folder), (bundle.folder / "vectors.npz").read_bytes()
    expected = expected_tensors(bundle.integer_network(), bundle.vectors()[0][:1])
    logits = expected.pop("logits")
    for tensor, array in expected.items():
        layer = tensor.removesuffix(".factor")
        place = records[layer]["factors" if layer != tensor else "golden"]
        assert vectors[place : place + array.nbytes] == array.tobytes(), tensor
        assert layer != tensor or records[layer]["golden_bytes"] == array.itemsize
    network = records["network"]
    assert vectors[network["logits"] :].startswith(logits.tobytes())
    assert vectors[network["image"] :].startswith(bundle.vectors()[0].tobytes())
    assert network["cycles"] == sum(own["cycles"] for layer, own in records.items() if "golden" in own)
    for section in bundle.manifest.weights.sections:
        assert records[section.layer][section.content] == section.offset
        assert records[section.layer][f"{section.content}_bytes"] == section.bytes


def simulated(folder, *variables):
    """By `make`: exit status, and cycles, model, outputs and wrong outputs of each layer."""
    done = subprocess.run(["make", "-C", folder / "rtl", *variables], capture_output=True, text=True, check=False)
    rows = re.findall(r"^(\S+) +(\d+) +(\d+) +(\d+) +(\d+)$", done.stdout, flags=re.MULTILINE)
    assert rows, done.stderr
    return done.returncode, {name: tuple(map(int, numbers)) for name, *numbers in rows}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("verilator") is None, reason="verilator is not installed")
@pytest.mark.parametrize("name", ACCELERATORS)
def test_make_simulates_everything_and_finds_what_is_wrong(exported, tmp_path, name):
    folder = tmp_path / "bundle"
    shutil.copytree(exported(name), folder)
    bundle = load_bundle(folder)
    status, layers = simulated(folder)
    total = layers.pop("all")
    assert status == 0
    assert total == tuple(map(sum, zip(*layers.values(), strict=True)))
    assert total[0] == total[1] == bundle.accelerator()[1]
    assert total[3] == 0
    # Every output of every operation, and both factors of each row of a softmax as the number that they stand for.
    expected = expected_tensors(bundle.integer_network(), bundle.vectors()[0][:1])
    del expected["logits"]
    sizes = {}
    for tensor, array in expected.items():
        layer = tensor.removesuffix(".factor")
        sizes[layer] = sizes.get(layer, 0) + array.size
    assert {layer: own[2] for layer, own in layers.items()} == sizes
    load_bundle(folder)  # what was built is no part of the bundle

    place = table(folder)["blocks.1.mix"]["golden"]
    vectors = bytearray((folder / "vectors.npz").read_bytes())
    vectors[place] ^= 1
    (folder / "vectors.npz").write_bytes(vectors)
    status, layers = simulated(folder)
    assert status != 0
    assert {layer: own[3] for layer, own in layers.items() if own[3]} == {"blocks.1.mix": 1, "all": 1}

    section = table(folder)["blocks.0.fc2"]["rows"]
    content = bytearray((folder / "weights.bin").read_bytes())
    content[section] ^= 64  # of the first row's bias
    (folder / "weights.bin").write_bytes(content)
    status, layers = simulated(folder)
    assert status != 0
    assert next(layer for layer, own in layers.items() if own[3]) == "blocks.0.fc2"


@pytest.fixture
def subject(exported):
    bundle = load_bundle(exported("dual"))
    network = bundle.integer_network()
    return Subject(
        bundle=bundle,
        module=bundle.module(),
        network=network,
        tensors=expected_tensors(network, bundle.vectors()[0][:1]),
        simulate=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("verilator") is None, reason="verilator is not installed")
def test_make_builds_elsewhere_if_told_so(exported, tmp_path):
    folder = exported("dual")
    assert " " in str(folder)
    status, layers = simulated(folder, f"BUILD={tmp_path / 'elsewhere'}")
    assert (status, layers["all"][3]) == (0, 0)
    load_bundle(folder)


@pytest.mark.slow
def test_it_is_simulated_on_request(subject, monkeypatch):
    monkeypatch.chdir(subject.bundle.folder.parent)
    here = dataclasses.replace(subject.bundle, folder=Path(subject.bundle.folder.name))
    verdict = begun(FORMATS["rtl"].checks["RTL"], dataclasses.replace(subject, bundle=here))
    if verdict.status == "not checked":
        pytest.skip(verdict.detail)
    assert verdict.status == "passed", verdict.detail
    cycles = subject.bundle.accelerator()[1]
    assert verdict.figures["rtl_cycles"] == cycles
    assert verdict.detail.endswith(f"0 wrong; {cycles:,} cycles, cost.json says {cycles:,}")


def test_it_is_not_checked_unasked_or_without_a_simulator(subject, monkeypatch):
    unasked = begun(FORMATS["rtl"].checks["RTL"], dataclasses.replace(subject, simulate=False))
    assert (unasked.status, unasked.detail[:5]) == ("not checked", "--rtl")

    def missing(*_, **__):
        raise UsageError("simulation needs Verilator")

    monkeypatch.setattr("quasar.export.formats.rtl.build", missing)
    verdict = begun(FORMATS["rtl"].checks["RTL"], subject)
    assert (verdict.status, verdict.detail) == ("not checked", "simulation needs Verilator")
