import dataclasses
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.errors import QuasarError, UsageError
from hwmodel.integer import mantissa_and_shift
from quasar.export import hls_kernel
from quasar.export.hls_kernel import SOURCES, hls_files
from quasar.export.hls_run import HlsKernel, build_hls
from quasar.export.onnx_int import expected_tensors
from quasar.export.weights_file import pack_weights, unpack_weights
from supernet.integer_vit import IntegerLinear, IntegerNorm, IntegerViT, find_ranges
from supernet.space import SearchSpace

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles the kernel")

PACKAGE = Path(hls_kernel.__file__).with_name("hls")
#: nothing divides anything else
ODD = {
    "backend": "atomic",
    "array_rows": 3,
    "array_inputs": 5,
    "vector_lanes": 7,
    "weight_stream_bits": 24,
    "output_stream_bits": 56,
}


def written(folder, network, accelerator, images):
    """The folder `hls` of a bundle, with weights.bin beside it."""
    content, index = pack_weights(network, accelerator)
    (folder / "hls").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(content)
    for name, data in hls_files(network, index, accelerator, images=images, part="xczu9eg-ffvb1156-2-e").items():
        (folder / "hls" / name).write_bytes(data)
    return folder / "hls"


def assert_equal(kernel, network, images):
    expected, found = expected_tensors(network, images[:1]), kernel.tensors(images)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name].reshape(array.shape), array, err_msg=name)
    np.testing.assert_array_equal(kernel.logits(images), network(images))


def random_images(network, count, seed=0):
    subnet = network.subnet
    shape = (count, subnet.in_chans, subnet.image_size, subnet.image_size)
    return np.random.default_rng(seed).integers(-127, 128, shape, dtype=np.int8)


def replaced(part, change):
    """`part` with every linear, norm and attention in it replaced by what `change` makes of it."""
    if isinstance(part, tuple):
        return tuple(replaced(one, change) for one in part)
    part = change(part)
    if isinstance(part, IntegerLinear | IntegerNorm) or not dataclasses.is_dataclass(part):
        return part
    return dataclasses.replace(
        part, **{field.name: replaced(getattr(part, field.name), change) for field in dataclasses.fields(part)}
    )


@pytest.fixture(scope="module")
def network(make_module, space):
    """Two blocks of unlike heads and ratios: rows of both precisions, of 8 bits alone, and of 4 bits alone."""
    subnet = next(
        subnet
        for subnet in map(space.decode, space.sample(np.random.default_rng(3), 1000))
        if subnet.depth == 2
        and subnet.image_size == 16
        and len({block.num_heads for block in subnet.blocks}) == 2
        and {ratio for block in subnet.blocks for ratio in block.high_precision_ratios} >= {0.0, 0.3, 1.0}
    )
    module, x = make_module(subnet, images=8)
    return IntegerViT.of(module, find_ranges(module, x))


@pytest.fixture(scope="module")
def accelerator(make_info, network):
    return make_info(network.subnet).accelerator


@pytest.fixture(scope="module")
def folder(network, accelerator, tmp_path_factory):
    return written(tmp_path_factory.mktemp("bundle"), network, accelerator, random_images(network, 3))


@pytest.fixture(scope="module")
def kernel(folder):
    return build_hls(folder)


@pytest.fixture(scope="module", params=[{}, ODD], ids=["even", "odd"])
def built(request, network, accelerator, tmp_path_factory):
    """A kernel and its accelerator."""
    changed = dataclasses.replace(accelerator, **request.param)
    return build_hls(written(tmp_path_factory.mktemp("built"), network, changed, random_images(network, 3))), changed


def test_every_tensor_is_that_of_numpy(built, network):
    assert_equal(built[0], network, random_images(network, 3, seed=1))


@pytest.mark.parametrize("seed", range(8))
def test_any_integers(built, network, tmp_path, seed):
    """Random constants; half of the networks have nothing but extremes, and codes that saturate nearly everywhere."""
    rng, extreme = np.random.default_rng(seed), seed % 2

    def codes(limit, shape):
        return rng.choice([-limit, limit], shape) if extreme else rng.integers(-limit, limit, shape, endpoint=True)

    def change(part):
        if isinstance(part, IntegerLinear):
            rows, inputs = part.weights.shape
            high = np.arange(rows)[:, None] < part.rows_high
            weights = np.where(high, codes(127, (rows, inputs)), codes(7, (rows, inputs)))
            scale = 100 * (256 if part.wide else 1) / (50 * np.abs(weights).max(axis=1) * inputs**0.5)
            mantissa, shift = mantissa_and_shift(rng.uniform(0.1, 2, rows) * scale)
            return dataclasses.replace(
                part,
                weights=weights.astype(np.int8),
                bias=codes(2**31 - 1 - 128 * 127 * inputs if rng.random() < 0.1 else 10000, rows).astype(np.int32),
                mantissa=mantissa,
                shift=shift,
                table=None if part.table is None else codes(128, 256).clip(-128, 127).astype(np.int8),
            )
        if isinstance(part, IntegerNorm) and extreme:
            width = part.constants.gain.size
            gain, bias = codes(2**15 - 1, width).astype(np.int16), codes(2**31 - 1, width).astype(np.int32)
            return dataclasses.replace(part, constants=dataclasses.replace(part.constants, gain=gain, bias=bias))
        if isinstance(part, IntegerViT):
            return dataclasses.replace(part, position=codes(2**15 - 1, part.position.shape).astype(np.int16))
        return part

    changed = replaced(network, change)
    kernel, accelerator = built
    (tmp_path / "weights.bin").write_bytes(pack_weights(changed, accelerator)[0])
    changed_kernel = HlsKernel(program=kernel.program, weights=tmp_path / "weights.bin")
    assert_equal(changed_kernel, changed, random_images(network, 2))


