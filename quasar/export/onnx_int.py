"""The integer network of a bundle as an ONNX graph that gives the same integers in any runtime.

    images (batch, C, S, S) int8 codes  ->  logits (batch, classes) int16 codes

`supernet.integer_vit.IntegerViT` is the specification. Each of its layers is a tensor of the graph with the layer's
name, of 8 or 16 bits; `expected_tensors` gives what they must be. Between them numbers are float64 that are integers,
or integers times a power of two, and no operation rounds, whatever the order in which a runtime adds:

* Sums of products stay below 2^32. (MatMulInteger would do, but some kernels for x86 saturate in it.)
* Requantization is floor(acc * (m * 2^-e) + 0.5): acc * m + 2^(e-1) is an integer below 2^49.
* floor(a / b) of integers is exact although the quotient is rounded: a quotient that is no integer is at least 1/b
  from the next one, and its rounding error is below a/b * 2^-53, which is less while a < 2^53. Here a < 2^42.
* LayerNorm's terms stay below 2^52. Its square root is corrected by one in either direction, so that it is the integer
  root even where a runtime's root is not correctly rounded.
* The leading zeros of a number come from comparing it with all powers of two, and a shift is a factor from a table.

Weights lie as (inputs, rows), rows at high precision first, in two constants for each linear: `<layer>.w8` and
`<layer>.w4`, INT4 unless `int4` is False, for runtimes that do not know that type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import UsageError
from hwmodel.integer import Int8Array
from hwmodel.integer_vector import INT16, MEAN_FRACTION_BITS, ZETA, Int64Array, IntegerSoftmax, Operation, mean_factor
from quasar.export.onnx_graph import GraphBuilder
from supernet.integer_vit import IntegerBlock, IntegerLinear, IntegerViT
from supernet.operators.attention import IntegerAttention
from supernet.operators.integer import Factors, IntegerNorm
from supernet.operators.linear_angular import UPPER_BYTE, IntegerLinearAngular

if TYPE_CHECKING:
    from onnx import ModelProto

#: bits of the normalised divisors of softmax and LayerNorm, and of LayerNorm's width, see `hwmodel.integer_vector`
SUM_BITS, ROOT_BITS, WIDTH_BITS = 24, 26, 11
#: orders of axes: (batch, tokens, heads, channels) with the heads outside, and then the channels before the tokens
_HEADS_OUTSIDE, _CHANNELS_FIRST = (0, 2, 1, 3), (0, 2, 3, 1)
#: and back
_HEADS_INSIDE = (0, 2, 1, 3)
#: the operators that this form knows
INTEGER_OPERATORS = ("attention", "linear-angular")
#: suffix of the tensor with the factors (mantissa * 2^-shift) of the tokens that a softmax gives
FACTOR_SUFFIX = ".factor"


class IntegerBuilder(GraphBuilder):
    """Adds the integer operations of the hardware; see the module's docstring."""

    def __init__(self, *, int4: bool) -> None:
        super().__init__()
        self._has_int4 = int4

    def number(self, value: float) -> str:
        """Adds a float64 constant."""
        return self.constant(f"number.{value!r}", np.array(value, dtype=np.float64))

    def floor(self, x: str, *factors: str, name: str) -> str:
        """floor(x * factors + 0.5)."""
        for index, factor in enumerate(factors):
            x = self.op("Mul", x, factor, name=f"{name}.scaled{index}")
        return self.op("Floor", self.op("Add", x, self.number(0.5), name=f"{name}.half"), name=f"{name}.rounded")

    def clip(self, x: str, least: int, most: int, *, name: str) -> str:
        """Float64 within bounds."""
        return self.op("Clip", x, self.number(float(least)), self.number(float(most)), name=name)

    def codes(self, x: str, least: int, most: int, *, name: str) -> str:
        """Codes of 8 bits, or of 16 where the bounds need them."""
        clipped = self.clip(x, least, most, name=f"{name}.clipped")
        return self.cast(clipped, "INT8" if most < 2**7 else "INT16", name=name)

    def sum(self, x: str, *, name: str) -> str:
        """Sums over the last axis, which stays with size 1."""
        return self.op("ReduceSum", x, self.constant("last_axis", np.array([-1])), name=name)

    def leading(self, x: str, bits: int, *, name: str) -> str:
        """2^z with 2^(bits-1) <= x * 2^z < 2^bits, for integers x (..., 1) from 1 to 2^bits - 1."""
        powers = self.constant(f"powers{bits}", 2.0 ** np.arange(bits))
        reached = self.op("GreaterOrEqual", x, powers, name=f"{name}.reached")
        length = self.sum(self.cast(reached, "INT64", name=f"{name}.reached_int"), name=f"{name}.length")
        table = self.constant(f"shifts{bits}", 2.0 ** (bits - np.arange(bits + 1)))
        return self.op("Gather", table, length, name=f"{name}.power")

    def linear(self, x: str, linear: IntegerLinear) -> str:
        """Codes (F, channels) in the order of the channels, of codes (F, inputs); the layer's tensor has its rows."""
        name = linear.name
        weights = self.double(self._weights(linear), name=f"{name}.weights")
        sums = self.op("MatMul", self.double(x, name=f"{name}.input"), weights, name=f"{name}.products")
        bias = self.double(self.constant(f"{name}.bias", linear.bias), name=f"{name}.bias_double")
        factor = self.constant(f"{name}.factor", _factor(linear.mantissa, linear.shift))
        sums = self.floor(self.op("Add", sums, bias, name=f"{name}.sums"), factor, name=name)
        if linear.table is not None:
            clipped = self.clip(sums, -128, 127, name=f"{name}.clipped")
            address = self.op("Add", clipped, self.number(128.0), name=f"{name}.address")
            address = self.cast(address, "INT64", name=f"{name}.address_int")
            rows = self.op("Gather", self.constant(f"{name}.table", linear.table), address, name=name)
        else:
            rows = self.codes(sums, *(INT16 if linear.wide else (-127, 127)), name=name)
        order = self.constant(f"{name}.order", np.argsort(linear.channels))
        return self.op("Gather", rows, order, name=f"{name}.channels", axis=1)

    def add(self, name: str, x: str, y: str) -> str:
        """Saturating sums of codes of the residual stream."""
        x, y = self.double(x, name=f"{name}.left"), self.double(y, name=f"{name}.right")
        return self.codes(self.op("Add", x, y, name=f"{name}.sum"), *INT16, name=name)

    def norm(self, x: str, norm: IntegerNorm) -> str:
        """LayerNorm of codes (..., N) of 16 bits."""
        name, constants = norm.name, norm.constants
        width = constants.gain.size
        x = self.double(x, name=f"{name}.input")
        total = self.sum(x, name=f"{name}.total")
        squares = self.sum(self.op("Mul", x, x, name=f"{name}.squared"), name=f"{name}.squares")
        squares = self.op("Mul", squares, self.number(float(width)), name=f"{name}.squares_n")
        spread = self.op("Sub", squares, self.op("Mul", total, total, name=f"{name}.total2"), name=f"{name}.spread")
        root = self._root(self.op("Add", spread, self.number(float(constants.epsilon)), name=f"{name}.variance"), name)
        factor, shift = mean_factor(width)
        mean = self.floor(total, self.number(factor * 2.0**-shift), name=f"{name}.mean")
        raised = self.op("Mul", x, self.number(2.0**MEAN_FRACTION_BITS), name=f"{name}.raised")
        centred = self.op("Sub", raised, mean, name=f"{name}.centred")
        power = self.leading(root, ROOT_BITS, name=f"{name}.root")
        places = WIDTH_BITS - width.bit_length()
        divisor = self.op("Mul", root, power, name=f"{name}.divisor")
        quotient = self.op("Div", self.number(width * 2.0 ** (places + 31)), divisor, name=f"{name}.quotient")
        inverse = self.op("Floor", quotient, name=f"{name}.inverse")
        zeta = self.floor(centred, inverse, power, self.number(2.0 ** -(27 + places)), name=f"{name}.zeta")
        zeta = self.clip(zeta, *ZETA, name=f"{name}.zeta_clipped")
        gain = self.constant(f"{name}.gain", constants.gain.astype(np.float64))
        bias = self.constant(f"{name}.bias", constants.bias.astype(np.float64))
        scaled = self.op("Add", self.op("Mul", zeta, gain, name=f"{name}.gained"), bias, name=f"{name}.biased")
        return self.codes(self.floor(scaled, self.number(2.0**-constants.shift), name=name), -127, 127, name=name)

    def mixer(self, qkv: str, block: IntegerBlock, *, tokens: int) -> str:
        """Mixed values (B * T, heads * head_dim) of the codes (B * T, heads * 3 * head_dim) of qkv."""
        name, mixer = block.name, block.mixer
        channels, inner = mixer.head_dim, block.proj.weights.shape[1]
        parts = self.reshape(qkv, (-1, tokens, inner // channels, 3, channels), name=f"{name}.heads")
        parts = self.double(parts, name=f"{name}.qkv_double")
        q, k, v = (
            self.op("Gather", parts, self.constant(f"index{i}", np.array(i)), name=f"{name}.{part}_part", axis=3)
            for i, part in enumerate("qkv")
        )
        if isinstance(mixer, IntegerAttention):
            mixed = self._attention(q, k, v, mixer)
        elif isinstance(mixer, IntegerLinearAngular):
            mixed = self._linear_angular(q, k, v, mixer)
        else:
            raise UsageError(f"{name}: ONNX of integers knows the operators {', '.join(INTEGER_OPERATORS)} alone")
        mixed = self.op("Transpose", mixed, name=f"{name}.mixed_order", perm=_HEADS_INSIDE)
        return self.reshape(mixed, (-1, inner), name=f"{name}.mixed")

    def _attention(self, q: str, k: str, v: str, attention: IntegerAttention) -> str:
        """Mixed values (B, H, T, N) of queries, keys and values (B, T, H, N)."""
        name = attention.name
        q = self.op("Transpose", q, name=f"{name}.q", perm=_HEADS_OUTSIDE)
        k = self.op("Transpose", k, name=f"{name}.k", perm=_CHANNELS_FIRST)
        v = self.op("Transpose", v, name=f"{name}.v", perm=_HEADS_OUTSIDE)
        scores = self._product(q, k, attention.score_factor, name=f"{name}.scores")
        shares, token_factor = self._softmax(scores, attention)
        products = self.op("MatMul", shares, v, name=f"{name}.mix.products")
        return self.codes(self.floor(products, token_factor, name=f"{name}.mix"), -127, 127, name=f"{name}.mix")

    def _linear_angular(self, q: str, k: str, v: str, mixer: IntegerLinearAngular) -> str:
        """As `_attention`. The context has a row for each channel of the values."""
        units = []
        for part, norm in ((q, mixer.q_unit), (k, mixer.k_unit)):
            codes = self.op("Transpose", part, name=f"{norm.name}.heads", perm=_HEADS_OUTSIDE)
            elements = self.op("Mul", codes, self.number(2.0**UPPER_BYTE), name=f"{norm.name}.elements")
            units.append(self.double(self.norm(elements, norm), name=f"{norm.name}.double"))
        name = mixer.name
        v = self.op("Transpose", v, name=f"{name}.v", perm=_CHANNELS_FIRST)
        context = self._product(v, units[1], mixer.context_factor, name=f"{name}.context")
        context = self.double(context, name=f"{name}.context_double")
        context = self.op("Transpose", context, name=f"{name}.context_inputs", perm=(0, 1, 3, 2))
        return self._product(units[0], context, mixer.readout_factor, name=f"{name}.readout")

    def _product(self, x: str, y: str, factor: Factors, *, name: str) -> str:
        """Codes of `x @ y`, two tensors of integers in float64."""
        products = self.op("MatMul", x, y, name=f"{name}.products")
        rounded = self.floor(products, self.number(float(_factor(*factor)[0])), name=name)
        return self.codes(rounded, -127, 127, name=name)

    def _softmax(self, scores: str, attention: IntegerAttention) -> tuple[str, str]:
        """Numerators (..., T, T) and the factors (..., T, 1) of their tokens, both in float64."""
        name = f"{attention.name}.softmax"
        scores = self.double(scores, name=f"{name}.input")
        peak = self.op("ReduceMax", scores, self.constant("last_axis", np.array([-1])), name=f"{name}.peak")
        below = self.cast(self.op("Sub", peak, scores, name=f"{name}.below"), "INT64", name=f"{name}.below_int")
        shares = self.op("Gather", self.constant(f"{name}.table", attention.exponentials), below, name=name)
        shares = self.double(shares, name=f"{name}.double")
        total = self.sum(shares, name=f"{name}.total")
        power = self.leading(total, SUM_BITS, name=f"{name}.total")
        numerator, exponent = attention.mix_factor
        divisor = self.op("Mul", total, power, name=f"{name}.divisor")
        quotient = self.op("Div", self.number(numerator * 2.0**SUM_BITS), divisor, name=f"{name}.quotient")
        g = self.op("Floor", quotient, name=f"{name}.g")
        # A g of 17 bits loses its last one.
        large = self.op("GreaterOrEqual", g, self.number(2.0**16), name=f"{name}.large")
        even = self.op("Mul", g, self.number(0.5), name=f"{name}.g_half")
        even = self.op("Floor", even, name=f"{name}.g_halved")
        even = self.op("Mul", even, self.number(2.0), name=f"{name}.g_even")
        mantissa = self.op("Where", large, even, g, name=f"{name}.mantissa")
        factor = self.op("Mul", mantissa, power, name=f"{name}.factor_raised")
        factor = self.op("Mul", factor, self.number(2.0 ** -(exponent + SUM_BITS)), name=f"{name}{FACTOR_SUFFIX}")
        return shares, factor

    def _root(self, x: str, name: str) -> str:
        """Floor of the square root."""
        root = self.op("Floor", self.op("Sqrt", x, name=f"{name}.sqrt"), name=f"{name}.root_near")
        square = self.op("Mul", root, root, name=f"{name}.root_square")
        high = self.double(self.op("Greater", square, x, name=f"{name}.root_above"), name=f"{name}.root_above_double")
        root = self.op("Sub", root, high, name=f"{name}.root_most")
        following = self.op("Add", root, self.number(1.0), name=f"{name}.root_next")
        square = self.op("Mul", following, following, name=f"{name}.next_square")
        low = self.double(
            self.op("LessOrEqual", square, x, name=f"{name}.root_below"), name=f"{name}.root_below_double"
        )
        return self.op("Add", root, low, name=f"{name}.root")

    def _weights(self, linear: IntegerLinear) -> str:
        """Int8 (inputs, rows)."""
        high, low = linear.weights[: linear.rows_high].T, linear.weights[linear.rows_high :].T
        parts = []
        if high.size:
            parts.append(self.constant(f"{linear.name}.w8", np.ascontiguousarray(high)))
        if low.size and self._has_int4:
            parts.append(self.cast(self.int4(f"{linear.name}.w4", low), "INT8", name=f"{linear.name}.w4_int8"))
        elif low.size:
            parts.append(self.constant(f"{linear.name}.w4", np.ascontiguousarray(low)))
        return self.op("Concat", *parts, name=f"{linear.name}.w", axis=1) if len(parts) > 1 else parts[0]


def build_integer(network: IntegerViT, *, int4: bool = True) -> ModelProto:
    """The checked ONNX model of the integer network; see the module's docstring.

    Its metadata hold `image_scale` and `logit_scale`, the values of one code.

    Raises:
        UsageError: the package onnx is missing.
    """
    subnet = network.subnet
    graph = IntegerBuilder(int4=int4)
    chans, size, grid = subnet.in_chans, subnet.patch_size, subnet.image_size // subnet.patch_size
    width, tokens = subnet.embed_dim, subnet.tokens
    cut = graph.reshape("images", (-1, chans, grid, size, grid, size), name="patches.cut")
    cut = graph.op("Transpose", cut, name="patches.order", perm=[0, 2, 4, 1, 3, 5])
    patches = graph.reshape(cut, (-1, chans * size * size), name="patches")
    embedded = graph.double(graph.linear(patches, network.patch_embed), name="patch_embed.double")
    embedded = graph.reshape(embedded, (-1, grid * grid, width), name="patch_tokens")
    # A row of zeros in front makes room for the class token, which comes with the position embeddings.
    room = graph.constant("room_for_cls", np.array([0, 1, 0, 0, 0, 0], dtype=np.int64))
    rows = graph.op("Pad", embedded, room, name="tokens_without_position")
    stream = graph.add("pos_embed", rows, graph.constant("position", network.position))
    stream = graph.reshape(stream, (-1, width), name="stream")
    for block in network.blocks:
        stream = _block(graph, stream, block, tokens=tokens)
    stream = graph.reshape(stream, (-1, tokens, width), name="tokens_out")
    first = graph.op("Gather", stream, graph.constant("index0", np.array(0)), name="cls_token", axis=1)
    logits = graph.linear(graph.norm(first, network.norm), network.head)
    graph.op("Identity", logits, name="logits")
    return graph.model(
        name=f"quasar-int-{subnet.digest}",
        inputs={"images": ("batch", chans, subnet.image_size, subnet.image_size)},
        outputs={"logits": ("batch", subnet.num_classes)},
        input_type="INT8",
        output_type="INT16",
        metadata={
            "producer": "quasar",
            "subnet": subnet.digest,
            "image_scale": repr(network.image_scale),
            "logit_scale": repr(network.logit_scale),
        },
    )


def expected_tensors(network: IntegerViT, images_BCHW: Int8Array) -> dict[str, NDArray[Any]]:
    """What the tensors of the layers must be for these images, by name.

    Each has the rows of all images, and in attention of all heads of an image, one after the other: the graph's order,
    if not its shape.
    """
    parts: dict[str, list[NDArray[Any]]] = {}

    def record(name: str, operation: Operation) -> None:
        parts.setdefault(name, []).append(operation.outputs())
        if isinstance(operation, IntegerSoftmax):
            parts.setdefault(f"{name}{FACTOR_SUFFIX}", []).append(_factor(*operation.factors()))

    logits = network(images_BCHW, record)
    return {name: np.concatenate(own) for name, own in parts.items()} | {"logits": logits}


def watched(model: ModelProto, names: list[str]) -> ModelProto:
    """A copy of the model whose outputs are the tensors of these names."""
    copy = type(model)()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(type(model.graph.output[0])(name=name) for name in names)
    return copy


def _block(graph: IntegerBuilder, stream: str, block: IntegerBlock, *, tokens: int) -> str:
    mixed = graph.mixer(graph.linear(graph.norm(stream, block.norm1), block.qkv), block, tokens=tokens)
    stream = graph.add(f"{block.name}.residual1", stream, graph.linear(mixed, block.proj))
    hidden = graph.linear(graph.norm(stream, block.norm2), block.fc1)
    return graph.add(f"{block.name}.residual2", stream, graph.linear(hidden, block.fc2))


def _factor(mantissa: Int64Array, shift: Int64Array) -> NDArray[np.float64]:
    return np.ldexp(mantissa.astype(np.float64), -shift)
