"""`weights.bin`: all integers of a network, in the order in which the accelerator's streams read them.

One section after the other, each at a multiple of `ALIGNMENT` bytes with zeros between, little-endian; the manifest
says where each lies (`WeightsIndex`). What a section holds, by its `content`:

    rows            the weight stream of a product (`hwmodel.parameter_streams`): rows of 8 and of 4 bits, biases,
                    mantissas and shifts, in the tiles of the bundle's accelerator; shape (rows, inputs)
    channels        uint16: the output channel of each row of the hardware; shape (rows,)
    table           int8, GELU's codes by the byte of the input's code: 0 to 127, then -128 to -1; shape (256,)
    parameters      the parameter stream of a LayerNorm; shape (channels,)
    exponentials    uint8, softmax's table; shape (256,)
    position        int16, codes of the residual stream that are added to the embedded patches; shape (tokens, channels)

Single numbers, which the hardware takes as fields of its commands, are in the index alone (`WeightsIndex.commands`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.errors import DamagedInputError, UsageError
from hwmodel.integer_vector import LayerNormConstants, mean_factor
from hwmodel.parameter_streams import ParameterStreams, StoredRows, norm_stream, read_norm_stream
from supernet.integer_vit import IntegerBlock, IntegerLinear, IntegerViT
from supernet.operators.attention import IntegerAttention
from supernet.operators.integer import Factors, IntegerMixer, IntegerNorm
from supernet.operators.linear_angular import IntegerLinearAngular
from supernet.subnet import BlockChoice, Subnet

ALIGNMENT = 64
#: the operators that it knows, as do the forms that read it
PACKED_OPERATORS = ("attention", "linear-angular")
_TYPES = {"channels": "<u2", "table": "i1", "exponentials": "u1", "position": "<i2"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the file; `shape` is that of what it holds, see the module's docstring."""

    layer: str
    content: str
    offset: int
    bytes: int
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsIndex:
    """What is where in the file.

    Attributes:
        order: the tiles of the weight streams.
        norm_lanes: channels in a group of a LayerNorm's parameters.
        image_scale, logit_scale: values of one code of the network's input and output.
        commands: by layer, the numbers of its commands: sizes, LayerNorm's epsilon and shifts, factors of softmax and
            scores.
    """

    order: ParameterStreams
    norm_lanes: int
    image_scale: float
    logit_scale: float
    sections: tuple[Section, ...]
    commands: dict[str, dict[str, int]]


def pack_weights(network: IntegerViT, accelerator: AcceleratorConfig) -> tuple[bytes, WeightsIndex]:
    """The file's content for an accelerator, and its index."""
    writer = _Writer(accelerator)
    writer.linear(network.patch_embed)
    writer.array("pos_embed", "position", network.position)
    for block in network.blocks:
        writer.norm(block.norm1)
        writer.linear(block.qkv)
        writer.mixer(block.mixer)
        writer.linear(block.proj)
        writer.norm(block.norm2)
        writer.linear(block.fc1)
        writer.linear(block.fc2)
    writer.norm(network.norm)
    writer.linear(network.head)
    return bytes(writer.content), WeightsIndex(
        order=writer.order,
        norm_lanes=writer.norm_lanes,
        image_scale=network.image_scale,
        logit_scale=network.logit_scale,
        sections=tuple(writer.sections),
        commands=writer.commands,
    )


def unpack_weights(content: bytes, index: WeightsIndex, subnet: Subnet, *, source: str) -> IntegerViT:
    """The network that `pack_weights` was given.

    Raises:
        DamagedInputError: the content does not fit the index; the message begins with `source`.
    """
    reader = _Reader(content, index)
    try:
        return IntegerViT(
            subnet=subnet,
            image_scale=index.image_scale,
            logit_scale=index.logit_scale,
            patch_embed=reader.linear("patch_embed"),
            position=reader.array("pos_embed", "position").astype(np.int16),
            blocks=tuple(reader.block(f"blocks.{i}", subnet, block) for i, block in enumerate(subnet.blocks)),
            norm=reader.norm("norm"),
            head=reader.linear("head"),
        )
    except (KeyError, ValueError) as error:
        reason = f"{error} is not in the manifest's index" if isinstance(error, KeyError) else error
        raise DamagedInputError(f"{source}: cannot be read as packed weights ({reason}); export again") from None


