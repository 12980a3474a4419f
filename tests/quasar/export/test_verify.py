import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from hwmodel.errors import DamagedInputError, UsageError
from quasar.export.bundle import load_bundle, write_bundle
from quasar.export.onnx_int import build_integer
from quasar.export.verify import verify_bundle
from supernet.data.config import DataConfig
from supernet.data.splits import open_test
from supernet.evaluate import evaluate
from supernet.lowering import lower
from supernet.space import SearchSpace

SPACE = SearchSpace(
    num_classes=10,
    in_chans=1,
    patch_size=2,
    head_dim=8,
    image_size=(8, 16),
    embed_dim=(24,),
    depth=(2,),
    num_heads=(3,),
    mlp_ratio=(2.0,),
    high_precision_ratio=(0.5,),
)


CHECKS = [
    "files",
    "schema",
    "weights.bin",
    "golden vectors",
    "integers in ONNX Runtime",
    "integers in onnx.reference",
    "integer top-1",
    "QDQ top-1",
]


@pytest.fixture(scope="module")
def split():
    return open_test(DataConfig(name="digits"), image_size=16)


@pytest.fixture(scope="module")
def exported(make_module, make_info, split, tmp_path_factory):
    """Two bundles, for images of 8 pixels and of 16, from images of 16."""
    folder = tmp_path_factory.mktemp("export")
    mean, std = split.normalization
    bundles = []
    for subnet in (SPACE.smallest(), SPACE.largest()):
        module, x = make_module(subnet, space=SPACE)
        info = make_info(
            subnet,
            training_image_size=16,
            mean=mean,
            std=std,
            data_digests={"test": split.digest},
            test_accuracy=evaluate(module, split, batch_size=100).accuracy,
        )
        path = write_bundle(module, folder / str(subnet.image_size), info=info, images=x)
        bundles.append(load_bundle(path))
    return bundles


@pytest.mark.parametrize("index", [0, 1])
def test_both_models_are_compared_over_the_whole_split(exported, split, index):
    bundle, seen = exported[index], []
    report = verify_bundle(bundle, split, batch_size=100, progress=lambda *state: seen.append(state))
    assert report.images == len(split) == seen[-1][0] == seen[-1][1]
    assert report.torch_accuracy == evaluate(bundle.module(), split, batch_size=50).accuracy
    assert report.agreement >= 0.99
    assert report.integer_agreement >= 0.95
    assert 0 <= report.mean_logit_difference < 0.005
    assert report.mean_logit_difference <= report.max_logit_difference
    assert report.passed == (abs(report.onnx_accuracy - report.torch_accuracy) <= 0.003)
    assert report.integer_onnx_accuracy == report.integer_accuracy
    assert report.reference_images == 64
    assert 0 <= report.mean_integer_logit_difference <= report.max_integer_logit_difference < 0.5
    assert [check.name for check in report.checks] == CHECKS
    assert {check.status for check in report.exact} == {"passed"}
    assert abs(report.recorded_accuracy - report.torch_accuracy) < 0.05
    assert report.weight_bytes == report.onnx_weight_bytes == lower(bundle.config.subnet).weight_bytes
    assert report.file_bytes["model_qdq.onnx"] == (bundle.folder / "model_qdq.onnx").stat().st_size
    document = json.loads(json.dumps(report.to_dict()))
    assert document["difference_points"] == pytest.approx(100 * (report.onnx_accuracy - report.torch_accuracy))
    assert document["passed"] == report.passed


@pytest.fixture(scope="module")
def report(exported, split):
    """Of the first bundle, for other images than those that its manifest knows."""
    manifest = dataclasses.replace(exported[0].manifest, data_digests={"test": "other"})
    return verify_bundle(dataclasses.replace(exported[0], manifest=manifest), split)


def test_an_accuracy_of_other_images_is_not_compared(report):
    assert report.recorded_accuracy is None


def test_the_verdict_follows_the_difference(report):
    for onnx_accuracy, passed in ((0.503, True), (0.4971, True), (0.5031, False), (0.49, False)):
        judged = dataclasses.replace(report, torch_accuracy=0.5, onnx_accuracy=onnx_accuracy, integer_accuracy=0.5)
        assert judged.passed == passed
    for images, integer_accuracy, passed in ((1000, 0.503, True), (1000, 0.4969, False), (100, 0.52, True)):
        judged = dataclasses.replace(
            report, images=images, torch_accuracy=0.5, onnx_accuracy=0.5, integer_accuracy=integer_accuracy
        )
        assert judged.passed == passed


