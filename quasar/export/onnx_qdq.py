"""An extracted subnet as an ONNX graph in which ONNX Runtime finds its integer kernels (QDQ form).

    images (batch, C, S, S) float32, normalised  ->  logits (batch, classes) float32

Around each linear stand QuantizeLinear and DequantizeLinear nodes, which ONNX Runtime fuses with the Gemm between
them into one integer product (QGemm). What that takes, and what keeps the outputs those of the torch module:

* Activations are uint8: a code q of the module is stored as q + 128, so a site's zero point z becomes z + 128. At
  symmetric sites (z = 0) uint8 could also hold the code -128, which the module never uses there, so a Clip on the
  integers follows QuantizeLinear. (A Clip on the floats before it would stop the fusion.)
* Weights are two constants for each linear, the rows at high and at low precision, INT4 where 4 bits hold them. Cast,
  Concat and Reshape make one int8 tensor of them; the runtime does that once, when it loads the model. High rows lead
  each group of rows, so joining the two along a group's rows restores the order: no permutation is needed.
* q, k and v are three products, so that each is quantized at its own scale inside the fused product.
* What multiplies whole rows is folded into their scales and biases: layer scaling into proj and fc2, and the factor
  head_dim^-1/2 of the attention scores into q and its site. Linear-angular attention has its factors, 1/T and that of
  the mixed values, in the scales with which codes are dequantized.
* A bias is an int32 constant in units of the accumulator, rounded.
* The residual stream, LayerNorm, softmax and GELU are float, and the image is cut into patches as uint8.

Integer sums are exact where the module adds floats, so single codes at a rounding boundary differ between the two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import UsageError
from quasar.export.onnx_graph import GraphBuilder
from supernet.functional import ActivationSites
from supernet.operators.integer import LAYER_NORM_EPSILON
from supernet.operators.linear_angular import BIAS
from supernet.quantize import qmax
from supernet.standalone import LayerNorm, QuantLinear, SubnetBlock, SubnetViT
from supernet.subnet import BlockChoice, Subnet

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor

#: what uint8 codes have more than those of the module
OFFSET = 128
#: bits of an activation code at most, and of a weight that INT4 holds
CODE_BITS, NIBBLE_BITS = 8, 4
#: largest bias in units of the accumulator: leaves half of the range to the products
LARGEST_BIAS = 2**30
LARGEST_SUM = 2**31 - 1

#: orders of axes: (batch, tokens, heads, channels) with the heads first, and then the channels before the tokens
_HEADS_FIRST, _CHANNELS_FIRST = (0, 2, 1, 3), (0, 2, 3, 1)
#: suffix of the constants that hold weights
WEIGHT_SUFFIX = "_rows"


class Site(NamedTuple):
    """How a tensor is quantized: code q, from `lowest` to `limit`, stands for `(q - zero_point) * scale`."""

    scale: float
    zero_point: int
    lowest: int
    limit: int

    @property
    def reach(self) -> int:
        """The largest magnitude of a code less the zero point."""
        return max(self.limit - self.zero_point, self.zero_point - self.lowest)


class Codes(NamedTuple):
    """A uint8 tensor of the graph, which holds the codes of a site plus `OFFSET`."""

    name: str
    site: Site


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Rows of a linear: `codes` (rows, inputs), `scale` and `bias` (rows,), the first `high` of each `group` high."""

    codes: NDArray[np.int8]
    scale: NDArray[np.float64]
    bias: NDArray[np.float64]
    group: int
    high: int
    low_bits: int
    high_bits: int

    @staticmethod
    def of(linear: QuantLinear) -> Rows:
        """All rows of a linear."""
        return Rows(
            codes=linear.codes.cpu().numpy(),
            scale=_numbers(linear.scale),
            bias=_numbers(linear.bias),
            group=linear.plan.group,
            high=linear.plan.high,
            low_bits=linear.plan.low_bits,
            high_bits=linear.plan.high_bits,
        )

    def part(self, index: int, parts: int) -> Rows:
        """The groups `index`, `index + parts`, ...: q, k or v of all heads."""
        chosen = np.arange(len(self.codes)) // self.group % parts == index
        return replace(self, codes=self.codes[chosen], scale=self.scale[chosen], bias=self.bias[chosen])

    def times(self, gain: NDArray[np.float64] | float) -> Rows:
        """The rows whose outputs are `gain` times these; codes are symmetric, so they can take the sign."""
        gain = np.broadcast_to(gain, self.scale.shape)
        return replace(
            self,
            codes=(self.codes * np.sign(gain)[:, None]).astype(np.int8),
            scale=np.where(gain == 0, self.scale, self.scale * np.abs(gain)),
            bias=self.bias * gain,
        )

    def in_int32(self, inputs: Site) -> Rows:
        """The same rows with scales that keep the bias within `LARGEST_BIAS`: pruned rows have tiny scales.

        Only the codes of a row that does nothing beside its bias change.

        Raises:
            UsageError: a sum could still leave int32 (that takes more than 33,000 inputs).
        """
        scale = np.maximum(self.scale, np.abs(self.bias) / (inputs.scale * LARGEST_BIAS))
        codes = np.rint(self.codes * (self.scale / scale)[:, None]).astype(np.int8)
        products = np.abs(codes.astype(np.int64)).sum(axis=1) * inputs.reach
        largest = products + np.abs(self.bias / (inputs.scale * scale))
        if largest.max() > LARGEST_SUM:
            raise UsageError(f"a linear of {codes.shape[1]} inputs can overflow its 32-bit accumulators")
        return replace(self, codes=codes, scale=scale)


