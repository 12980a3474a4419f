import collections
import dataclasses
import importlib
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from hwmodel.errors import UsageError
from quasar.export.onnx_qdq import Site
from quasar.export.qonnx_model import DOMAIN, QonnxBuilder, build_qonnx, readable_nodes, run_qonnx
from supernet.lowering import lower
from supernet.plan import linear_plan
from supernet.standalone import QuantLinear

pytest.importorskip("qonnx", reason="needs qonnx: pip install 'quasar-nas[qonnx]'")

from qonnx.analysis.inference_cost import inference_cost
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
from qonnx.transformation.infer_datatypes import InferDataTypes
from qonnx.util.cleanup import cleanup_model


@torch.no_grad()
def assert_same(module, x):
    """Both add floats, in another order: the last digits differ, and a code now and then, which few images show."""
    ours, theirs = run_qonnx(build_qonnx(module), x.numpy()), module(x).numpy()
    assert ours.shape == theirs.shape
    equal = np.abs(ours - theirs).max(axis=1) < 1e-4 * theirs.std()
    assert equal.mean() >= 0.9
    assert np.abs(ours - theirs).mean() < 0.002 * theirs.std()


@pytest.mark.parametrize(("index", "layer_scale"), [(0, None), (1, 0.1), (2, 0.1)])
def test_agrees_with_the_module(make_module, subnets, index, layer_scale):
    module, x = make_module(subnets[index], seed=index, layer_scale=layer_scale, images=32)
    assert_same(module, x)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_agrees_for_every_share_of_high_rows(make_module, space, ratio):
    space = dataclasses.replace(space, high_precision_ratio=(ratio,), depth=(1,))
    module, x = make_module(space.largest(), space=space, images=16)
    assert_same(module, x)


@pytest.mark.parametrize("weight_bits", [(3, 6), (4, 4), (2, 8)])
def test_agrees_for_other_bits(make_module, space, weight_bits):
    space = dataclasses.replace(space, weight_bits=weight_bits, depth=(1,))
    module, x = make_module(space.largest(), space=space, images=16)
    assert_same(module, x)


def test_saturates_where_the_module_does(make_module, round_biases, subnets):
    module, x = make_module(subnets[0], images=16)
    for sites in (module.sites, *(s for block in module.blocks for s in (block.sites, block.mixer_sites))):
        sites.scale.mul_(0.2)
    assert_same(round_biases(module), x)


def test_agrees_for_fewer_activation_bits(make_module, round_biases, subnets):
    module, x = make_module(subnets[0], images=16)
    for sites in (module.sites, *(s for block in module.blocks for s in (block.sites, block.mixer_sites))):
        sites.limit = 31.0
        sites.scale.mul_(127 / 31)
    assert_same(round_biases(module), x)


@torch.no_grad()
def test_pruned_rows_and_channels(make_module, subnets):
    module, x = make_module(subnets[0], images=16)
    for block in module.blocks:
        for linear in (block.mixer["qkv"], block.mixer["proj"], block.mlp["fc1"], block.mlp["fc2"]):
            linear.codes[:2] = 0
            linear.scale[:2] = 1e-8 / 127  # what the supernet gives to rows of zeros
            linear.bias[:2] = 0
    assert_same(module, x)


def quant_nodes(model):
    return {node.name: node for node in model.graph.node if node.op_type == "Quant"}


def test_weights_are_quantized_row_by_row(make_module, space):
    """Constants over scales are the codes, at the bits of their rows, in the order of the module."""
    space = dataclasses.replace(space, high_precision_ratio=(0.3,), depth=(2,))
    module, _ = make_module(space.largest(), space=space, images=8)
    model = build_qonnx(module)
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes, qkv = quant_nodes(model), module.blocks[1].mixer["qkv"]
    for label, bits, chosen in (("high", 8, qkv.plan.is_high), ("low", 4, ~qkv.plan.is_high)):
        node = nodes[f"blocks.1.qkv.{label}.weight_quant"]
        weight, scale, zero_point, node_bits = (values[name] for name in node.input)
        assert (zero_point, node_bits) == (0, bits)
        assert zero_point.shape == node_bits.shape == ()
        codes = weight / scale
        np.testing.assert_allclose(codes, np.rint(codes), atol=1e-4)
        np.testing.assert_array_equal(np.rint(codes).T, qkv.codes.numpy()[chosen])
        np.testing.assert_array_equal(scale[0], qkv.scale.numpy()[chosen])


def test_zero_points_are_those_of_the_sites(make_module, subnets):
    module, _ = make_module(subnets[0], images=8)
    model = build_qonnx(module)
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes, sites = quant_nodes(model), module.blocks[0].sites
    zero_points = {site: float(values[nodes[f"blocks.0.{site}_quant"].input[2]]) for site in sites.names}
    assert zero_points == dict(zip(sites.names, sites.zero_point.tolist(), strict=True))
    assert zero_points["gelu"] < -100
    narrow = {site: nodes[f"blocks.0.{site}_quant"].attribute[0].i for site in sites.names}
    assert narrow == {"norm1": 1, "norm2": 1, "fc1": 1, "gelu": 0}


