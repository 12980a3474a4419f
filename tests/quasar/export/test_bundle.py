import dataclasses
import errno
import json
import os
import re
import shutil
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from hwmodel.errors import DamagedInputError, QuasarError, UsageError
from quasar.export.bundle import load_bundle
from quasar.export.formats.packed import packed_network
from quasar.export.formats.registry import FORMATS, choose_formats
from quasar.export.manifest import CORE_FILES, MANIFEST_SCHEMA, Manifest
from quasar.export.onnx_int import expected_tensors
from quasar.export.onnx_session import open_session
from quasar.export.source import GOLDEN_IMAGES
from quasar.export.weights_file import first_difference
from quasar.export.write import write_bundle
from supernet.lowering import lower
from supernet.subnet import Subnet

COST_KEYS = ("latency_ms", "fps", "cycles", "dsp", "bram18", "lut", "ff", "energy_mj")
FORMS = choose_formats(["qdq", "integer", "packed"])
FILES = (
    "README.md",
    "config.json",
    "cost.json",
    "manifest.json",
    "model.safetensors",
    "model_int.onnx",
    "model_int8.onnx",
    "model_qdq.onnx",
    "subnet.yaml",
    "vectors.npz",
    "weights.bin",
)


@pytest.fixture(scope="module")
def exported(make_module, make_info, subnets, tmp_path_factory):
    """A module, its calibration images, and the folder of its bundle; tests that change the folder copy it."""
    module, x = make_module(subnets[0])
    folder = tmp_path_factory.mktemp("export") / "latency-5ms"
    return module, x, write_bundle(module, folder, info=make_info(module.subnet), images=x, formats=FORMS)


@pytest.fixture
def copy(exported, tmp_path):
    return Path(shutil.copytree(exported[2], tmp_path / "bundle"))


def test_a_bundle_gives_the_same_network_back(exported):
    module, x, folder = exported
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    bundle = load_bundle(folder)
    with torch.no_grad():
        expected = module(x)
        assert torch.equal(bundle.module()(x), expected)
    (logits,) = open_session(folder / "model_qdq.onnx").run(["logits"], {"images": x.numpy()})
    assert (logits.argmax(axis=1) == expected.numpy().argmax(axis=1)).mean() > 0.9
    network = bundle.integer_network()
    codes = network.quantize_images(x)
    assert (network(codes).argmax(axis=1) == expected.numpy().argmax(axis=1)).mean() > 0.9
    images, golden = bundle.vectors()
    np.testing.assert_array_equal(images, codes[: len(images)])
    np.testing.assert_array_equal(golden, network(images))
    assert len(images) == GOLDEN_IMAGES


def test_the_operations_of_a_bundle_are_those_of_its_workload(exported):
    bundle = load_bundle(exported[2])
    layers = bundle.operations()
    workload = lower(bundle.config.subnet)
    assert {name: len(own) for name, own in layers.items()} == {
        layer.name: layer.count for layer in (*workload.gemms, *workload.vectors)
    }


def test_golden_vectors_of_another_network_are_refused(copy):
    bundle = load_bundle(copy)
    images, logits = bundle.vectors()
    np.savez(copy / "vectors.npz", images=images, logits=logits + 1)
    with pytest.raises(DamagedInputError, match=r"vectors\.npz: are not the logits of this network; export again"):
        bundle.operations()
    (copy / "vectors.npz").write_bytes(b"?")
    with pytest.raises(DamagedInputError, match=r"vectors\.npz: cannot be read as golden vectors"):
        bundle.operations()


@pytest.mark.parametrize("layer_scale", [0.1, None])
def test_layer_scale_is_remembered(make_module, make_info, subnets, tmp_path, layer_scale):
    module, x = make_module(subnets[1], layer_scale=layer_scale)
    bundle = load_bundle(write_bundle(module, tmp_path / "deep" / "bundle", info=make_info(module.subnet), images=x))
    assert bundle.config.layer_scale == (layer_scale is not None)
    with torch.no_grad():
        assert torch.equal(bundle.module()(x), module(x))