def test_the_kernel_reads_every_part_of_the_weights(kernel, network, accelerator, tmp_path):
    """A changed byte gives what NumPy makes of it: in every section some change an output, in no padding any does."""
    images, path = random_images(network, 1), tmp_path / "weights.bin"
    content, index = pack_weights(network, accelerator)
    unchanged = expected_tensors(network, images)
    changed_kernel = HlsKernel(program=kernel.program, weights=path)
    rng = np.random.default_rng(0)
    for section in index.sections:
        if section.content == "channels":  # a permutation, of which a test below makes another
            continue
        for at in rng.integers(section.offset, section.offset + section.bytes, 20):
            data = bytearray(content)
            data[at] ^= 1
            path.write_bytes(data)
            changed = unpack_weights(bytes(data), index, network.subnet, source="weights.bin")
            try:
                expected = expected_tensors(changed, images)
            except UsageError:  # no longer a code or a mantissa
                continue
            found = changed_kernel.tensors(images)
            for name, array in expected.items():
                np.testing.assert_array_equal(found[name].reshape(array.shape), array, err_msg=f"{section} {at} {name}")
            if any(not np.array_equal(found[name], array) for name, array in unchanged.items()):
                break
        else:
            raise AssertionError(f"no changed byte of {section} changes an output")
    inside = np.zeros(len(content), dtype=bool)
    for section in index.sections:
        inside[section.offset : section.offset + section.bytes] = True
    assert not inside.all()
    path.write_bytes(np.where(inside, np.frombuffer(content, dtype=np.uint8), 255).astype(np.uint8).tobytes())
    assert_equal(changed_kernel, network, images)


def test_rows_go_to_their_channels(kernel, network, accelerator, tmp_path):
    """Whatever their order is: here a random one within each precision."""
    rng = np.random.default_rng(0)

    def change(part):
        if not isinstance(part, IntegerLinear):
            return part
        channels = rng.permutation(part.channels)
        return dataclasses.replace(part, channels=channels)

    changed = replaced(network, change)
    (tmp_path / "weights.bin").write_bytes(pack_weights(changed, accelerator)[0])
    images = random_images(network, 1)
    assert_equal(HlsKernel(program=kernel.program, weights=tmp_path / "weights.bin"), changed, images)
    assert not np.array_equal(changed(images), network(images))


