import dataclasses
import json

import pytest

from hwmodel.errors import UsageError
from quasar.export.bundle import load_bundle, write_bundle
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
    assert abs(report.recorded_accuracy - report.torch_accuracy) < 0.05
    assert report.weight_bytes == report.onnx_weight_bytes == lower(bundle.config.subnet).weight_bytes
    assert report.file_bytes["model_qdq.onnx"] == (bundle.folder / "model_qdq.onnx").stat().st_size
    document = json.loads(json.dumps(report.to_dict()))
    assert document["difference_points"] == pytest.approx(100 * (report.onnx_accuracy - report.torch_accuracy))
    assert document["passed"] == report.passed


def test_an_accuracy_of_other_images_is_not_compared(exported, split):
    manifest = dataclasses.replace(exported[0].manifest, data_digests={"test": "other"})
    report = verify_bundle(dataclasses.replace(exported[0], manifest=manifest), split)
    assert report.recorded_accuracy is None


def test_the_verdict_follows_the_difference(exported, split):
    report = verify_bundle(exported[0], split)
    for onnx_accuracy, passed in ((0.503, True), (0.4971, True), (0.5031, False), (0.49, False)):
        judged = dataclasses.replace(report, torch_accuracy=0.5, onnx_accuracy=onnx_accuracy, integer_accuracy=0.5)
        assert judged.passed == passed
    for images, integer_accuracy, passed in ((1000, 0.503, True), (1000, 0.4969, False), (100, 0.52, True)):
        judged = dataclasses.replace(
            report, images=images, torch_accuracy=0.5, onnx_accuracy=0.5, integer_accuracy=integer_accuracy
        )
        assert judged.passed == passed


def test_another_data_set_is_refused(exported):
    other = open_test(DataConfig(name="digits", mean=(0.5,), std=(0.5,)), image_size=16)
    with pytest.raises(UsageError, match="normalization"):
        verify_bundle(exported[0], other)