class QdqBuilder(GraphBuilder):
    """Adds quantized layers."""

    def quantize(self, x: str, site: Site, *, name: str) -> Codes:
        """The codes of a float tensor."""
        step, zero_point = self._step_and_zero_point(site, name)
        codes = self.op("QuantizeLinear", x, step, zero_point, name=f"{name}.codes")
        if (site.lowest, site.limit) != (-OFFSET, qmax(CODE_BITS)):
            codes = self.op("Clip", codes, self._uint8(site.lowest), self._uint8(site.limit), name=f"{name}.clipped")
        return Codes(codes, site)

    def dequantize(self, x: Codes, *, name: str) -> str:
        """The values of codes."""
        return self.op("DequantizeLinear", x.name, *self._step_and_zero_point(x.site, name), name=name)

    def _step_and_zero_point(self, site: Site, name: str) -> tuple[str, str]:
        return self.constant(f"{name}.scale", np.array(site.scale, dtype=np.float32)), self._uint8(site.zero_point)

    def _uint8(self, code: int) -> str:
        """A constant that sites share: a code as it is stored."""
        return self.constant(f"code.{code}", np.array(code + OFFSET, dtype=np.uint8))

    def linear(self, x: Codes, rows: Rows, *, name: str) -> str:
        """`x @ weight.T + bias` (n, rows), in floats, of codes (n, inputs)."""
        rows = rows.in_int32(x.site)
        unit = x.site.scale * rows.scale
        weight = self.op(
            "DequantizeLinear",
            self._int8_weight(rows, name),
            self.constant(f"{name}.weight_scale", rows.scale.astype(np.float32)),
            # Each weight has its own zeros, since ONNX Runtime 1.31 fails both without them (it adds a scalar and
            # then wants a vector) and, with session.x64quantprecision, where two weights share them.
            self.constant(f"{name}.weight_zero", np.zeros(len(rows.codes), dtype=np.int8)),
            name=f"{name}.weight",
            axis=0,
        )
        bias = self.op(
            "DequantizeLinear",
            self.constant(f"{name}.bias_codes", np.rint(rows.bias / unit).astype(np.int32)),
            self.constant(f"{name}.bias_scale", unit.astype(np.float32)),
            name=f"{name}.bias",
            axis=0,
        )
        return self.op("Gemm", self.dequantize(x, name=f"{name}.input"), weight, bias, name=name, transB=1)

    def norm(self, x: str, norm: LayerNorm, *, name: str) -> str:
        """LayerNorm over the last dimension."""
        weight = self.constant(f"{name}.weight", norm.weight.cpu().numpy())
        bias = self.constant(f"{name}.bias", norm.bias.cpu().numpy())
        return self.op("LayerNormalization", x, weight, bias, name=name, axis=-1, epsilon=1e-6)

    def _int8_weight(self, rows: Rows, name: str) -> str:
        inputs = rows.codes.shape[1]
        groups = rows.codes.reshape(-1, rows.group, inputs)
        parts = []
        for label, bits, codes in (
            ("high", rows.high_bits, groups[:, : rows.high]),
            ("low", rows.low_bits, groups[:, rows.high :]),
        ):
            part = f"{name}.{label}{WEIGHT_SUFFIX}"
            if codes.size and bits <= NIBBLE_BITS:
                parts.append(self.cast(self.int4(part, codes), "INT8", name=f"{part}.int8"))
            elif codes.size:
                parts.append(self.constant(part, codes))
        joined = self.op("Concat", *parts, name=f"{name}.groups", axis=1) if len(parts) > 1 else parts[0]
        return self.reshape(joined, (-1, inputs), name=f"{name}.rows")