def first_difference(ours: Any, theirs: Any, *, name: str = "") -> str | None:
    """The field in which two networks differ first, such as ".head.bias", or None if all their integers are equal."""
    if type(ours) is not type(theirs):
        return name
    if dataclasses.is_dataclass(ours) and not isinstance(ours, type):
        parts = [(f"{name}.{f.name}", getattr(ours, f.name), getattr(theirs, f.name)) for f in dataclasses.fields(ours)]
    elif isinstance(ours, tuple) and len(ours) == len(theirs):
        parts = [(f"{name}[{i}]", *pair) for i, pair in enumerate(zip(ours, theirs, strict=True))]
    elif isinstance(ours, np.ndarray):
        return None if ours.dtype == theirs.dtype and np.array_equal(ours, theirs) else name
    else:
        return None if ours == theirs else name
    found = (first_difference(left, right, name=part) for part, left, right in parts)
    return next((difference for difference in found if difference is not None), None)


class _Writer:
    def __init__(self, accelerator: AcceleratorConfig) -> None:
        self.order = ParameterStreams.of(accelerator)
        self.norm_lanes = accelerator.vector_lanes
        self.content = bytearray()
        self.sections: list[Section] = []
        self.commands: dict[str, dict[str, int]] = {}

    def section(self, layer: str, content: str, data: bytes, shape: tuple[int, ...]) -> None:
        self.content += bytes(-len(self.content) % ALIGNMENT)
        section = Section(layer=layer, content=content, offset=len(self.content), bytes=len(data), shape=shape)
        self.sections.append(section)
        self.content += data

    def array(self, layer: str, content: str, values: NDArray[Any]) -> None:
        self.section(layer, content, values.astype(_TYPES[content]).tobytes(), values.shape)

    def linear(self, linear: IntegerLinear) -> None:
        stored = StoredRows(
            weights=linear.weights,
            rows_high=linear.rows_high,
            bias=linear.bias,
            mantissa=linear.mantissa,
            shift=linear.shift,
        )
        rows, inputs = linear.weights.shape
        self.commands[linear.name] = {
            "inputs": inputs,
            "rows_high": linear.rows_high,
            "rows_low": rows - linear.rows_high,
            "wide": int(linear.wide),
        }
        self.section(linear.name, "rows", self.order.rows(stored), (rows, inputs))
        self.array(linear.name, "channels", linear.channels)
        if linear.table is not None:
            self.array(linear.name, "table", np.roll(linear.table, 128))

    def norm(self, norm: IntegerNorm) -> None:
        constants = norm.constants
        width = constants.gain.size
        factor, mean_shift = mean_factor(width)
        self.commands[norm.name] = {
            "width": width,
            "epsilon": constants.epsilon,
            "mean_factor": factor,
            "mean_shift": mean_shift,
            "out_shift": constants.shift,
        }
        stream = norm_stream(constants.gain, constants.bias, lanes=self.norm_lanes, beat_bytes=self.order.beat_bytes)
        self.section(norm.name, "parameters", stream, (width,))

    def mixer(self, mixer: IntegerMixer) -> None:
        if isinstance(mixer, IntegerAttention):
            self.factors(f"{mixer.name}.scores", mixer.score_factor)
            numerator, exponent = mixer.mix_factor
            self.commands[f"{mixer.name}.softmax"] = {"numerator": numerator, "exponent": exponent}
            self.array(f"{mixer.name}.softmax", "exponentials", mixer.exponentials)
        elif isinstance(mixer, IntegerLinearAngular):
            self.norm(mixer.q_unit)
            self.norm(mixer.k_unit)
            self.factors(f"{mixer.name}.context", mixer.context_factor)
            self.factors(f"{mixer.name}.readout", mixer.readout_factor)
        else:
            raise UsageError(f"{mixer.name}: packed weights know the operators {', '.join(PACKED_OPERATORS)} alone")

    def factors(self, layer: str, factors: Factors) -> None:
        (mantissa,), (shift,) = factors
        self.commands[layer] = {"mantissa": int(mantissa), "shift": int(shift)}


