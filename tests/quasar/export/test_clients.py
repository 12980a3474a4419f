"""The ONNX files in other people's tools. docs/other-tools.md has the versions, and what was measured with them."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from quasar.export.formats.registry import choose_formats
from quasar.export.onnx_int import build_integer, expected_tensors, watched
from quasar.export.onnx_qdq import Site, build_qdq
from quasar.export.qonnx_model import DOMAIN, DOMAIN_VERSION, QonnxBuilder, add_shapes
from quasar.export.write import write_bundle
from supernet.integer_vit import IntegerViT, find_ranges
from supernet.standalone import QuantLinear

DOCS = Path(__file__).resolve().parents[3] / "docs" / "other-tools.md"


@pytest.fixture
def network(make_module, subnets):
    """A module of one block with rows of both precisions, its integers, and images."""
    subnet = next(subnet for subnet in subnets if subnet.depth == 1 and 0 < subnet.blocks[0].fc1_ratio < 1)
    module, x = make_module(subnet, images=64)
    return module, IntegerViT.of(module, find_ranges(module, x)), x


def without_int4(model):
    """The same model with all 4-bit integers as INT8."""
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT4:
            codes = onnx.numpy_helper.to_array(tensor).astype(np.int8)
            tensor.CopyFrom(onnx.numpy_helper.from_array(codes, tensor.name))
    return model


@pytest.fixture
def run_openvino():
    openvino = pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'quasar-nas[clients]'")
    core = openvino.Core()

    def run(model, images):
        # By default it computes in bfloat16 on CPUs that can.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
        return compiled([images])[0]

    return run


def test_openvino_runs_the_qdq_file(network, run_openvino):
    module, _, x = network
    with torch.no_grad():
        theirs = module(x).numpy()
    ours = run_openvino(build_qdq(module), x.numpy())
    assert np.abs(ours - theirs).mean() < 0.005 * theirs.std()
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() >= 0.98


@pytest.mark.parametrize("int4", [True, False])
def test_openvino_gives_nearly_the_integers(network, run_openvino, int4):
    """It computes float64 in float32, so a sum now and then is rounded to the neighbouring code."""
    _, integers, x = network
    codes = integers.quantize_images(x)
    expected = integers(codes)
    logits = run_openvino(build_integer(integers, int4=int4), codes)
    assert logits.dtype == np.int16
    assert (logits == expected).all(axis=1).mean() >= 0.9
    assert (logits.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.98


@pytest.fixture
def run_tvm():
    tvm = pytest.importorskip("tvm", reason="needs Apache TVM: pip install 'quasar-nas[clients]'")
    from tvm.relax import VirtualMachine
    from tvm.relax.frontend.onnx import from_onnx

    def run(model, images):
        module = from_onnx(model, shape_dict={"images": list(images.shape)})
        machine = VirtualMachine(tvm.compile(module, target=tvm.target.Target("llvm")), tvm.cpu())
        outputs = machine["main"](tvm.runtime.tensor(images))
        return [output.numpy() for output in ([outputs] if hasattr(outputs, "numpy") else outputs)]

    return run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Field 'type' of 'value_info':UserWarning")
def test_tvm_gives_the_integers_of_every_tensor(network, run_tvm):
    _, integers, x = network
    codes = integers.quantize_images(x[:3])
    expected = expected_tensors(integers, codes)
    outputs = run_tvm(watched(build_integer(integers, int4=False), list(expected)), codes)
    for (name, wanted), found in zip(expected.items(), outputs, strict=True):
        assert found.dtype == wanted.dtype, name
        np.testing.assert_array_equal(found.reshape(wanted.shape), wanted, err_msg=name)


@pytest.mark.slow
def test_tvm_runs_the_qdq_file_without_int4(network, run_tvm):
    module, _, x = network
    with torch.no_grad():
        theirs = module(x).numpy()
    (ours,) = run_tvm(without_int4(build_qdq(module)), x.numpy())
    assert np.abs(ours - theirs).mean() < 0.005 * theirs.std()
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() >= 0.98


def in_codes(linear, rng, *, unit):
    """A linear of the same codes at scale 1, for inputs that are multiples of `unit`, as its bias is then too."""
    copy = QuantLinear(linear.plan)
    copy.codes.copy_(linear.codes)
    copy.bias.copy_(torch.from_numpy(rng.integers(-1000, 1000, linear.plan.rows) * unit))
    return copy


def exact_sums(linear, x):
    """The outputs of a linear at scale 1 in integers."""
    return x @ linear.codes.numpy().astype(np.int64).T + linear.bias.numpy().astype(np.int64)


@pytest.mark.slow
def test_hls4ml_gives_the_integers_of_an_mlp(network, tmp_path):
    """The codes of a block's two linears in C++ by hls4ml, with ReLU and a shift between, as it has no GELU."""
    hls4ml = pytest.importorskip("hls4ml", reason="needs hls4ml: pip install 'quasar-nas[clients]'")
    wrapper = pytest.importorskip("qonnx.core.modelwrapper", reason="needs qonnx: pip install 'quasar-nas[qonnx]'")
    from qonnx.util.cleanup import cleanup_model

    linears, rng, unit = network[0].blocks[0].mlp, np.random.default_rng(0), 2**7
    fc1, fc2 = in_codes(linears["fc1"], rng, unit=1), in_codes(linears["fc2"], rng, unit=unit)
    assert 0 < fc1.plan.rows_high < fc1.plan.rows
    code, shifted = (Site(scale=float(scale), zero_point=0, lowest=-127, limit=127) for scale in (1, unit))
    graph = QonnxBuilder()
    hidden = graph.linear(graph.at_site("codes", code, name="codes_quant"), fc1, code, name="fc1", tokens=())
    hidden = graph.op("Relu", graph.at_site(hidden, shifted, name="fc1_quant"), name="relu")
    graph.linear(hidden, fc2, shifted, name="fc2", tokens=())
    ends = {"inputs": {"codes": (1, fc1.plan.inputs)}, "outputs": {"fc2": (1, fc2.plan.rows)}}
    model = graph.model(name="mlp", metadata={}, domains={DOMAIN: DOMAIN_VERSION}, **ends)
    add_shapes(model)

    clean = cleanup_model(wrapper.ModelWrapper(model))
    config = hls4ml.utils.config.config_from_onnx_model(
        clean, granularity="name", backend="Vitis", default_precision="fixed<40,32>"
    )
    hls = hls4ml.converters.convert_from_onnx_model(
        clean, output_dir=str(tmp_path), hls_config=config, backend="Vitis", part="xczu9eg-ffvb1156-2-e"
    )
    hls.compile()

    x = rng.integers(-127, 128, (50, fc1.plan.inputs))
    hidden = np.rint(exact_sums(fc1, x) / unit).clip(0, 127).astype(np.int64)
    assert 0 < (hidden == 127).mean() < 0.5
    np.testing.assert_array_equal(hls.predict(x.astype(np.float32)), exact_sums(fc2, hidden * unit))


