import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from hwmodel.integer_vector import IntegerLayerNorm
from quasar.export.onnx_int import IntegerBuilder, build_integer, expected_tensors, watched
from supernet.data.config import DataConfig
from supernet.data.splits import open_test
from supernet.integer_vit import IntegerNorm, IntegerViT, find_ranges
from supernet.lowering import lower
from supernet.space import SearchSpace


def open_session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def integer_network(module, x):
    return IntegerViT.of(module, find_ranges(module, x))


def assert_same(network, codes, *, int4=True):
    """NumPy, ONNX Runtime and the reference give the same integers in every tensor of every layer."""
    expected = expected_tensors(network, codes)
    model = build_integer(network, int4=int4)
    names = list(expected)
    feeds = {"images": codes}
    copy = watched(model, names)
    for runtime in (open_session(copy), ReferenceEvaluator(copy)):
        for name, array in zip(names, runtime.run(None, feeds), strict=True):
            wanted = expected[name]
            assert array.dtype == wanted.dtype, name
            np.testing.assert_array_equal(array.reshape(wanted.shape), wanted, err_msg=name)
    # with all the fusions that a runtime does when nobody watches
    (logits,) = open_session(model).run(None, feeds)
    np.testing.assert_array_equal(logits, expected["logits"])


@pytest.mark.parametrize("layer_scale", [0.1, None])
@pytest.mark.parametrize("int4", [True, False])
@pytest.mark.parametrize("index", [0, 1])
def test_every_tensor_is_that_of_the_integer_network(make_module, subnets, index, int4, layer_scale):
    module, x = make_module(subnets[index], seed=index, layer_scale=layer_scale, images=16)
    network = integer_network(module, x)
    assert_same(network, network.quantize_images(x[:2]), int4=int4)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**16),
    st.sampled_from([4, 8, 12]),
    st.sampled_from([1, 3]),
    st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), min_size=1, max_size=3, unique=True),
)
def test_every_tensor_for_random_spaces(make_module, seed, head_dim, in_chans, ratios):
    space = SearchSpace(
        num_classes=7,
        in_chans=in_chans,
        patch_size=2,
        head_dim=head_dim,
        image_size=(4, 6, 8),
        embed_dim=(10, 16, 23),
        depth=(1, 2),
        num_heads=(1, 2, 3),
        mlp_ratio=(1.0, 2.2),
        high_precision_ratio=tuple(sorted(ratios)),
    )
    (genotype,) = space.sample(np.random.default_rng(seed), 1)
    module, x = make_module(space.decode(genotype), space=space, seed=seed, images=8)
    network = integer_network(module, x)
    # images of codes far beyond those of the calibration saturate the residual stream
    wild = np.random.default_rng(seed).integers(-128, 128, (1, *x.shape[1:]), dtype=np.int8)
    assert_same(network, np.concatenate([network.quantize_images(x[:2]), wild]), int4=bool(seed % 2))


def test_every_tensor_of_a_subnet_for_digits(make_module):
    space = SearchSpace(
        num_classes=10,
        in_chans=1,
        patch_size=2,
        head_dim=8,
        image_size=(8,),
        embed_dim=(24,),
        depth=(2,),
        num_heads=(3,),
        mlp_ratio=(2.0,),
        high_precision_ratio=(0.5,),
    )
    module, _ = make_module(space.largest(), space=space, images=8)
    test = open_test(DataConfig(name="digits"), image_size=8)
    x, _ = next(iter(test.batches(48)))
    network = integer_network(module, x)
    assert_same(network, network.quantize_images(x))