def build_qdq(module: SubnetViT) -> ModelProto:
    """The checked ONNX model of an extracted subnet, on whatever device that is; see the module's docstring.

    Raises:
        UsageError: an operator that is not one of `ONNX_OPERATORS`; activations of more than 8 bits; the package onnx
            is missing.
    """
    subnet = module.subnet
    refuse_other_operators(subnet)
    if subnet.act_bits > CODE_BITS:
        raise UsageError(f"act_bits: activations of {subnet.act_bits} bits cannot be exported to ONNX, only of up to 8")
    graph = QdqBuilder()
    site = read_sites(module.sites)
    stream = _embed(graph, module, image_site=site["image"])
    for index, (block_module, block) in enumerate(zip(module.blocks, subnet.blocks, strict=True)):
        stream = _block(graph, stream, cast(SubnetBlock, block_module), subnet, block, name=f"blocks.{index}")
    tokens = graph.reshape(stream, (-1, subnet.tokens, subnet.embed_dim), name="tokens_out")
    first = graph.constant("first_token", np.array(0, dtype=np.int64))
    cls_token = graph.op("Gather", tokens, first, name="cls_token", axis=1)
    features = graph.quantize(graph.norm(cls_token, module.norm, name="norm"), site["norm"], name="norm_site")
    graph.op("Identity", graph.linear(features, Rows.of(module.head), name="head"), name="logits")
    size = subnet.image_size
    return graph.model(
        name=f"quasar-{subnet.digest}",
        inputs={"images": ("batch", subnet.in_chans, size, size)},
        outputs={"logits": ("batch", subnet.num_classes)},
        metadata={"producer": "quasar", "subnet": subnet.digest},
    )


def _embed(graph: QdqBuilder, module: SubnetViT, *, image_site: Site) -> str:
    """Images to the residual stream (batch * tokens, channels)."""
    subnet = module.subnet
    chans, size, grid = subnet.in_chans, subnet.patch_size, subnet.image_size // subnet.patch_size
    image = graph.quantize("images", image_site, name="image_site")
    cut = graph.reshape(image.name, (-1, chans, grid, size, grid, size), name="patches.cut")
    cut = graph.op("Transpose", cut, name="patches.order", perm=[0, 2, 4, 1, 3, 5])
    patches = Codes(graph.reshape(cut, (-1, chans * size * size), name="patches"), image.site)
    embedded = graph.linear(patches, Rows.of(module.patch_embed), name="patch_embed")
    embedded = graph.reshape(embedded, (-1, grid * grid, subnet.embed_dim), name="patch_tokens")
    # A row of zeros in front makes room for the class token, which comes with the position embeddings.
    room = graph.constant("room_for_cls", np.array([0, 1, 0, 0, 0, 0], dtype=np.int64))
    position = module.position.cpu().numpy().copy()
    position[0] += module.cls_token.cpu().numpy()
    tokens = graph.op("Pad", embedded, room, name="tokens_without_position")
    tokens = graph.op("Add", tokens, graph.constant("position", position), name="tokens")
    return graph.reshape(tokens, (-1, subnet.embed_dim), name="stream")


