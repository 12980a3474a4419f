import collections
import dataclasses
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from hwmodel.errors import UsageError
from quasar.export.onnx_qdq import Rows, Site, build_qdq, weight_bytes
from supernet.lowering import lower
from supernet.plan import attention_plan


def open_session(model, options=None):
    options = options or onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # idle threads would spin beside torch's
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def both_logits(module, x, model=None):
    (logits,) = open_session(model or build_qdq(module)).run(None, {"images": x.numpy()})
    return logits, module(x).numpy()


def assert_same(module, x):
    """Equal but for single codes: a few images in a hundred may differ at all."""
    ours, theirs = both_logits(module, x)
    assert np.abs(ours - theirs).mean() < 0.002 * theirs.std()
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() >= 0.99


@pytest.mark.parametrize("layer_scale", [0.1, None])
@pytest.mark.parametrize("index", range(6))
def test_agrees_with_the_module(make_module, subnets, index, layer_scale):
    module, x = make_module(subnets[index], seed=index, layer_scale=layer_scale)
    assert_same(module, x)


def test_the_random_subnets_differ_in_size_and_depth(subnets):
    assert {subnet.image_size for subnet in subnets} == {16, 24}
    assert {subnet.depth for subnet in subnets} == {1, 2, 3}


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_agrees_for_every_share_of_high_rows(make_module, space, ratio):
    space = dataclasses.replace(space, high_precision_ratio=(ratio,), depth=(2,))
    module, x = make_module(space.largest(), space=space)
    assert_same(module, x)


@pytest.mark.parametrize("weight_bits", [(3, 6), (4, 4), (8, 8), (2, 8)])
def test_agrees_for_other_bits(make_module, space, weight_bits):
    space = dataclasses.replace(space, weight_bits=weight_bits, depth=(1,))
    module, x = make_module(space.largest(), space=space)
    assert_same(module, x)


def test_rounding_the_biases_changes_little(make_module, subnets):
    ours, theirs = both_logits(*make_module(subnets[0]))
    assert np.abs(ours - theirs).mean() < 0.05 * theirs.std()


def test_saturates_where_the_module_does(make_module, round_biases, subnets):
    module, x = make_module(subnets[0])
    # Every site sees values far outside its range, of both signs, so the code -128 would show.
    for block in module.blocks:
        block.sites.scale.mul_(0.2)
        block.mixer_sites.scale.mul_(0.2)
    module.sites.scale.mul_(0.2)
    assert_same(round_biases(module), x)


def test_agrees_for_fewer_activation_bits(make_module, round_biases, subnets):
    module, x = make_module(subnets[0])
    module.subnet = dataclasses.replace(module.subnet, act_bits=6)
    for sites in (module.sites, *(s for block in module.blocks for s in (block.sites, block.mixer_sites))):
        sites.limit = 31.0
        sites.scale.mul_(127 / 31)
    assert_same(round_biases(module), x)


def test_agrees_with_pruned_rows_and_channels(make_module, round_biases, subnets):
    module, x = make_module(subnets[0])
    for block in module.blocks:
        block.scale1[0] = 0.0
        for linear in (block.mixer["qkv"], block.mixer["proj"], block.mlp["fc1"], block.mlp["fc2"]):
            linear.codes[:2] = 0
            linear.scale[:2] = 1e-8 / 127  # what the supernet gives to rows of zeros
    # Biases of pruned rows are far beyond 32 bits in units of such a scale: the export has to find another scale.
    biases = {name: value.clone() for name, value in module.state_dict().items() if name.endswith("bias")}
    round_biases(module)
    module.load_state_dict(biases, strict=False)
    ours, theirs = both_logits(module, x)
    assert np.abs(ours - theirs).mean() < 0.05 * theirs.std()


def test_the_batch_is_dynamic(make_module, subnets):
    module, x = make_module(subnets[0])
    session = open_session(build_qdq(module))
    whole = session.run(None, {"images": x[:5].numpy()})[0]
    single = [session.run(None, {"images": x[i : i + 1].numpy()})[0] for i in range(5)]
    np.testing.assert_allclose(whole, np.concatenate(single), atol=1e-5)
    assert [d.dim_param or d.dim_value for d in build_qdq(module).graph.output[0].type.tensor_type.shape.dim] == [
        "batch",
        10,
    ]