def test_what_qonnx_makes_of_it(make_module, subnets):
    """Its clean-up, shapes, change to channels-last, data types and count of operations take the file."""
    subnet = next(subnet for subnet in subnets if subnet.depth == 1)
    module, x = make_module(subnet, images=8)
    model = ModelWrapper(build_qonnx(module))
    clean = cleanup_model(model, extract_conv_bias=True)
    assert clean.check_all_tensor_shapes_specified()
    with readable_nodes():
        (logits,) = execute_onnx(clean, {clean.graph.input[0].name: x[:1].numpy()}).values()
    with torch.no_grad():
        np.testing.assert_allclose(logits, module(x[:1]).numpy(), atol=1e-5)
    # its Conv cannot be executed where onnx is newer than ONNX Runtime, see `readable_nodes`
    channels_last = clean.transform(ConvertToChannelsLastAndClean())
    (conv,) = channels_last.get_nodes_by_op_type("Conv")
    assert conv.domain == "qonnx.custom_op.channels_last"
    assert channels_last.get_tensor_shape(conv.input[1])[-1] == subnet.in_chans
    typed = clean.transform(InferDataTypes(allow_scaledint_dtypes=True))
    cost = inference_cost(typed, discount_sparsity=False)["total_cost"]
    macs = {key.rsplit("_", 1)[1]: 0.0 for key in cost if key.startswith("op_mac")}
    for key, count in cost.items():
        if key.startswith("op_mac"):
            macs[key.rsplit("_", 1)[1]] += count
    gemms = lower(subnet).gemms
    low = sum(gemm.tokens * gemm.inputs * gemm.rows_low * gemm.count for gemm in gemms)
    assert macs == {"SCALEDINT<4>": low, "SCALEDINT<8>": lower(subnet).macs - low}


@pytest.fixture
def brevitas():
    """Warns of kernels that it does not find."""
    pytest.importorskip("onnxoptimizer", reason="brevitas' exporter needs onnxoptimizer, of the extra dev")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SimpleNamespace(
            nn=pytest.importorskip("brevitas.nn", reason="needs brevitas, of the extra dev"),
            quant=importlib.import_module("brevitas.quant"),
            export=importlib.import_module("brevitas.export"),
        )


@torch.no_grad()
def export_by_brevitas(brevitas, linear, site, path):
    """The nodes of a linear with rows of two precisions, and the values of their constants, by brevitas' exporter."""
    act = {"scaling_impl_type": "const", "scaling_init": site.scale * site.limit, "narrow_range": True}
    quantize = brevitas.nn.QuantIdentity(
        act_quant=type("Act", (brevitas.quant.Int8ActPerTensorFloat,), act), return_quant_tensor=True
    )
    parts = []
    for bits, largest, chosen in ((8, 127, linear.plan.is_high), (4, 7, ~linear.plan.is_high)):
        scale = linear.scale[chosen][:, None]
        rows = {"bit_width": bits, "scaling_impl_type": "const", "scaling_init": scale * largest}
        part = brevitas.nn.QuantLinear(
            linear.plan.inputs,
            int(chosen.sum()),
            bias=True,
            weight_quant=type("Rows", (brevitas.quant.Int8WeightPerChannelFloat,), rows),
            bias_quant=brevitas.quant.Int32Bias,
        )
        part.weight.copy_(linear.codes[chosen] * scale)
        part.bias.copy_(linear.bias[chosen])
        parts.append(part)

    class Mixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.quantize, self.parts = quantize, torch.nn.ModuleList(parts)

        def forward(self, x):
            x = self.quantize(x)
            return torch.cat([part(x) for part in self.parts], dim=-1)

    brevitas.export.export_qonnx(Mixed().eval(), args=torch.zeros(1, linear.plan.inputs), export_path=str(path))
    return onnx.load(path)


def described(model):
    """Of each Quant node its domain, attributes and parameters, and what it quantizes, if that is a constant."""
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    result = {}
    for node in model.graph.node:
        if node.op_type != "Quant":
            continue
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        constant, scale, zero_point, bits = (values.get(name) for name in node.input)
        kind = ("input" if constant is None else "weight" if constant.ndim == 2 else "bias", int(np.size(scale)))
        if kind[0] == "weight" and len(scale) == 1:  # ours are (inputs, rows), for a MatMul
            constant, scale = constant.T, scale.T
        shapes = (np.shape(scale), np.shape(zero_point), np.shape(bits))
        result[kind] = (node.domain, attributes, shapes, (constant, scale, zero_point, bits))
    return result


