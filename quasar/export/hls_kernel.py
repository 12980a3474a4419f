"""The integer network of a bundle as a kernel for Vitis HLS, which any C++ compiler can run, too.

The sources in `quasar/export/hls` are the accelerator in C++: its matrix engine, with as many weight codes in a product
of a DSP, and its vector unit. They are the same for all networks. What is generated beside them:

    config.h        sizes of the accelerator and of the network
    descriptors.h   every operation, in order: sizes, places in weights.bin and in the buffers, factors
    golden.h        names of the tensors, and the checksum (CRC-32) of each for the first golden image
    images.bin      golden images, codes (N, C, S, S) int8
    logits.bin      their logits, codes (N, classes) int16
    settings.tcl    part and clock for Vitis

The kernel takes the constants of all layers from weights.bin, in the order in which a DMA would stream them, so it also
shows that weights.bin is whole. It keeps activations on chip, whatever the accelerator's `activations` says.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from importlib.resources import files
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.errors import UsageError
from hwmodel.integer import Int8Array
from hwmodel.integer_vector import IntegerSoftmax, Operation
from hwmodel.simulate import LONGEST_UNSIGNED_CASCADE
from quasar.export.onnx_int import FACTOR_SUFFIX
from quasar.export.weights_file import ALIGNMENT, WeightsIndex
from supernet.integer_vit import IntegerViT
from supernet.subnet import BlockChoice, Subnet

#: the test bench compiles these
PROGRAM = ("bench.cpp", "quasar_vit.cpp")
#: in the package, the same for every network
SOURCES = (
    *PROGRAM,
    "descriptors_layout.h",
    "dsp.h",
    "engine.h",
    "quasar_vit.h",
    "trace.h",
    "types.h",
    "vector.h",
    "vitis_hls.tcl",
)

#: the generated C++ is indented like the rest
_INDENT = "    "
#: of `struct Gemm`, in its order, with what most products have
_GEMM: dict[str, int | str | bool] = {
    "operand": "STORED",
    "wide": False,
    "by_head": False,
    "numerators": False,
    "transposed": False,
    "tokens": 0,
    "inputs": 0,
    "rows_high": 0,
    "rows_low": 0,
    "stream": "NONE",
    "channels": "NONE",
    "table": "NONE",
    "source": "NONE",
    "second": "NONE",
    "second_pitch": 0,
    "target": 0,
    "first_channel": 0,
    "first_token": 0,
    "pitch": 0,
    "mantissa": 0,
    "shift": 0,
}


def hls_files(
    network: IntegerViT,
    index: WeightsIndex,
    accelerator: AcceleratorConfig,
    *,
    images: Int8Array,
    part: str | None,
) -> dict[str, bytes]:
    """The files of a bundle's folder `hls` by name; equal arguments give equal bytes.

    Args:
        index: of the weights.bin that `pack_weights` made of the network for the accelerator.
        images: codes (N, C, S, S) of golden images.
        part: of the device, for Vitis; if None, whoever runs Vitis fills it in.

    Raises:
        UsageError: the cascade of the accelerator is too long for the fields of its sums.
    """
    if accelerator.backend == "atomic" and accelerator.array_inputs > LONGEST_UNSIGNED_CASCADE:
        raise UsageError(
            f"array_inputs {accelerator.array_inputs} is too long a cascade for unsigned activations; "
            f"use at most {LONGEST_UNSIGNED_CASCADE}"
        )
    layout = _Layout(subnet=network.subnet, tile_inputs=accelerator.array_inputs)
    tables = _Tables(layout, index)
    settings = f'set part "{part or ""}"\nset clock_period_ns {1000 / accelerator.clock_mhz:.4f}\n'
    folder = files("quasar.export") / "hls"
    return {name: (folder / name).read_bytes() for name in SOURCES} | {
        "config.h": _config(layout, tables, accelerator).encode(),
        "descriptors.h": tables.header().encode(),
        "golden.h": _golden(network, images[:1]).encode(),
        "images.bin": images.astype("<i1").tobytes(),
        "logits.bin": network(images).astype("<i2").tobytes(),
        "settings.tcl": settings.encode(),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """Where tensors lie in the kernel's buffers, in words of `tile_inputs` codes.

    The results hold qkv (each head's queries, keys and values in whole words), then the scores or the context of a
    head, then the mixed values; or else the hidden units of the MLP.
    """

    subnet: Subnet
    tile_inputs: int

    def words(self, channels: int) -> int:
        """Of a tensor with so many channels and all tokens."""
        return -(-channels // self.tile_inputs) * self.subnet.tokens

    @property
    def head_words(self) -> int:
        """Of the queries, keys or values of a head."""
        return self.words(self.subnet.head_dim)

    @property
    def context_words(self) -> int:
        """Of the context of a head; 0 if no block has one."""
        head_dim = self.subnet.head_dim
        return -(-head_dim // self.tile_inputs) * head_dim if self.has_contexts else 0

    @property
    def has_contexts(self) -> bool:
        """Whether a block has linear-angular attention."""
        return any(block.operator == "linear-angular" for block in self.subnet.blocks)

    def part(self, head: int, part: str) -> int:
        """First word of q, k or v of a head."""
        return (3 * head + "qkv".index(part)) * self.head_words

    def between(self, heads: int) -> int:
        """First word of the scores or of the context."""
        return 3 * heads * self.head_words

    def mixed(self, heads: int) -> int:
        """First word of the mixed values."""
        return self.between(heads) + max(self.words(self.subnet.tokens), self.context_words)


class _Tables:
    """The descriptors of a network: a line of C++ for each, by unit, and the steps in their order."""

    def __init__(self, layout: _Layout, index: WeightsIndex) -> None:
        self.layout, self.index = layout, index
        # Sections begin at multiples of ALIGNMENT, and streams consist of beats.
        self.word_bytes = gcd(index.order.beat_bytes, ALIGNMENT)
        self.sections = {(section.layer, section.content): section for section in index.sections}
        self.lines: dict[str, list[str]] = {unit: [] for unit in ("GEMM", "LAYERNORM", "SOFTMAX")}
        self.steps: list[str] = []
        subnet = layout.subnet
        patches, tokens = subnet.tokens - 1, subnet.tokens
        # Row 0 of the wide buffer is that of the class token, which has no patch.
        self.linear("patch_embed", tokens=patches, pitch=tokens, first_token=1)
        self.residual("pos_embed")
        for block in range(subnet.depth):
            self.block(f"blocks.{block}", subnet.blocks[block])
        self.norm("norm", tokens=1)
        self.linear("head", tokens=1, pitch=1)

    def block(self, name: str, choice: BlockChoice) -> None:
        """One encoder block."""
        layout, tokens, heads = self.layout, self.layout.subnet.tokens, choice.num_heads
        self.norm(f"{name}.norm1", tokens=tokens)
        self.linear(f"{name}.qkv", tokens=tokens, by_head=True)
        mixers = {"attention": self.attention, "linear-angular": self.linear_angular}
        mixers[choice.operator](name, heads)
        self.linear(f"{name}.proj", tokens=tokens, source=layout.mixed(heads))
        self.residual(f"{name}.residual1")
        self.norm(f"{name}.norm2", tokens=tokens)
        self.linear(f"{name}.fc1", tokens=tokens)
        self.linear(f"{name}.fc2", tokens=tokens, source=0)
        self.residual(f"{name}.residual2")

    def attention(self, name: str, heads: int) -> None:
        """Head by head: queries by keys, softmax, numerators by values."""
        layout, commands = self.layout, self.index.commands
        tokens, head_dim = layout.subnet.tokens, layout.subnet.head_dim
        scores = layout.between(heads)
        softmax = f"{name}.softmax"
        command = commands[softmax]
        for head in range(heads):
            self.gemm(
                f"{name}.scores",
                operand="KEYS",
                tokens=tokens,
                inputs=head_dim,
                rows_high=tokens,
                source=layout.part(head, "q"),
                second=layout.part(head, "k"),
                second_pitch=tokens,
                target=scores,
                pitch=tokens,
                **commands[f"{name}.scores"],
            )
            values = (self.word(softmax, "exponentials"), scores, command["numerator"], command["exponent"])
            self.step("SOFTMAX", softmax, values)
            self.gemm(
                f"{name}.mix",
                operand="VALUES",
                numerators=True,
                tokens=tokens,
                inputs=tokens,
                rows_high=head_dim,
                second=layout.part(head, "v"),
                second_pitch=tokens,
                target=layout.mixed(heads),
                first_channel=head * head_dim,
                pitch=tokens,
            )

    def linear_angular(self, name: str, heads: int) -> None:
        """Units of all queries and keys in their places; then, head by head, values by keys, and queries by that."""
        layout, commands = self.layout, self.index.commands
        tokens, head_dim = layout.subnet.tokens, layout.subnet.head_dim
        for part in "qk":
            self.norm(f"{name}.{part}_unit", tokens=tokens, source=layout.part(0, part), heads=heads)
        for head in range(heads):
            self.gemm(
                f"{name}.context",
                operand="VALUES",
                transposed=True,
                tokens=head_dim,
                inputs=tokens,
                rows_high=head_dim,
                source=layout.part(head, "v"),
                second=layout.part(head, "k"),
                second_pitch=tokens,
                target=layout.between(heads),
                pitch=head_dim,
                **commands[f"{name}.context"],
            )
            self.gemm(
                f"{name}.readout",
                operand="KEYS",
                tokens=tokens,
                inputs=head_dim,
                rows_high=head_dim,
                source=layout.part(head, "q"),
                second=layout.between(heads),
                second_pitch=head_dim,
                target=layout.mixed(heads),
                first_channel=head * head_dim,
                pitch=tokens,
                **commands[f"{name}.readout"],
            )

    def linear(self, name: str, *, tokens: int, pitch: int | None = None, **changes: int | str | bool) -> None:
        """A product with stored rows."""
        command = self.index.commands[name]
        has_table = (name, "table") in self.sections
        self.gemm(
            name,
            tokens=tokens,
            pitch=tokens if pitch is None else pitch,
            inputs=command["inputs"],
            rows_high=command["rows_high"],
            rows_low=command["rows_low"],
            wide=bool(command["wide"]),
            stream=self.word(name, "rows"),
            channels=self.word(name, "channels"),
            table=self.word(name, "table") if has_table else "NONE",
            **changes,
        )

    def gemm(self, name: str, **changes: int | str | bool) -> None:
        """A product."""
        self.step("GEMM", name, tuple((_GEMM | changes)[field] for field in _GEMM))

    def norm(self, name: str, *, tokens: int, source: int | str = "NONE", heads: int = 1) -> None:
        """A LayerNorm."""
        command = self.index.commands[name]
        place = (source, heads, 3 * self.layout.head_words, self.word(name, "parameters"))
        numbers = (command[key] for key in ("epsilon", "mean_factor", "mean_shift", "out_shift"))
        self.step("LAYERNORM", name, (tokens, command["width"], *place, *numbers))

    def residual(self, name: str) -> None:
        """An addition to the residual stream, which needs no descriptor."""
        self.steps.append(f"{{RESIDUAL, 0}},  // {name}")

    def step(self, unit: str, name: str, values: tuple[int | str | bool, ...]) -> None:
        """An operation with the values of its descriptor."""
        own = self.lines[unit]
        self.steps.append(f"{{{unit}, {len(own)}}},  // {name}")
        own.append(f"{{{', '.join(_literal(value) for value in values)}}},  // {name}")

    def word(self, layer: str, content: str) -> int:
        """Where a section begins."""
        return self.sections[layer, content].offset // self.word_bytes

    def header(self) -> str:
        """The content of descriptors.h."""
        tables = {"GEMM": "Gemm GEMMS", "LAYERNORM": "LayerNorm LAYERNORMS", "SOFTMAX": "Softmax SOFTMAXES"}
        parts = ["// Generated: what the network does, and where its constants lie in weights.bin (in words)."]
        parts += ["#pragma once", '#include "descriptors_layout.h"', ""]
        parts.append(f"// {', '.join(_GEMM)}")
        for unit, lines in self.lines.items():
            parts += [f"static const {tables[unit]}[] = {{", *(_INDENT + line for line in lines), "};", ""]
        parts += ["static const Step STEPS[] = {", *(_INDENT + line for line in self.steps), "};", ""]
        return "\n".join(parts)


def _config(layout: _Layout, tables: _Tables, accelerator: AcceleratorConfig) -> str:
    """The content of config.h."""
    subnet, index = layout.subnet, tables.index
    tokens, heads = subnet.tokens, max(block.num_heads for block in subnet.blocks)
    linears = [command for command in index.commands.values() if "inputs" in command]
    most_inputs = max(tokens, *(command["inputs"] for command in linears))
    end = max(section.offset + section.bytes for section in index.sections)
    most_tokens = max(tokens, subnet.head_dim) if layout.has_contexts else tokens
    attention_words = layout.mixed(heads) + layout.words(heads * subnet.head_dim)
    numbers = {
        "ARRAY_ROWS": accelerator.array_rows,
        "ARRAY_INPUTS": accelerator.array_inputs,
        "LANES": index.order.lanes,
        "VECTOR_LANES": index.norm_lanes,
        "BEAT_BYTES": index.order.beat_bytes,
        "WORD_BYTES": tables.word_bytes,
        "IMAGE_SIZE": subnet.image_size,
        "PATCH_SIZE": subnet.patch_size,
        "CHANNELS": subnet.in_chans,
        "CLASSES": subnet.num_classes,
        "TOKENS": tokens,
        "MOST_TOKENS": most_tokens,
        "WIDTH": subnet.embed_dim,
        "MOST_WIDTH": max(command["width"] for command in index.commands.values() if "width" in command),
        "HEAD_DIM": subnet.head_dim,
        "HEAD_PITCH": layout.head_words // tokens * layout.tile_inputs,
        "MOST_ROWS": max(command["rows_high"] + command["rows_low"] for command in linears),
        "IMAGE_CODES": subnet.in_chans * subnet.image_size**2,
        "ACTIVATION_WORDS": max(layout.words(most_inputs), -(-tokens // layout.tile_inputs) * most_tokens),
        "SECOND_WORDS": max(layout.head_words, layout.context_words),
        "RESULT_WORDS": max(attention_words, layout.words(most_inputs)),
        "STREAM_WORDS": layout.words(subnet.embed_dim),
        "WIDE_WORDS": max(layout.words(subnet.embed_dim), -(-subnet.num_classes // layout.tile_inputs)),
        "POSITION": tables.word("pos_embed", "position"),
        "WEIGHT_WORDS": -(-end // ALIGNMENT) * ALIGNMENT // tables.word_bytes,
    }
    lines = ["// Generated: sizes of the accelerator and of the network.", "#pragma once", ""]
    lines.append(f"constexpr bool DUAL = {_literal(accelerator.backend == 'dual')};  // or the backend is atomic")
    lines += [f"constexpr int {name} = {value};" for name, value in numbers.items()]
    return "\n".join([*lines, ""])


def _golden(network: IntegerViT, image: Int8Array) -> str:
    """The content of golden.h."""
    sums: list[tuple[str, int]] = []

    def add(name: str, values: NDArray[Any]) -> None:
        sums.append((name, zlib.crc32(values.astype("<i4").tobytes())))

    def record(name: str, operation: Operation) -> None:
        add(name, operation.outputs())
        if isinstance(operation, IntegerSoftmax):
            add(f"{name}{FACTOR_SUFFIX}", np.stack(operation.factors(), axis=1))

    network(image, record)
    lines = ["// Generated: what every operation gives for the first golden image, as CRC-32 of its values as int32."]
    lines += ["#pragma once", "#include <cstdint>", ""]
    lines += ["struct Golden {", f"{_INDENT}const char* name;", f"{_INDENT}uint32_t checksum;", "};", ""]
    lines += ["static const Golden GOLDEN[] = {"]
    lines += [f'{_INDENT}{{"{name}", 0x{value:08x}}},' for name, value in sums]
    return "\n".join([*lines, "};", ""])


def _literal(value: int | str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
