import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from hwmodel.errors import DamagedInputError, UsageError
from quasar.export.bundle import load_bundle
from quasar.export.checks import Accuracy, Batch
from quasar.export.formats.registry import choose_formats
from quasar.export.onnx_int import build_integer
from quasar.export.verify import verify_bundle
from quasar.export.write import write_bundle
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


FORMS = choose_formats(["qdq", "integer", "packed"])
ABSENT = ["QONNX top-1", "integers in HLS C++"]
CHECKS = [
    "files",
    "schema",
    "golden vectors",
    "integer top-1",
    "timm module",
    "QDQ top-1",
    "QONNX top-1",
    "integers in ONNX Runtime",
    "integers in onnx.reference",
    "weights.bin",
    "integers in HLS C++",
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
        path = write_bundle(module, folder / str(subnet.image_size), info=info, images=x, formats=FORMS)
        bundles.append(load_bundle(path))
    return bundles


@pytest.fixture(scope="module")
def bare(make_module, make_info, split, tmp_path_factory):
    """A bundle without ONNX, which takes a moment to verify."""
    module, x = make_module(SPACE.smallest(), space=SPACE)
    mean, std = split.normalization
    info = make_info(module.subnet, mean=mean, std=std, data_digests={"test": split.digest})
    folder = tmp_path_factory.mktemp("bare") / "bundle"
    return load_bundle(write_bundle(module, folder, info=info, images=x, formats=choose_formats(["packed"])))


@pytest.mark.parametrize("index", [0, 1])
def test_all_forms_are_compared_over_the_whole_split(exported, split, index):
    bundle, seen = exported[index], []
    report = verify_bundle(bundle, split, batch_size=100, progress=lambda *state: seen.append(state))
    assert report.images == len(split) == seen[-1][0] == seen[-1][1]
    assert report.torch_accuracy == evaluate(bundle.module(), split, batch_size=50).accuracy
    document = json.loads(json.dumps(report.to_dict()))
    assert document["onnx_agreement"] >= 0.99
    assert document["integer_agreement"] >= 0.95
    assert 0 <= document["onnx_mean_logit_difference"] < 0.005
    assert document["onnx_mean_logit_difference"] <= document["onnx_max_logit_difference"]
    assert document["integer_onnx_accuracy"] == document["integer_accuracy"]
    assert document["reference_images"] == 64
    assert 0 <= document["integer_mean_logit_difference"] <= document["integer_max_logit_difference"] < 0.5
    points = 100 * (document["onnx_accuracy"] - report.torch_accuracy)
    assert document["onnx_difference_points"] == pytest.approx(points)
    assert document["passed"] == report.passed == (abs(points) <= 0.3)
    assert list(report.checks)[: len(CHECKS)] == CHECKS
    assert all(report.checks[name].status == "passed" for name in CHECKS if name not in ("QDQ top-1", *ABSENT))
    assert abs(report.recorded_accuracy - report.torch_accuracy) < 0.05
    assert report.weight_bytes == document["onnx_weight_bytes"] == lower(bundle.config.subnet).weight_bytes
    assert report.file_bytes == {
        path.name: path.stat().st_size for path in sorted(bundle.folder.iterdir(), key=lambda path: path.name)
    }


def test_an_accuracy_of_other_images_is_not_compared(bare, split):
    assert verify_bundle(bare, split).recorded_accuracy == bare.manifest.test_accuracy
    manifest = dataclasses.replace(bare.manifest, data_digests={"test": "other"})
    assert verify_bundle(dataclasses.replace(bare, manifest=manifest), split).recorded_accuracy is None


@pytest.mark.parametrize(
    ("tolerated", "images", "right", "status"),
    [
        (0, 1000, 503, "passed"),
        (0, 1000, 497, "passed"),
        (0, 1000, 504, "FAILED"),
        (0, 1000, 496, "FAILED"),
        (0, 100, 51, "FAILED"),
        (3, 1000, 503, "passed"),
        (3, 1000, 496, "FAILED"),
        (3, 100, 53, "passed"),  # three images are more than the tolerance
        (3, 100, 54, "FAILED"),
    ],
)
def test_the_verdict_follows_the_difference(tolerated, images, right, status):
    """Of a form with so many right labels from a subnet that has half of them right."""
    labels = np.zeros(images, dtype=np.int64)
    outputs, form = (np.eye(2)[(np.arange(images) >= count).astype(int)] for count in (images // 2, right))
    inspection = Accuracy(lambda batch: form[batch.codes], images=tolerated, prefix="form")
    for part in np.split(np.arange(images), 4):
        inspection.see(Batch(images=part, labels=labels[part], outputs=outputs[part], codes=part, logits=part))
    verdict = inspection.verdict()
    assert verdict.status == status
    points = 100 * (right - images // 2) / images
    assert verdict.figures["form_difference_points"] == pytest.approx(points)
    assert verdict.figures["form_accuracy"] == right / images
    assert verdict.figures["form_agreement"] == pytest.approx(1 - abs(points) / 100)
    assert verdict.figures["form_max_logit_difference"] == (1 if points else 0)
    assert verdict.figures["form_mean_logit_difference"] == pytest.approx(abs(points) / 100)


def statuses(report):
    return {name: check.status for name, check in report.checks.items() if name in CHECKS and name not in ABSENT}


@pytest.mark.parametrize(
    ("package", "missing"),
    [
        ("onnxruntime", {"integers in ONNX Runtime", "QDQ top-1"}),
        ("onnx", {"integers in ONNX Runtime", "integers in onnx.reference", "QDQ top-1"}),
    ],
)
def test_what_a_missing_package_would_check_is_not_passed(exported, split, monkeypatch, package, missing):
    monkeypatch.setitem(sys.modules, package, None)
    report = verify_bundle(exported[0], split)
    assert {name for name, status in statuses(report).items() if status == "not checked"} == missing
    assert all("pip install 'quasar-nas[export]'" in report.checks[name].detail for name in missing)
    document = json.loads(json.dumps(report.to_dict()))
    assert document["passed"] is True
    assert document["not_checked"] >= len(missing)


def test_without_jsonschema_the_schema_is_not_checked(bare, split, monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    check = verify_bundle(bare, split).checks["schema"]
    assert check.status == "not checked"
    assert "pip install 'quasar-nas[export]'" in check.detail


@pytest.fixture
def copy(exported, tmp_path):
    return Path(shutil.copytree(exported[0].folder, tmp_path / "bundle"))


def test_other_weights_in_an_integer_model_are_found(copy, signed, split):
    network = load_bundle(copy).integer_network()
    changed = dataclasses.replace(network, head=dataclasses.replace(network.head, bias=network.head.bias + 2000))
    (copy / "model_int.onnx").write_bytes(build_integer(changed).SerializeToString())
    report = verify_bundle(signed(copy), split)
    found = statuses(report)
    assert {name for name, status in found.items() if status == "FAILED"} == {
        "integers in ONNX Runtime",
        "integers in onnx.reference",
    }
    detail = report.checks["integers in ONNX Runtime"].detail
    assert detail.startswith("not NumPy's: 2 tensors, the first is head of model_int.onnx; logits of ")
    assert not report.passed


@pytest.mark.parametrize("name", ["weights.bin", "vectors.npz"])
def test_files_that_do_not_agree_are_named(copy, signed, split, name):
    path = copy / name
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
        verify_bundle(signed(copy), split)


def test_a_form_that_is_not_in_the_bundle_is_not_passed(bare, split):
    found = verify_bundle(bare, split).checks
    absent = ("QDQ top-1", "integers in ONNX Runtime", "integers in onnx.reference", *ABSENT)
    assert {name: check.status for name, check in found.items() if name in CHECKS} == {
        name: "not checked" if name in absent else "passed" for name in CHECKS
    }
    assert found["QDQ top-1"].detail == "not in this bundle; to have it: quasar export RUN --format qdq"


def test_a_manifest_that_the_schema_refuses_is_named(bare, split):
    manifest = dataclasses.replace(bare.manifest, test_accuracy=1.5)
    with pytest.raises(DamagedInputError, match=r"manifest\.json: \$\.test_accuracy: 1\.5 is greater than .*"):
        verify_bundle(dataclasses.replace(bare, manifest=manifest), split)


def test_another_data_set_is_refused(exported):
    other = open_test(DataConfig(name="digits", mean=(0.5,), std=(0.5,)), image_size=16)
    with pytest.raises(UsageError, match="normalization"):
        verify_bundle(exported[0], other)