class _Reader:
    """Raises KeyError or ValueError where the content does not fit the index."""

    def __init__(self, content: bytes, index: WeightsIndex) -> None:
        self._content, self._index = content, index
        self._sections = {(section.layer, section.content): section for section in index.sections}

    def data(self, layer: str, content: str) -> bytes:
        section = self._sections[layer, content]
        data = self._content[section.offset : section.offset + section.bytes]
        if len(data) != section.bytes:
            raise ValueError(f"{layer}: {content} ends at byte {section.offset + section.bytes}, the file before")
        return data

    def array(self, layer: str, content: str) -> NDArray[Any]:
        values = np.frombuffer(self.data(layer, content), dtype=_TYPES[content])
        return values.reshape(self._sections[layer, content].shape)

    def linear(self, name: str) -> IntegerLinear:
        command = self._index.commands[name]
        stored = self._index.order.read_rows(
            self.data(name, "rows"),
            rows_high=command["rows_high"],
            rows_low=command["rows_low"],
            inputs=command["inputs"],
        )
        has_table = (name, "table") in self._sections
        return IntegerLinear(
            name=name,
            weights=stored.weights,
            rows_high=stored.rows_high,
            bias=stored.bias,
            mantissa=stored.mantissa,
            shift=stored.shift,
            channels=self.array(name, "channels").astype(np.int64),
            table=np.roll(self.array(name, "table"), 128) if has_table else None,
            wide=bool(command["wide"]),
        )

    def norm(self, name: str) -> IntegerNorm:
        command, index = self._index.commands[name], self._index
        gain, bias = read_norm_stream(
            self.data(name, "parameters"),
            width=command["width"],
            lanes=index.norm_lanes,
            beat_bytes=index.order.beat_bytes,
        )
        constants = LayerNormConstants(gain=gain, bias=bias, shift=command["out_shift"], epsilon=command["epsilon"])
        return IntegerNorm(name=name, constants=constants)

    def block(self, name: str, subnet: Subnet, block: BlockChoice) -> IntegerBlock:
        mixers = {"attention": self.attention, "linear-angular": self.linear_angular}
        return IntegerBlock(
            name=name,
            norm1=self.norm(f"{name}.norm1"),
            qkv=self.linear(f"{name}.qkv"),
            mixer=mixers[block.operator](name, subnet.head_dim),
            proj=self.linear(f"{name}.proj"),
            norm2=self.norm(f"{name}.norm2"),
            fc1=self.linear(f"{name}.fc1"),
            fc2=self.linear(f"{name}.fc2"),
        )

    def attention(self, name: str, head_dim: int) -> IntegerMixer:
        softmax = self._index.commands[f"{name}.softmax"]
        return IntegerAttention(
            name=name,
            head_dim=head_dim,
            score_factor=self.factors(f"{name}.scores"),
            exponentials=self.array(f"{name}.softmax", "exponentials"),
            mix_factor=(softmax["numerator"], softmax["exponent"]),
        )

    def linear_angular(self, name: str, head_dim: int) -> IntegerMixer:
        return IntegerLinearAngular(
            name=name,
            head_dim=head_dim,
            q_unit=self.norm(f"{name}.q_unit"),
            k_unit=self.norm(f"{name}.k_unit"),
            context_factor=self.factors(f"{name}.context"),
            readout_factor=self.factors(f"{name}.readout"),
        )

    def factors(self, layer: str) -> Factors:
        command = self._index.commands[layer]
        return np.array([command["mantissa"]]), np.array([command["shift"]])