def test_a_bundle_tells_all_about_itself(exported, make_info):
    module, _, folder = exported
    subnet, info, bundle = module.subnet, make_info(module.subnet), load_bundle(folder)
    config, manifest = bundle.config, bundle.manifest
    assert (config.subnet, config.data, config.classes) == (subnet, info.data, info.classes)
    assert (config.mean, config.std, config.training_image_size) == (info.mean, info.std, 24)
    assert (manifest.latency_ms, manifest.fps) == (5, None)
    assert (manifest.val_accuracy, manifest.test_accuracy) == (0.75, 0.5)
    assert (manifest.subnet_digest, manifest.checkpoint_digest) == (subnet.digest, info.checkpoint_digest)
    assert manifest.data_digests == info.data_digests
    assert manifest.versions.keys() == {"python", "quasar-nas", "torch", "numpy"}
    assert manifest.device == "zcu102"
    assert manifest.cost == {key: info.cost.to_dict()[key] for key in COST_KEYS}
    assert manifest.files["README.md"].bytes == (folder / "README.md").stat().st_size
    assert Subnet.load(folder / "subnet.yaml") == subnet
    cost = json.loads((folder / "cost.json").read_text())
    assert cost == {"device": "zcu102", "accelerator": info.accelerator.to_dict(), "cost": info.cost.to_dict()}


def test_the_manifest_lists_layers_and_codes(exported):
    module, _, folder = exported
    manifest, subnet = load_bundle(folder).manifest, module.subnet
    stored = [gemm for gemm in lower(subnet).gemms if gemm.stored]
    assert {name: (own.inputs, own.rows_high, own.rows_low) for name, own in manifest.layers.items()} == {
        gemm.name: (gemm.inputs, gemm.rows_high, gemm.rows_low) for gemm in stored
    }
    assert {(own.high_bits, own.low_bits) for own in manifest.layers.values()} == {(8, 4)}
    block = ("norm1", "q", "k", "v", "scores", "mixed", "norm2", "fc1", "gelu")
    names = {f"blocks.{index}.{site}" for index in range(subnet.depth) for site in block}
    assert manifest.codes.keys() == names | {"image", "residual", "logits", "norm"}
    assert manifest.codes["image"].scale == manifest.weights.image_scale
    assert manifest.codes["blocks.0.gelu"].zero_point != 0  # GELU is asymmetric
    assert manifest.codes["residual"].scale == load_bundle(folder).config.integer.residual


def test_the_schema_is_that_of_the_manifest(exported):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(files("quasar.export").joinpath(MANIFEST_SCHEMA).read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    manifest = json.loads((exported[2] / "manifest.json").read_text())
    validator.validate(manifest)
    assert schema["properties"].keys() == {field.name for field in dataclasses.fields(Manifest)} | {"digest"}
    assert schema["properties"]["files"]["properties"].keys() == set(CORE_FILES)
    for path, value in {
        ("format_version",): 2,
        ("test_accuracy",): 1.5,
        ("layers", "head", "rows_high"): -1,
        ("codes", "image", "scale"): 0,
        ("weights", "sections", 0, "offset"): 1,
        ("weights", "order", "lanes"): 0,
        ("weights",): 1,
        ("formats", "qdq"): [],
        ("files", "../secret"): {"bytes": 1, "sha256": 64 * "0"},
        ("files", "README.md", "sha256"): "?",
        ("news",): 1,
    }.items():
        changed = json.loads(json.dumps(manifest))
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        assert not validator.is_valid(changed), path


def test_all_forms_of_the_integer_network_are_in_a_bundle(exported):
    bundle = load_bundle(exported[2])
    network = bundle.integer_network()
    assert first_difference(network, packed_network(bundle)) is None
    images, logits = bundle.vectors()
    for name, bits in (("model_int.onnx", True), ("model_int8.onnx", False)):
        model = onnx.load(exported[2] / name)
        assert any(tensor.data_type == onnx.TensorProto.INT4 for tensor in model.graph.initializer) == bits
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        np.testing.assert_array_equal(session.run(None, {"images": images})[0], logits)
    expected, golden = expected_tensors(network, images[:1]), bundle.golden_tensors()
    assert list(golden) == list(expected)
    for name, array in golden.items():
        np.testing.assert_array_equal(array, expected[name])


def test_the_card_holds_the_numbers_that_matter(exported, make_info):
    module, _, folder = exported
    card, info = (folder / "README.md").read_text(), make_info(module.subnet)
    resources = info.cost.resources
    assert f"| Latency | {info.cost.latency_ms:.4g} ms" in card
    assert f"| {resources.dsp:,} / {resources.bram18:,} / {resources.lut:,} |" in card
    assert "| Target | at most 5 ms |" in card
    assert "| Top-1 accuracy, validation | 75.00% |" in card
    assert "| Top-1 accuracy, test | 50.00% |" in card
    subnet = module.subnet
    inner = subnet.blocks[0].num_heads * subnet.head_dim
    assert f"| blocks.0.qkv | {subnet.embed_dim} | {3 * inner} |" in card


def test_the_snippet_of_the_card_runs(exported, make_info, monkeypatch, capsys):
    module, _, folder = exported
    snippet = re.search("```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL).group(1)
    monkeypatch.chdir(folder)
    names = {}
    exec(snippet, names)
    images = np.random.default_rng(1).integers(0, 256, (64, *names["images"].shape[1:]), dtype=np.uint8)
    normalised = torch.from_numpy((images / 255 - 0.5) / 0.25).float()
    with torch.no_grad():
        expected = module(normalised).numpy().argmax(axis=1)
    assert (names["classify"](images) == expected).mean() > 0.9
    assert "class" in capsys.readouterr().out


def test_a_file_that_does_not_belong_to_it_is_named(copy):
    (copy / "build").mkdir()
    (copy / "build" / "made").touch()
    load_bundle(copy)  # what was built there is not looked at
    (copy / "more").mkdir()
    (copy / "more" / "notes.txt").touch()
    with pytest.raises(DamagedInputError, match=r"more/notes\.txt: is not of this bundle; remove it"):
        load_bundle(copy)


def test_a_newer_format_is_refused(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"format_version": 5, "news": 1}))
    with pytest.raises(DamagedInputError, match=r"manifest\.json: has bundle format 5, .* reads 4"):
        load_bundle(copy)