def _block(
    graph: QdqBuilder, stream: str, module: SubnetBlock, subnet: Subnet, block: BlockChoice, *, name: str
) -> str:
    """The residual stream (batch * tokens, channels) after an encoder block."""
    site = read_sites(module.sites)
    proj, fc1, fc2 = (
        Rows.of(cast(QuantLinear, linear)) for linear in (module.mixer["proj"], module.mlp["fc1"], module.mlp["fc2"])
    )
    if module.scale1 is not None:
        proj = proj.times(_numbers(module.scale1))
    if module.scale2 is not None:
        fc2 = fc2.times(_numbers(module.scale2))
    x = graph.norm(stream, module.norm1, name=f"{name}.norm1")
    x_codes = graph.quantize(x, site["norm1"], name=f"{name}.norm1_site")
    mixed = _mixed(graph, x_codes, module, subnet, block, name=name)
    stream = graph.op("Add", stream, graph.linear(mixed, proj, name=f"{name}.proj"), name=f"{name}.residual1")

    x = graph.norm(stream, module.norm2, name=f"{name}.norm2")
    x_codes = graph.quantize(x, site["norm2"], name=f"{name}.norm2_site")
    hidden = graph.quantize(graph.linear(x_codes, fc1, name=f"{name}.fc1"), site["fc1"], name=f"{name}.fc1_site")
    active = graph.op("Gelu", graph.dequantize(hidden, name=f"{name}.fc1_out"), name=f"{name}.gelu")
    active_codes = graph.quantize(active, site["gelu"], name=f"{name}.gelu_site")
    return graph.op("Add", stream, graph.linear(active_codes, fc2, name=f"{name}.fc2"), name=f"{name}.residual2")


def _mixed(graph: QdqBuilder, x: Codes, module: SubnetBlock, subnet: Subnet, block: BlockChoice, *, name: str) -> Codes:
    """The mixed values (batch * tokens, heads * head_dim) at their site."""
    mixed = _MIXERS[block.operator](graph, _Heads(x, module, subnet, block), name=name)
    mixed = graph.op("Transpose", mixed, name=f"{name}.mix_order", perm=_HEADS_FIRST)
    mixed = graph.reshape(mixed, (-1, block.num_heads * subnet.head_dim), name=f"{name}.mixed")
    return graph.quantize(mixed, read_sites(module.mixer_sites)["mixed"], name=f"{name}.mixed_site")


class _Heads(NamedTuple):
    """What lies between norm1 and proj of a block."""

    x: Codes
    module: SubnetBlock
    subnet: Subnet
    block: BlockChoice

    def codes(self, graph: QdqBuilder, part: str, order: tuple[int, ...], *, name: str, gain: float = 1.0) -> Codes:
        """q, k or v of all heads, times `gain`, with axes (batch, tokens, heads, channels) in an order."""
        label, site = f"{name}.{part}", read_sites(self.module.mixer_sites)[part]
        rows = Rows.of(cast(QuantLinear, self.module.mixer["qkv"])).part("qkv".index(part), 3).times(gain)
        codes = graph.quantize(
            graph.linear(self.x, rows, name=label), site._replace(scale=site.scale * gain), name=f"{label}_site"
        )
        shape = (-1, self.subnet.tokens, self.block.num_heads, self.subnet.head_dim)
        split = graph.reshape(codes.name, shape, name=f"{label}_heads")
        return Codes(graph.op("Transpose", split, name=f"{label}_order", perm=order), codes.site)