def statuses(report):
    return {check.name: check.status for check in report.checks}


@pytest.mark.parametrize(
    ("package", "missing"),
    [
        ("onnxruntime", {"integers in ONNX Runtime", "QDQ top-1"}),
        ("jsonschema", {"schema"}),
        ("onnx", {"integers in ONNX Runtime", "integers in onnx.reference"}),
    ],
)
def test_what_a_missing_package_would_check_is_not_passed(exported, split, monkeypatch, package, missing):
    monkeypatch.setitem(sys.modules, package, None)
    report = verify_bundle(exported[0], split)
    assert {name for name, status in statuses(report).items() if status == "not checked"} == missing
    assert all("pip install 'quasar-nas[export]'" in c.detail for c in report.checks if c.status == "not checked")
    document = json.loads(json.dumps(report.to_dict()))
    assert document["passed"] is True
    assert document["not_checked"] == len(missing)


def copied(bundle, tmp_path):
    """A copy of a bundle whose files may be changed: what `load_bundle` would notice is not looked at again."""
    return dataclasses.replace(bundle, folder=Path(shutil.copytree(bundle.folder, tmp_path / "bundle")))


def test_other_weights_in_an_integer_model_are_found(exported, split, tmp_path):
    bundle = copied(exported[0], tmp_path)
    network = bundle.integer_network()
    changed = dataclasses.replace(network, head=dataclasses.replace(network.head, bias=network.head.bias + 2000))
    (bundle.folder / "model_int.onnx").write_bytes(build_integer(changed).SerializeToString())
    report = verify_bundle(bundle, split)
    found = statuses(report)
    assert {name for name, status in found.items() if status == "FAILED"} == {
        "integers in ONNX Runtime",
        "integers in onnx.reference",
    }
    (detail,) = (check.detail for check in report.checks if check.name == "integers in ONNX Runtime")
    assert detail.startswith("not NumPy's: 2 tensors, the first is head of model_int.onnx; logits of ")
    assert not report.passed


@pytest.mark.parametrize("name", ["weights.bin", "vectors.npz"])
def test_damage_that_a_loaded_bundle_meets_names_the_file(exported, split, tmp_path, name):
    bundle = copied(exported[0], tmp_path)
    path = bundle.folder / name
    if name == "vectors.npz":
        arrays = dict(np.load(path))
        arrays["tensors/blocks.1.mix"] = arrays["tensors/blocks.1.mix"] + 1
        np.savez(path, **arrays)
        message = r"vectors\.npz: blocks\.1\.mix is not that of this network; export again"
    else:
        content = bytearray(path.read_bytes())
        content[0] ^= 1  # of the first row's bias
        path.write_bytes(content)
        message = r"weights\.bin: holds other integers in network\.patch_embed\.bias; export again"
    with pytest.raises(DamagedInputError, match=message):
        verify_bundle(bundle, split)


@pytest.mark.slow
def test_the_rtl_is_simulated_on_request(exported, split):
    report = verify_bundle(exported[0], split, rtl=True)
    (check,) = (check for check in report.checks if check.name == "RTL")
    if check.status == "not checked":
        pytest.skip(check.detail)
    assert check.status == "passed", check.detail


def test_without_a_simulator_the_rtl_is_not_checked(exported, split, monkeypatch):
    def missing(*_, **__):
        raise UsageError("simulation needs Verilator")

    monkeypatch.setattr("quasar.export.verify.check_layers", missing)
    report = verify_bundle(exported[0], split, rtl=True)
    (check,) = (check for check in report.checks if check.name == "RTL")
    assert (check.status, check.detail) == ("not checked", "simulation needs Verilator")
    assert report.passed


def test_a_manifest_that_the_schema_refuses_is_named(exported, split):
    manifest = dataclasses.replace(exported[0].manifest, test_accuracy=1.5)
    with pytest.raises(DamagedInputError, match=r"manifest\.json: \$\.test_accuracy: 1\.5 is greater than .*"):
        verify_bundle(dataclasses.replace(exported[0], manifest=manifest), split)


def test_another_data_set_is_refused(exported):
    other = open_test(DataConfig(name="digits", mean=(0.5,), std=(0.5,)), image_size=16)
    with pytest.raises(UsageError, match="normalization"):
        verify_bundle(exported[0], other)