@pytest.mark.parametrize("width", [1, 2, 3, 64, 1000, 1024])
def test_layernorm_over_the_whole_range(width):
    rng = np.random.default_rng(width)
    operation = IntegerLayerNorm.random(rng, rows=200, width=width)
    extremes = np.concatenate(
        [
            np.full((1, width), code) if kind == "flat" else np.where(np.arange(width) % 2, code, -code - 1)[None]
            for code in (0, 1, -1, 32767, -32768)
            for kind in ("flat", "split")
        ]
    )
    x = np.concatenate([operation.x, np.clip(extremes, -32768, 32767).astype(np.int16)])
    expected = IntegerLayerNorm(x=x, constants=operation.constants).outputs()
    graph = IntegerBuilder(int4=True)
    graph.norm("x", IntegerNorm(name="y", constants=operation.constants))
    model = graph.model(
        name="norm",
        inputs={"x": ("rows", width)},
        outputs={"y": ("rows", width)},
        input_type="INT16",
        output_type="INT8",
        metadata={},
    )
    for outputs in (open_session(model).run(None, {"x": x}), ReferenceEvaluator(model).run(None, {"x": x})):
        np.testing.assert_array_equal(outputs[0], expected)


@pytest.mark.parametrize("error", [-1, 0, 1])
def test_the_root_is_exact_where_the_runtime_is_one_off(error, monkeypatch):
    """Squares and their neighbours below 2^52, with a root that is wrong by one."""
    root = np.concatenate([np.arange(2.0, 40), 2.0**26 - np.arange(1, 20)])
    x = np.concatenate([root**2 + offset for offset in (-1, 0, 1)])[:, None]
    graph = IntegerBuilder(int4=True)
    near = graph.op
    monkeypatch.setattr(
        graph,
        "op",
        lambda kind, *inputs, name, **more: (
            near("Add", near("Sqrt", *inputs, name=f"{name}.exact"), graph.number(float(error)), name=name)
            if kind == "Sqrt"
            else near(kind, *inputs, name=name, **more)
        ),
    )
    graph._root("x", "y")
    types = {"input_type": "DOUBLE", "output_type": "DOUBLE"}
    model = graph.model(name="root", inputs={"x": ("n", 1)}, outputs={"y.root": ("n", 1)}, metadata={}, **types)
    (found,) = open_session(model).run(None, {"x": x})
    exact = np.array([int(value) for value in x[:, 0]], dtype=object)
    assert all(r * r <= v < (r + 1) ** 2 for r, v in zip(found[:, 0].astype(int).tolist(), exact, strict=True))


def test_what_the_files_hold(make_module, subnets):
    module, x = make_module(subnets[0], images=8)
    network = integer_network(module, x)
    small, plain = build_integer(network), build_integer(network, int4=False)
    types = [{tensor.data_type for tensor in model.graph.initializer} for model in (small, plain)]
    assert TensorProto.INT4 in types[0]
    assert TensorProto.INT4 not in types[1]
    packed = {t.name: len(t.raw_data) for t in small.graph.initializer if t.name.endswith((".w8", ".w4"))}
    assert sum(packed.values()) == pytest.approx(lower(module.subnet).weight_bytes, rel=0.02)
    assert small.ir_version == 10
    assert {prop.key: prop.value for prop in small.metadata_props} == {
        "producer": "quasar",
        "subnet": module.subnet.digest,
        "image_scale": repr(network.image_scale),
        "logit_scale": repr(network.logit_scale),
    }
    onnx.checker.check_model(small, full_check=True)


def test_the_batch_is_dynamic(make_module, subnets):
    module, x = make_module(subnets[0], images=8)
    network = integer_network(module, x)
    session, codes = open_session(build_integer(network)), network.quantize_images(x)
    whole = session.run(None, {"images": codes})[0]
    single = [session.run(None, {"images": codes[i : i + 1]})[0] for i in range(len(codes))]
    np.testing.assert_array_equal(whole, np.concatenate(single))


@pytest.mark.slow
@torch.no_grad()
def test_every_tensor_for_many_subnets(make_module, space):
    for seed, genotype in enumerate(space.sample(np.random.default_rng(8), 25)):
        module, x = make_module(space.decode(genotype), seed=seed, images=16)
        network = integer_network(module, x)
        assert_same(network, network.quantize_images(x[:4]))


@pytest.mark.slow
def test_every_tensor_of_a_subnet_of_the_size_of_deit_tiny(make_module, deit_tiny):
    module, x = make_module(deit_tiny.largest(), space=deit_tiny, images=2)
    network = integer_network(module, x)
    assert_same(network, network.quantize_images(x[:1]))
