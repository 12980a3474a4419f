"""An extracted subnet as a QONNX graph: a float graph in which `Quant` nodes round and clip.

    images (1, C, S, S) float32, normalised  ->  logits (1, classes) float32

It is the network of `SubnetViT`, step by step: a Quant node (Pappalardo et al. 2022, arXiv:2206.07527) stands at every
activation site, with its zero point where it has one, and behind every constant with weights or a bias. What flows
between the nodes are the values, not the codes. The rest is standard ONNX.

* A linear is one MatMul for its rows at high precision and one for those at low precision, joined by a Concat, because
  qonnx and its consumers take a single bit width for each Quant node. Of qkv, whose high rows lead each group of rows,
  the outputs are joined group by group, which restores their order. The patch embedding is a Conv.
* A bias is rounded to 32 bits in units of its accumulator, `row scale * input scale`.
* The batch is 1 and all shapes are static and in the file, as is usual in QONNX; every Reshape has the batch in front,
  where qonnx's ChangeBatchSize changes it.

The dialect is what brevitas 0.13 writes: the domain, attributes, scalar zero points and bit widths. Its exporter is not
used: the subnet would first have to be copied into modules of its own, two for each linear; it needs onnxoptimizer and
an old setuptools; and it names tensors by its trace. A test compares the two, node by node.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from quasar.export.onnx_graph import IR_VERSION, GraphBuilder
from quasar.export.onnx_qdq import Site, read_sites, refuse_other_operators
from quasar.export.optional import require
from supernet.operators.integer import LAYER_NORM_EPSILON
from supernet.operators.linear_angular import BIAS
from supernet.standalone import LayerNorm, QuantLinear, SubnetBlock, SubnetViT
from supernet.subnet import BlockChoice, Subnet

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor

FloatArray = NDArray[np.float32]

#: of the Quant nodes; version 1 is the first with them
DOMAIN, DOMAIN_VERSION = "qonnx.custom_op.general", 1
BIAS_BITS = 32
#: orders of axes: (batch, tokens, heads, channels) with the heads first, and then the channels before the tokens
_HEADS_FIRST, _CHANNELS_FIRST = (0, 2, 1, 3), (0, 2, 3, 1)


class QonnxBuilder(GraphBuilder):
    """Adds quantized layers. Tensors have the batch in front and are float32."""

    def quant(
        self, x: str, scale: FloatArray, *, bits: int, name: str, zero_point: int = 0, narrow: bool = True
    ) -> str:
        """`(clip(round(x / scale + zero_point)) - zero_point) * scale` for signed codes of `bits` bits.

        Args:
            scale: broadcasts with `x`.
            narrow: whether the lowest code is the negative of the largest, and not one below.
        """
        return self.op(
            "Quant",
            x,
            self.constant(f"{name}.scale", scale),
            self._number(zero_point),
            self._number(bits),
            name=name,
            domain=DOMAIN,
            signed=1,
            narrow=int(narrow),
            rounding_mode="ROUND",
        )

    def at_site(self, x: str, site: Site, *, name: str) -> str:
        """Activations as the hardware sees them."""
        return self.quant(
            x,
            np.array(site.scale, dtype=np.float32),
            bits=site.limit.bit_length() + 1,
            name=name,
            zero_point=site.zero_point,
            narrow=site.lowest == -site.limit,
        )

    def linear(self, x: str, linear: QuantLinear, site: Site, *, name: str, tokens: tuple[int, ...]) -> str:
        """`x @ weight.T + bias` (1, *tokens, rows) for values (1, *tokens, inputs) of a site."""
        plan, parts = linear.plan, []
        groups = plan.rows // plan.group
        for label, bits, chosen in (
            ("high", plan.high_bits, plan.is_high),
            ("low", plan.low_bits, ~plan.is_high),
        ):
            if not chosen.any():
                continue
            part = name if chosen.all() else f"{name}.{label}"
            weight, scale = _dequantized(linear, chosen)
            weight_name = self.constant(f"{part}.weight", np.ascontiguousarray(weight.T))
            rows = self.quant(weight_name, scale[None], bits=bits, name=f"{part}.weight_quant")
            products = self.op("MatMul", x, rows, name=f"{part}.products")
            parts.append(self._add_bias(products, linear, site, chosen, name=part))
        if len(parts) == 1:
            return parts[0]
        if groups > 1:
            parts = [self.reshape(part, (1, *tokens, groups, -1), name=f"{part}.groups") for part in parts]
            joined = self.op("Concat", *parts, name=f"{name}.joined", axis=-1)
            return self.reshape(joined, (1, *tokens, plan.rows), name=name)
        return self.op("Concat", *parts, name=name, axis=-1)

    def patches(self, x: str, linear: QuantLinear, site: Site, subnet: Subnet, *, name: str) -> str:
        """Images (1, C, S, S) to embedded patches (1, patches, channels); all rows are at high precision."""
        every = np.ones(linear.plan.rows, dtype=bool)
        weight, scale = _dequantized(linear, every)
        size, grid = subnet.patch_size, subnet.image_size // subnet.patch_size
        kernel = self.constant(f"{name}.weight", weight.reshape(-1, subnet.in_chans, size, size))
        kernel = self.quant(kernel, scale.reshape(-1, 1, 1, 1), bits=linear.plan.high_bits, name=f"{name}.weight_quant")
        x = self.op(
            "Conv",
            x,
            kernel,
            name=f"{name}.products",
            kernel_shape=[size, size],
            strides=[size, size],
            # qonnx's change to channels-last wants these too
            dilations=[1, 1],
            group=1,
            pads=[0, 0, 0, 0],
        )
        x = self._add_bias(x, linear, site, every, name=name, shape=(1, -1, 1, 1))
        x = self.reshape(x, (1, subnet.embed_dim, grid * grid), name=f"{name}.flat")
        return self.op("Transpose", x, name=f"{name}.tokens", perm=[0, 2, 1])

    def norm(self, x: str, norm: LayerNorm, *, name: str) -> str:
        """LayerNorm over the last dimension."""
        weight = self.constant(f"{name}.weight", _array(norm.weight))
        bias = self.constant(f"{name}.bias", _array(norm.bias))
        return self.op("LayerNormalization", x, weight, bias, name=name, axis=-1, epsilon=1e-6)

    def times(self, x: str, factor: Tensor | None, *, name: str) -> str:
        """`x * factor`, or `x` if that is None."""
        return x if factor is None else self.op("Mul", x, self.constant(f"{name}.factor", _array(factor)), name=name)

    def _add_bias(
        self,
        x: str,
        linear: QuantLinear,
        site: Site,
        chosen: NDArray[np.bool_],
        *,
        name: str,
        shape: tuple[int, ...] = (-1,),
    ) -> str:
        """`x` plus the bias of the chosen rows, which broadcasts in this shape."""
        bias, scale = (_array(tensor)[chosen].reshape(shape) for tensor in (linear.bias, linear.scale))
        bias_name, unit = self.constant(f"{name}.bias", bias), scale * np.float32(site.scale)
        return self.op(
            "Add", x, self.quant(bias_name, unit, bits=BIAS_BITS, name=f"{name}.bias_quant", narrow=False), name=name
        )

    def _number(self, value: int) -> str:
        """A scalar that nodes share, a float as in all QONNX files."""
        return self.constant(f"number.{value}", np.array(value, dtype=np.float32))


def build_qonnx(module: SubnetViT) -> ModelProto:
    """The checked QONNX model of an extracted subnet; see the module's docstring.

    Raises:
        UsageError: an operator that is not one of `ONNX_OPERATORS`; the package onnx is missing.
    """
    subnet = module.subnet
    refuse_other_operators(subnet)
    graph, site = QonnxBuilder(), read_sites(module.sites)
    image = graph.at_site("images", site["image"], name="image_quant")
    embedded = graph.patches(image, module.patch_embed, site["image"], subnet, name="patch_embed")
    # A row of zeros in front makes room for the class token, which comes with the position embeddings.
    room = graph.constant("room_for_cls", np.array([0, 1, 0, 0, 0, 0], dtype=np.int64))
    position = _array(module.position).copy()
    position[0] += _array(module.cls_token)
    stream = graph.op("Pad", embedded, room, name="tokens_without_position")
    stream = graph.op("Add", stream, graph.constant("position", position[None]), name="pos_embed")
    for index, (block_module, block) in enumerate(zip(module.blocks, subnet.blocks, strict=True)):
        stream = _block(graph, stream, cast(SubnetBlock, block_module), subnet, block, name=f"blocks.{index}")
    first = graph.op("Gather", stream, graph.constant("index.0", np.array(0)), name="cls_token", axis=1)
    features = graph.at_site(graph.norm(first, module.norm, name="norm"), site["norm"], name="norm_quant")
    graph.op("Identity", graph.linear(features, module.head, site["norm"], name="head", tokens=()), name="logits")
    model = graph.model(
        name=f"quasar-qonnx-{subnet.digest}",
        inputs={"images": (1, subnet.in_chans, subnet.image_size, subnet.image_size)},
        outputs={"logits": (1, subnet.num_classes)},
        metadata={"producer": "quasar", "subnet": subnet.digest},
        domains={DOMAIN: DOMAIN_VERSION},
    )
    add_shapes(model)
    return model


def add_shapes(model: ModelProto) -> None:
    """Writes the shapes of all tensors into a model, for readers that cannot infer those of Quant nodes."""
    onnx = require("onnx")
    standard = type(model)()
    standard.CopyFrom(model)
    for node in standard.graph.node:
        if node.domain == DOMAIN:
            node.op_type, node.domain = "Identity", ""
            del node.input[1:], node.attribute[:]
    inferred = onnx.shape_inference.infer_shapes(standard, check_type=True, strict_mode=True, data_prop=True)
    model.graph.value_info.extend(inferred.graph.value_info)


def run_qonnx(model: ModelProto, images_BCHW: FloatArray) -> FloatArray:
    """Logits (B, classes) by qonnx, which executes node by node: slow, but each node as QONNX defines it.

    Args:
        images_BCHW: normalised, of the model's size.

    Raises:
        UsageError: the package qonnx is missing.
    """
    wrapper = _qonnx("core.modelwrapper").ModelWrapper(model, make_deepcopy=True)
    wrapper = wrapper.transform(_qonnx("transformation.change_batchsize").ChangeBatchSize(len(images_BCHW)))
    wrapper = wrapper.transform(_qonnx("transformation.infer_shapes").InferShapes())
    with readable_nodes():
        outputs = _qonnx("core.onnx_exec").execute_onnx(wrapper, {"images": images_BCHW})
    return cast(FloatArray, outputs["logits"])


@contextmanager
def readable_nodes() -> Iterator[None]:
    """Lets qonnx execute nodes where the package onnx is newer than ONNX Runtime.

    qonnx 1.0.0 makes a model of each node, in the newest file format that onnx writes, and ONNX Runtime refuses what is
    newer than itself: 1.31 cannot read what onnx 1.23 writes.
    """
    execution = _qonnx("core.onnx_exec")
    make_model = execution.qonnx_make_model
    execution.qonnx_make_model = partial(make_model, ir_version=IR_VERSION)
    try:
        yield
    finally:
        execution.qonnx_make_model = make_model


def _qonnx(name: str) -> Any:
    return require(f"qonnx.{name}", extra="qonnx")


def _block(
    graph: QonnxBuilder, stream: str, module: SubnetBlock, subnet: Subnet, block: BlockChoice, *, name: str
) -> str:
    """The residual stream (1, T, D) after an encoder block."""
    tokens, site, mixer_site = (subnet.tokens,), read_sites(module.sites), read_sites(module.mixer_sites)
    linears = {key: cast(QuantLinear, linear) for key, linear in (*module.mixer.items(), *module.mlp.items())}
    x = graph.at_site(graph.norm(stream, module.norm1, name=f"{name}.norm1"), site["norm1"], name=f"{name}.norm1_quant")
    qkv = graph.linear(x, linears["qkv"], site["norm1"], name=f"{name}.qkv", tokens=tokens)
    x = _mixed(graph, qkv, mixer_site, subnet, block, name=name)
    x = graph.linear(x, linears["proj"], mixer_site["mixed"], name=f"{name}.proj", tokens=tokens)
    x = graph.times(x, module.scale1, name=f"{name}.scale1")
    stream = graph.op("Add", stream, x, name=f"{name}.residual1")

    x = graph.at_site(graph.norm(stream, module.norm2, name=f"{name}.norm2"), site["norm2"], name=f"{name}.norm2_quant")
    x = graph.linear(x, linears["fc1"], site["norm2"], name=f"{name}.fc1", tokens=tokens)
    x = graph.op("Gelu", graph.at_site(x, site["fc1"], name=f"{name}.fc1_quant"), name=f"{name}.gelu")
    x = graph.at_site(x, site["gelu"], name=f"{name}.gelu_quant")
    x = graph.linear(x, linears["fc2"], site["gelu"], name=f"{name}.fc2", tokens=tokens)
    return graph.op("Add", stream, graph.times(x, module.scale2, name=f"{name}.scale2"), name=f"{name}.residual2")


def _mixed(
    graph: QonnxBuilder, qkv: str, site: dict[str, Site], subnet: Subnet, block: BlockChoice, *, name: str
) -> str:
    """The mixed values (1, T, heads * head_dim) at their site, of the outputs (1, T, heads * 3 * head_dim) of qkv."""
    tokens, heads, channels = subnet.tokens, block.num_heads, subnet.head_dim
    parts = graph.reshape(qkv, (1, tokens, heads, 3, channels), name=f"{name}.heads")
    values = {}
    for index, part in enumerate("qkv"):
        label, chosen = f"{name}.{part}", graph.constant(f"index.{index}", np.array(index))
        values[part] = graph.at_site(
            graph.op("Gather", parts, chosen, name=label, axis=3), site[part], name=f"{label}_quant"
        )
    mixed = _MIXERS[block.operator](graph, values, site, subnet, name=name)
    mixed = graph.op("Transpose", mixed, name=f"{name}.mix_order", perm=_HEADS_FIRST)
    mixed = graph.reshape(mixed, (1, tokens, heads * channels), name=f"{name}.mixed")
    return graph.at_site(mixed, site["mixed"], name=f"{name}.mixed_quant")


def _attention(graph: QonnxBuilder, values: dict[str, str], site: dict[str, Site], subnet: Subnet, *, name: str) -> str:
    """Mixed values (1, heads, T, channels) of q, k and v (1, T, heads, channels)."""
    q, k, v = (
        graph.op("Transpose", values[part], name=f"{name}.{part}_order", perm=order)
        for part, order in (("q", _HEADS_FIRST), ("k", _CHANNELS_FIRST), ("v", _HEADS_FIRST))
    )
    scores = graph.op("MatMul", q, k, name=f"{name}.products")
    factor = graph.constant(f"{name}.scores.factor", np.array(subnet.head_dim**-0.5, dtype=np.float32))
    scores = graph.op("Mul", scores, factor, name=f"{name}.scores")
    return graph.op("MatMul", graph.op("Softmax", scores, name=f"{name}.softmax", axis=-1), v, name=f"{name}.mix")


def _linear_angular(
    graph: QonnxBuilder, values: dict[str, str], site: dict[str, Site], subnet: Subnet, *, name: str
) -> str:
    """As `_attention`."""
    channels = subnet.head_dim
    gain = graph.constant(f"unit_gain.{channels}", np.ones(channels, dtype=np.float32))
    bias = graph.constant(f"unit_bias.{channels}", np.full(channels, BIAS, dtype=np.float32))
    units = {}
    for part, order in (("q", _HEADS_FIRST), ("k", _CHANNELS_FIRST)):
        label = f"{name}.{part}_unit"
        x = graph.op("LayerNormalization", values[part], gain, bias, name=label, axis=-1, epsilon=LAYER_NORM_EPSILON)
        x = graph.at_site(x, site[f"{part}_unit"], name=f"{label}_quant")
        units[part] = graph.op("Transpose", x, name=f"{label}_order", perm=order)
    v = graph.op("Transpose", values["v"], name=f"{name}.v_order", perm=_HEADS_FIRST)
    context = graph.op("MatMul", units["k"], v, name=f"{name}.context.products")
    factor = graph.constant(f"{name}.context.factor", np.array(1 / subnet.tokens, dtype=np.float32))
    context = graph.op("Mul", context, factor, name=f"{name}.context")
    context = graph.at_site(context, site["context"], name=f"{name}.context_quant")
    readout = graph.op("MatMul", units["q"], context, name=f"{name}.readout.products")
    factor = graph.constant(f"{name}.readout.factor", np.array(1 / (channels * BIAS**2), dtype=np.float32))
    return graph.op("Mul", readout, factor, name=f"{name}.readout")


#: by operator, those of `quasar.export.onnx_qdq`
_MIXERS = {"attention": _attention, "linear-angular": _linear_angular}


def _dequantized(linear: QuantLinear, chosen: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """Weights (rows, inputs) and scales (rows,) of the chosen rows."""
    scale = _array(linear.scale)[chosen]
    return _array(linear.codes)[chosen] * scale[:, None], scale


def _array(tensor: Tensor) -> FloatArray:
    return tensor.detach().cpu().float().numpy()