@pytest.fixture
def run_snippet(network, make_info, tmp_path, monkeypatch, capsys):
    """What the snippet of a section of the documentation prints, in the folder of a bundle, and the bundle's logits."""
    module, integers, x = network
    info = make_info(module.subnet, training_image_size=module.subnet.image_size)
    forms = choose_formats(["qdq", "integer", "qonnx"])
    monkeypatch.chdir(write_bundle(module, tmp_path / "bundle", info=info, images=x, formats=forms))
    with torch.no_grad():
        labels = module(torch.from_numpy(integers.quantize_images(x[:4]) * np.float32(integers.image_scale))).argmax(1)
    text = DOCS.read_text(encoding="utf-8")

    def run(section):
        first, own = (re.search("```python\n(.*?)```", text[at:], flags=re.DOTALL) for at in (0, text.index(section)))
        exec(first.group(1) + own.group(1), {})
        return capsys.readouterr().out.strip(), labels.numpy()

    return run


def test_the_snippet_for_qonnx(run_snippet, monkeypatch):
    execution = pytest.importorskip("qonnx.core.onnx_exec", reason="needs qonnx: pip install 'quasar-nas[qonnx]'")
    monkeypatch.setattr(execution, "qonnx_make_model", execution.qonnx_make_model)  # the snippet replaces it
    printed, labels = run_snippet("## QONNX")
    assert printed == str(labels)


def test_the_snippet_for_timm(run_snippet, network):
    size = network[0].subnet.image_size
    assert run_snippet("## timm")[0] == f"(3, {size}, {size}) 10"


def test_the_snippet_for_openvino(run_snippet):
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'quasar-nas[clients]'")
    printed, labels = run_snippet("## OpenVINO")
    assert printed == str(labels)


@pytest.mark.slow
def test_the_snippet_for_tvm(run_snippet):
    pytest.importorskip("tvm", reason="needs Apache TVM: pip install 'quasar-nas[clients]'")
    assert run_snippet("## Apache TVM")[0] == "True"