def _attention(graph: QdqBuilder, heads: _Heads, *, name: str) -> str:
    """Mixed values (batch, heads, tokens, channels)."""
    values = {
        part: graph.dequantize(heads.codes(graph, part, order, name=name, gain=gain), name=f"{name}.{part}_out")
        for part, gain, order in (
            ("q", heads.subnet.head_dim**-0.5, _HEADS_FIRST),
            ("k", 1.0, _CHANNELS_FIRST),
            ("v", 1.0, _HEADS_FIRST),
        )
    }
    scores = graph.op("MatMul", values["q"], values["k"], name=f"{name}.scores")
    shares = graph.op("Softmax", scores, name=f"{name}.softmax", axis=-1)
    return graph.op("MatMul", shares, values["v"], name=f"{name}.mix")


def _linear_angular(graph: QdqBuilder, heads: _Heads, *, name: str) -> str:
    """As `_attention`."""
    sites, channels = read_sites(heads.module.mixer_sites), heads.subnet.head_dim
    gain = graph.constant(f"unit_gain.{channels}", np.ones(channels, dtype=np.float32))
    bias = graph.constant(f"unit_bias.{channels}", np.full(channels, BIAS, dtype=np.float32))

    def unit(part: str, factor: float) -> str:
        label = f"{name}.{part}_unit"
        codes = heads.codes(graph, part, _HEADS_FIRST, name=name)
        x = graph.dequantize(codes, name=f"{name}.{part}_out")
        x = graph.op("LayerNormalization", x, gain, bias, name=label, axis=-1, epsilon=LAYER_NORM_EPSILON)
        at_site = graph.quantize(x, sites[f"{part}_unit"], name=f"{label}_site")
        scaled = at_site.site._replace(scale=at_site.site.scale * factor)
        return graph.dequantize(Codes(at_site.name, scaled), name=f"{label}_out")

    k_unit = graph.op("Transpose", unit("k", 1 / heads.subnet.tokens), name=f"{name}.k_unit_order", perm=(0, 1, 3, 2))
    v = graph.dequantize(heads.codes(graph, "v", _HEADS_FIRST, name=name), name=f"{name}.v_out")
    context = graph.op("MatMul", k_unit, v, name=f"{name}.context")
    codes = graph.quantize(context, sites["context"], name=f"{name}.context_site")
    q_unit = unit("q", 1 / (channels * BIAS**2))
    return graph.op("MatMul", q_unit, graph.dequantize(codes, name=f"{name}.context_out"), name=f"{name}.readout")


#: by operator
_MIXERS = {"attention": _attention, "linear-angular": _linear_angular}
#: the operators that QDQ and QONNX know
ONNX_OPERATORS = tuple(_MIXERS)


def weight_bytes(model: ModelProto) -> int:
    """Bytes of the constants of `build_qdq` that hold weights, without scales and biases."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer if tensor.name.endswith(WEIGHT_SUFFIX))


def refuse_other_operators(subnet: Subnet) -> None:
    """Raises `UsageError` if a block mixes tokens by an operator that is not one of `ONNX_OPERATORS`."""
    for index, block in enumerate(subnet.blocks):
        if block.operator not in ONNX_OPERATORS:
            raise UsageError(
                f"blocks[{index}]: the operator '{block.operator}' cannot be exported to ONNX, only "
                f"{' and '.join(ONNX_OPERATORS)} can"
            )


def read_sites(sites: ActivationSites) -> dict[str, Site]:
    """How each site of a group quantizes, by name."""
    limit = int(sites.limit)
    return {
        name: Site(scale, round(zero_point), -limit - asymmetric, limit)
        for name, scale, zero_point, asymmetric in zip(
            sites.names, sites.scale.tolist(), sites.zero_point.tolist(), sites.asymmetric, strict=True
        )
    }


def _numbers(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().double().cpu().numpy()