def test_the_test_bench_checks_its_golden_vectors(kernel, folder, network, accelerator, tmp_path):
    def check(weights):
        command = [kernel.program, "check", weights, "images.bin", "logits.bin"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        return done.returncode, done.stdout

    tensors = len(re.findall(r"^    \{\"", (folder / "golden.h").read_text(), flags=re.MULTILINE))
    assert check("../weights.bin") == (0, f"{tensors} tensors, 0 wrong; logits of 3 images equal\n")
    head = dataclasses.replace(network.head, bias=network.head.bias + 1000)
    changed = tmp_path / "weights.bin"
    changed.write_bytes(pack_weights(dataclasses.replace(network, head=head), accelerator)[0])
    expected = f"first wrong tensor: head\n{tensors} tensors, 1 wrong; logits of 3 images WRONG\n"
    assert check(changed) == (1, expected)


def test_foreign_weights_are_refused(kernel, network, tmp_path):
    (tmp_path / "weights.bin").write_bytes(bytes(10))
    foreign = HlsKernel(program=kernel.program, weights=tmp_path / "weights.bin")
    with pytest.raises(QuasarError, match="has 10 bytes, which are not those of this kernel"):
        foreign.logits(random_images(network, 1))


def test_a_missing_compiler_is_one_line(folder, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match=r"^'g\+\+' is not installed, .*apt-get install g\+\+$"):
        build_hls(folder)


def test_what_the_compiler_refuses_is_one_line_and_not_kept(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    broken = shutil.copytree(folder, tmp_path / "hls")
    (broken / "config.h").write_text("")
    with pytest.raises(QuasarError, match=r"^the build of the HLS kernel failed .*error: .*$"):
        build_hls(broken)
    assert not list((tmp_path / "cache" / "quasar" / "hls").iterdir())


def test_equal_networks_give_equal_files_without_paths(folder, network, accelerator):
    again = hls_files(
        network,
        pack_weights(network, accelerator)[1],
        accelerator,
        images=random_images(network, 3),
        part="xczu9eg-ffvb1156-2-e",
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == again
    for name, content in again.items():
        if not name.endswith(".bin"):
            content.decode("ascii")
            assert not re.search(rb"[\s\"(]/\w+/", content), name


def test_the_package_holds_the_sources_and_nothing_else():
    assert {path.name for path in PACKAGE.iterdir()} == set(SOURCES)


def test_settings_for_vitis(network, accelerator):
    index, images = pack_weights(network, accelerator)[1], random_images(network, 1)
    known = hls_files(network, index, accelerator, images=images, part="xczu9eg-ffvb1156-2-e")["settings.tcl"]
    assert known == b'set part "xczu9eg-ffvb1156-2-e"\nset clock_period_ns 6.6667\n'
    unknown = hls_files(network, index, accelerator, images=images, part=None)["settings.tcl"]
    assert unknown.startswith(b'set part ""\n')


def test_a_cascade_that_is_too_long_is_refused(network, accelerator):
    long = dataclasses.replace(accelerator, backend="atomic", array_inputs=600)
    with pytest.raises(UsageError, match="array_inputs 600 is too long a cascade"):
        hls_files(network, pack_weights(network, long)[1], long, images=random_images(network, 1), part=None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    ["-Werror", "-Werror -std=c++14", "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"],
)
@pytest.mark.parametrize("changes", [{}, ODD])
def test_the_documented_command(network, accelerator, tmp_path, flags, changes):
    """It warns of nothing, nor do the sanitizers."""
    changed = dataclasses.replace(accelerator, **changes)
    folder = written(tmp_path / "bundle", network, changed, random_images(network, 2))
    compile_, check = re.findall(r"^//     (.+)$", (PACKAGE / "bench.cpp").read_text(), flags=re.MULTILINE)[:2]
    subprocess.run([*shlex.split(compile_), *flags.split()], check=True, cwd=folder)
    done = subprocess.run(shlex.split(check), check=True, cwd=folder, capture_output=True, text=True)
    assert " 0 wrong; logits of 2 images equal" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_random_subnets_on_random_accelerators(make_module, accelerator, tmp_path, seed):
    rng = np.random.default_rng(seed)
    space = SearchSpace(
        num_classes=int(rng.integers(2, 40)),
        in_chans=int(rng.choice([1, 3])),
        patch_size=int(rng.choice([2, 4])),
        head_dim=int(rng.integers(2, 20)),
        image_size=(8, 16),
        embed_dim=(16, 27, 40),
        depth=(1, 2, 3),
        num_heads=(1, 2, 5),
        mlp_ratio=(0.5, 2.0, 3.3),
        high_precision_ratio=(0.0, 0.2, 0.7, 1.0),
    )
    subnet = space.decode(space.sample(rng, 1)[0])
    changed = AcceleratorConfig.from_dict(
        accelerator.to_dict()
        | {
            "backend": str(rng.choice(["dual", "atomic"])),
            "array_rows": int(rng.integers(1, 20)),
            "array_inputs": int(rng.integers(1, 50)),
            "vector_lanes": int(rng.integers(1, 70)),
            "weight_stream_bits": 8 * int(rng.choice([1, 5, 8, 16, 96, 128])),
            "output_stream_bits": 8 * int(rng.integers(1, 70)),
            "max_tokens": 512,
            "activations": str(rng.choice(["onchip", "ddr"])),
        }
    )
    module, x = make_module(subnet, space=space, seed=seed, images=8)
    network = IntegerViT.of(module, find_ranges(module, x))
    folder = written(tmp_path, network, changed, network.quantize_images(x[:2]))
    assert_equal(build_hls(folder), network, network.quantize_images(x[:2]))


@pytest.mark.slow
def test_a_network_of_deit_tinys_size(make_module, accelerator, deit_tiny, tmp_path):
    module, x = make_module(deit_tiny.largest(), space=deit_tiny, images=2)
    network = IntegerViT.of(module, find_ranges(module, x))
    large = dataclasses.replace(
        accelerator, array_rows=16, array_inputs=64, weight_stream_bits=512, output_stream_bits=256, vector_lanes=32
    )
    kernel = build_hls(written(tmp_path, network, large, network.quantize_images(x[:1])))
    start = time.perf_counter()
    assert_equal(kernel, network, network.quantize_images(x[:1]))
    assert time.perf_counter() - start < 60