def test_onnx_runtime_finds_its_integer_kernels(make_module, space, tmp_path):
    module, _ = make_module(space.largest())
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # it warns that such a file suits one machine only
    open_session(build_qdq(module), options)
    kinds = collections.Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    depth = module.subnet.depth
    assert kinds["QGemm"] == 2 + 6 * depth  # q, k, v, proj, fc1 and fc2
    assert kinds["MatMulIntegerToFloat"] == depth
    assert not kinds.keys() & {"Gemm", "Cast", "Concat"}


def test_the_overflow_option_of_onnx_runtime_changes_nothing(make_module, subnets):
    module, x = make_module(subnets[0])
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    model = build_qdq(module)
    exact = open_session(model, options).run(None, {"images": x.numpy()})[0]
    ours, _ = both_logits(module, x, model)
    assert np.abs(ours - exact).mean() < 0.002 * exact.std()


def test_the_reference_runtime_agrees(make_module, subnets):
    module, x = make_module(subnets[0], images=16)
    with torch.no_grad():
        theirs = module(x).numpy()
    (ours,) = ReferenceEvaluator(build_qdq(module)).run(None, {"images": x.numpy()})
    assert np.abs(ours - theirs).mean() < 0.002 * theirs.std()


def test_4_bit_rows_take_4_bits(make_module, space):
    space = dataclasses.replace(space, high_precision_ratio=(0.3,), depth=(2,))
    module, _ = make_module(space.largest(), space=space)
    model, subnet = build_qdq(module), module.subnet
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    low = tensors["blocks.1.k.low_rows"]
    assert low.data_type == TensorProto.INT4
    plan = attention_plan(subnet, subnet.blocks[1])["qkv"]
    heads, channels, width = subnet.blocks[1].num_heads, subnet.head_dim, subnet.embed_dim
    assert tuple(low.dims) == (heads, channels - plan.high, width)
    codes = module.blocks[1].mixer["qkv"].codes.reshape(heads, 3, channels, width)[:, 1].numpy()
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(low).astype(np.int8), codes[:, plan.high :])
    high = tensors["blocks.1.k.high_rows"]
    assert high.data_type == TensorProto.INT8
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(high), codes[:, : plan.high])
    assert weight_bytes(model) == lower(subnet).weight_bytes
    parameters = sum(linear.codes.numel() for linear in module.modules() if hasattr(linear, "codes"))
    assert model.ByteSize() < 4 * parameters


def test_says_what_it_is(make_module, subnets):
    model = build_qdq(make_module(subnets[0])[0])
    onnx.checker.check_model(model, full_check=True)
    assert {prop.key: prop.value for prop in model.metadata_props} == {
        "producer": "quasar",
        "subnet": subnets[0].digest,
    }
    assert (model.ir_version, model.opset_import[0].version, model.producer_name) == (10, 21, "quasar")


def test_other_operators_are_refused_by_name(make_module, subnets):
    module, _ = make_module(subnets[0])
    block = dataclasses.replace(module.subnet.blocks[-1], operator="conv")
    module.subnet = dataclasses.replace(module.subnet, blocks=(*module.subnet.blocks[:-1], block))
    with pytest.raises(UsageError, match=rf"blocks\[{module.subnet.depth - 1}\]: the operator 'conv'"):
        build_qdq(module)


def test_sums_that_could_overflow_are_refused():
    inputs = 2**18
    rows = Rows(
        codes=np.full((1, inputs), 127, dtype=np.int8),
        scale=np.ones(1),
        bias=np.zeros(1),
        group=1,
        high=1,
        low_bits=4,
        high_bits=8,
    )
    symmetric = Site(scale=1.0, zero_point=0, lowest=-127, limit=127)
    with pytest.raises(UsageError, match="overflow"):
        rows.in_int32(symmetric)
    half = dataclasses.replace(rows, codes=rows.codes[:, : inputs // 2])
    with pytest.raises(UsageError, match="overflow"):  # codes less a zero point reach up to 255
        half.in_int32(Site(scale=1.0, zero_point=-120, lowest=-128, limit=127))
    assert half.in_int32(symmetric).scale == 1.0


def test_without_onnx_the_pip_command_is_named(make_module, subnets, monkeypatch):
    module, _ = make_module(subnets[0])
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match=r"pip install 'quasar-nas\[export\]'"):
        build_qdq(module)


@pytest.mark.slow
def test_a_model_of_the_size_of_deit_tiny_takes_four_megabytes(make_module, deit_tiny):
    module, _ = make_module(deit_tiny.largest(), space=deit_tiny, images=2)
    model = build_qdq(module)
    assert weight_bytes(model) == lower(module.subnet).weight_bytes
    assert model.ByteSize() < 4.3e6