def test_a_bundle_of_an_older_format_says_what_helps(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    older = {key: value for key, value in manifest.items() if key not in ("layers", "codes", "weights", "cost")}
    (copy / "manifest.json").write_text(json.dumps(older | {"format_version": 2}))
    with pytest.raises(DamagedInputError, match=r"format 2, .* reads 4; export again with this version"):
        load_bundle(copy)


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such bundle"):
        load_bundle(tmp_path / "nothing")
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(DamagedInputError, match="not the manifest"):
        load_bundle(tmp_path)


def test_weights_that_change_after_loading_are_named(copy):
    bundle = load_bundle(copy)
    (copy / "model.safetensors").write_bytes(b"?")
    with pytest.raises(DamagedInputError, match=r"model\.safetensors"):
        bundle.module()
    (copy / "model_qdq.onnx").write_bytes(b"?")
    with pytest.raises(QuasarError, match=r"model_qdq\.onnx"):
        open_session(bundle.folder / "model_qdq.onnx")


def test_an_existing_folder_is_replaced_only_on_request(exported, make_info, copy):
    module, info = exported[0], make_info(exported[0].subnet, test_accuracy=0.25)
    with pytest.raises(UsageError, match="exists already"):
        write_bundle(module, copy, info=info, images=exported[1])
    assert load_bundle(copy).manifest.test_accuracy == 0.5
    (copy / "notes.txt").touch()
    write_bundle(module, copy, info=info, images=exported[1], overwrite=True)
    assert load_bundle(copy).manifest.test_accuracy == 0.25
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_what_is_no_bundle_is_never_replaced(exported, make_info, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="no bundle"):
        write_bundle(exported[0], tmp_path, info=make_info(exported[0].subnet), images=exported[1], overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["third file", "last rename"])
@pytest.mark.parametrize("old", [False, True])
def test_a_failed_export_leaves_nothing(exported, make_info, tmp_path, monkeypatch, failure, step, old):
    module, x, source = exported
    folder = tmp_path / "export" / "bundle"
    if old:
        shutil.copytree(source, folder)
    rename, synced = Path.rename, []

    def fail_to_sync(file):
        synced.append(file)
        if len(synced) == 3:
            raise failure

    def fail_to_rename(path, target):
        if path.name.endswith(".part"):
            raise failure
        return rename(path, target)

    monkeypatch.setattr(*((os, "fsync", fail_to_sync) if step == "third file" else (Path, "rename", fail_to_rename)))
    is_full_disk = isinstance(failure, OSError)
    with pytest.raises(QuasarError if is_full_disk else KeyboardInterrupt) as caught:
        write_bundle(module, folder, info=make_info(module.subnet), images=x, overwrite=True)
    if is_full_disk:
        assert re.fullmatch(r".*bundle: cannot be written: No space left on device; .*", str(caught.value))
    assert [path.name for path in folder.parent.iterdir()] == ([folder.name] if old else [])
    if old:
        load_bundle(folder)


def test_a_folder_that_cannot_be_made_is_one_line(exported, make_info, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(QuasarError, match="cannot be written"):
        write_bundle(exported[0], tmp_path / "file" / "bundle", info=make_info(exported[0].subnet), images=exported[1])


def test_weights_that_are_not_finite_are_refused(make_module, make_info, subnets, tmp_path):
    module, x = make_module(subnets[0])
    module.blocks[0].norm1.weight[0] = torch.nan
    with pytest.raises(QuasarError, match=r"'blocks\.0\.norm1\.weight' of the subnet is not finite"):
        write_bundle(module, tmp_path / "bundle", info=make_info(module.subnet), images=x)
    assert not any(tmp_path.iterdir())


def test_without_onnxruntime_the_pip_command_is_named(exported, monkeypatch):
    bundle = load_bundle(exported[2])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"'onnxruntime' .* pip install 'quasar-nas\[export\]'"):
        open_session(bundle.folder / "model_qdq.onnx")


def test_numbers_of_any_kind_survive_the_manifest(exported, make_info, tmp_path):
    module = exported[0]
    info = make_info(module.subnet, latency_ms=None, fps=1000, val_accuracy=1, test_accuracy=None, classes=None)
    bundle = load_bundle(write_bundle(module, tmp_path / "bundle", info=info, images=exported[1]))
    assert (bundle.manifest.fps, bundle.manifest.val_accuracy, bundle.config.classes) == (1000, 1, None)
    assert "at least 1000 frames per second" in (bundle.folder / "README.md").read_text()


def test_an_accelerator_that_does_not_fit_is_not_passed_over(exported, make_info, tmp_path):
    module = exported[0]
    info = make_info(module.subnet)
    info = dataclasses.replace(info, cost=dataclasses.replace(info.cost, violations=("dsp 9 exceeds 8",)))
    folder = write_bundle(module, tmp_path / "bundle", info=info, images=exported[1])
    assert "| Does not fit | dsp 9 exceeds 8 |" in (folder / "README.md").read_text()


def test_the_forms_of_a_bundle_can_be_chosen(exported, make_info, tmp_path):
    module, x, _ = exported
    info = make_info(module.subnet)
    for names, expected in {
        (): set(),
        ("packed",): {"weights.bin"},
        ("integer", "qdq"): {"model_qdq.onnx", "model_int.onnx", "model_int8.onnx"},
    }.items():
        folder = write_bundle(
            module, tmp_path / "-".join(("b", *names)), info=info, images=x, formats=choose_formats(names)
        )
        manifest = load_bundle(folder).manifest
        assert {path.name for path in folder.iterdir()} == {*CORE_FILES, "manifest.json", *expected}
        assert manifest.formats.keys() == set(names)
        assert {name for own in manifest.formats.values() for name in own} == expected
        assert (manifest.weights is not None) == ("packed" in names)
        card = (folder / "README.md").read_text()
        assert ("onnxruntime.InferenceSession" in card) == ("qdq" in names)
        assert all(f"`{name}`" in card for name in expected)


def test_a_choice_of_forms_is_checked(monkeypatch):
    with pytest.raises(UsageError, match=r"unknown format 'qdqs': did you mean 'qdq'\?"):
        choose_formats(["qdqs"])
    assert [form.name for form in choose_formats(["packed", "qdq", "packed"])] == ["qdq", "packed"]
    assert {"qdq", "integer", "packed"} <= {form.name for form in choose_formats()}
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        UsageError, match=r"format 'qdq' needs the package 'onnx', .* pip install 'quasar-nas\[export\]'$"
    ):
        choose_formats(["qdq"])
    assert not {"qdq", "integer"} & {form.name for form in choose_formats()}


def test_every_form_says_what_it_is():
    assert [form.name for form in FORMATS.values()] == list(FORMATS)
    names = [check for form in FORMATS.values() for check in form.checks]
    assert len(names) == len(set(names))
    for form in FORMATS.values():
        assert form.summary
        assert bool(form.packages) == bool(form.extra)
        assert set(form.needs) <= FORMATS.keys()