@pytest.mark.slow
@torch.no_grad()
def test_brevitas_writes_the_same_quant_nodes(brevitas, subnets, tmp_path):
    """The dialect is that of brevitas' exporter: a linear of 3 rows at 8 bits and 5 at 4, node by node."""
    linear = QuantLinear(linear_plan(subnets[0], site="norm1", rows=8, inputs=6, ratio=0.375))
    site = Site(scale=0.037, zero_point=0, lowest=-127, limit=127)
    rng = np.random.default_rng(0)
    largest = np.where(linear.plan.is_high, 127, 7)[:, None]
    linear.codes.copy_(torch.from_numpy(rng.integers(-largest, largest + 1, (8, 6))))
    linear.scale.copy_(torch.from_numpy(rng.uniform(0.01, 0.1, 8)))
    linear.bias.copy_(torch.from_numpy(rng.normal(size=8)))
    graph = QonnxBuilder()
    graph.linear(graph.at_site("x", site, name="x_quant"), linear, site, name="y", tokens=())
    ends = {"inputs": {"x": (1, 6)}, "outputs": {"y": (1, 8)}}
    ours = graph.model(name="linear", metadata={}, domains={DOMAIN: 1}, **ends)
    theirs = export_by_brevitas(brevitas, linear, site, tmp_path / "linear.onnx")
    nodes, expected = described(ours), described(theirs)
    assert nodes.keys() == expected.keys() == {("input", 1), ("weight", 3), ("weight", 5), ("bias", 3), ("bias", 5)}
    for kind, (domain, attributes, shapes, values) in nodes.items():
        assert (domain, attributes, shapes) == expected[kind][:3], kind
        for value, wanted in zip(values, expected[kind][3], strict=True):
            assert value is wanted is None or np.allclose(value, wanted, rtol=1e-6), kind
    x = rng.normal(size=(1, 6)).astype(np.float32) * 3
    with readable_nodes():
        logits = [
            next(iter(execute_onnx(wrapped, {wrapped.graph.input[0].name: x}).values()))
            for wrapped in (cleanup_model(ModelWrapper(model)) for model in (ours, theirs))
        ]
    np.testing.assert_allclose(*logits, rtol=1e-5)


def test_says_what_it_is(make_module, subnets):
    model = build_qonnx(make_module(subnets[0], images=8)[0])
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 21, DOMAIN: 1}
    assert {prop.key: prop.value for prop in model.metadata_props} == {
        "producer": "quasar",
        "subnet": subnets[0].digest,
    }
    kinds = collections.Counter(node.domain for node in model.graph.node)
    assert kinds[DOMAIN] == len(quant_nodes(model))


def test_the_shapes_of_all_tensors_are_in_the_file(make_module, subnets):
    model = build_qonnx(make_module(subnets[0], images=8)[0])
    shapes = {
        info.name: tuple(size.dim_value for size in info.type.tensor_type.shape.dim) for info in model.graph.value_info
    }
    assert shapes.keys() | {"logits"} == {node.output[0] for node in model.graph.node}
    assert all(all(shape) for shape in shapes.values())
    subnet, block = subnets[0], subnets[0].blocks[0]
    assert shapes["blocks.0.softmax"] == (1, block.num_heads, subnet.tokens, subnet.tokens)
    assert shapes["blocks.0.fc1_quant"] == (1, subnet.tokens, round(block.mlp_ratio * subnet.embed_dim))


def test_other_operators_are_refused_by_name(make_module, subnets):
    module, _ = make_module(subnets[0], images=8)
    block = dataclasses.replace(module.subnet.blocks[-1], operator="conv")
    module.subnet = dataclasses.replace(module.subnet, blocks=(*module.subnet.blocks[:-1], block))
    with pytest.raises(UsageError, match=rf"blocks\[{module.subnet.depth - 1}\]: the operator 'conv'"):
        build_qonnx(module)


def test_without_qonnx_the_pip_command_is_named(make_module, subnets, monkeypatch):
    module, x = make_module(subnets[0], images=8)
    monkeypatch.setitem(sys.modules, "qonnx.core.modelwrapper", None)
    with pytest.raises(UsageError, match=r"pip install 'quasar-nas\[qonnx\]'"):
        run_qonnx(build_qonnx(module), x.numpy())


@pytest.mark.slow
@torch.no_grad()
def test_a_model_of_the_size_of_deit_tiny(make_module, deit_tiny):
    """So many codes lie at a boundary that some differ in every image: as many as between float32 and float64."""
    module, x = make_module(deit_tiny.largest(), space=deit_tiny, images=4)
    theirs = module(x).numpy()
    ours = run_qonnx(build_qonnx(module), x.numpy())
    exact = module.double()(x.double()).numpy()
    assert np.abs(ours - theirs).mean() < 1.5 * np.abs(exact - theirs).mean() < 0.05 * theirs.std()
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).all()
