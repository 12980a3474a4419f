"""How the constants of a layer lie in memory, so that a DMA can stream them to the hardware as they are.

The engine's weight stream (`hwmodel/rtl/quasar_weights.sv`) brings one row tile after the other, those of 8-bit rows
first, and of each row tile:

    parameters   7 bytes a row (bias int32, mantissa uint16, shift uint8), in groups of `lanes` rows
    weights      of each k tile, `tile_inputs` inputs after each other; of an input, one code for each row of the tile:
                 a byte for 8-bit rows; for 4-bit rows a nibble, the first of two in the lower half of their byte

LayerNorm's parameter stream (`hwmodel/rtl/quasar_layernorm.sv`) brings 6 bytes a channel (gain int16, bias int32), in
groups of as many channels as the vector unit has lanes.

Each group and each k tile is filled up with zeros to whole beats of `beat_bytes`; rows and inputs beyond those of the
layer are zeros too. All numbers are little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.accelerator import AcceleratorColumns, AcceleratorConfig
from hwmodel.integer import Int8Array

_ROW = np.dtype([("bias", "<i4"), ("mantissa", "<u2"), ("shift", "u1")])
#: of a row's parameters
ROW_BYTES = _ROW.itemsize
_CHANNEL = np.dtype([("gain", "<i2"), ("bias", "<i4")])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredRows:
    """The constants of a product with stored weights (M, K); see `hwmodel.integer.IntegerGemm`."""

    weights: Int8Array
    rows_high: int
    bias: NDArray[np.int32]
    mantissa: NDArray[np.int64]
    shift: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowTiles:
    """The rows of one precision, and how many of them each of the row tiles holds."""

    low: bool
    rows: int
    tile_rows: int

    @property
    def tiles(self) -> int:
        """Row tiles, the last one perhaps in part empty."""
        return -(-self.rows // self.tile_rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterStreams:
    """The order of the constants for one accelerator; see the module's docstring."""

    tile_rows_high: int
    tile_rows_low: int
    tile_inputs: int
    lanes: int
    beat_bytes: int

    @staticmethod
    def of(config: AcceleratorConfig) -> ParameterStreams:
        """The order that an accelerator reads."""
        columns = AcceleratorColumns.one(config)
        return ParameterStreams(
            tile_rows_high=int(columns.rows_per_dsp(8)) * config.array_rows,
            tile_rows_low=int(columns.rows_per_dsp(4)) * config.array_rows,
            tile_inputs=config.array_inputs,
            lanes=config.output_stream_bits // 8,
            beat_bytes=config.weight_stream_bits // 8,
        )

    def kinds(self, *, rows_high: int, rows_low: int) -> tuple[RowTiles, RowTiles]:
        """The row tiles of a product, in their order."""
        return (
            RowTiles(low=False, rows=rows_high, tile_rows=self.tile_rows_high),
            RowTiles(low=True, rows=rows_low, tile_rows=self.tile_rows_low),
        )

    def rows(self, stored: StoredRows) -> bytes:
        """The weight stream of a product."""
        rows, inputs = stored.weights.shape
        k_tiles = -(-inputs // self.tile_inputs)
        parameters = np.zeros(rows, dtype=_ROW)
        parameters["bias"], parameters["mantissa"], parameters["shift"] = stored.bias, stored.mantissa, stored.shift
        stream, first = [], 0
        for kind in self.kinds(rows_high=stored.rows_high, rows_low=rows - stored.rows_high):
            here, shape = slice(first, first + kind.rows), (kind.tiles, kind.tile_rows)
            first += kind.rows
            groups = -(-kind.tile_rows // self.lanes)
            records = np.zeros((kind.tiles, groups * self.lanes), dtype=_ROW)
            records[:, : kind.tile_rows] = padded(parameters[here], unit=kind.tile_rows).reshape(shape)
            header = records.view(np.uint8).reshape(kind.tiles, groups, ROW_BYTES * self.lanes)
            codes = np.zeros((kind.tiles * kind.tile_rows, k_tiles * self.tile_inputs), dtype=np.int8)
            codes[: kind.rows, :inputs] = stored.weights[here]
            by_input = codes.reshape(*shape, k_tiles, self.tile_inputs).transpose(0, 2, 3, 1)
            weights = by_input.reshape(kind.tiles, k_tiles, self.tile_inputs * kind.tile_rows)
            parts = (header, _nibbles(weights) if kind.low else weights.view(np.uint8))
            beats = [padded(part, unit=self.beat_bytes) for part in parts]
            tiles = [part.reshape(kind.tiles, part.shape[1] * part.shape[2]) for part in beats]
            stream.append(np.concatenate(tiles, axis=1).tobytes())
        return b"".join(stream)

    def read_rows(self, stream: bytes, *, rows_high: int, rows_low: int, inputs: int) -> StoredRows:
        """The constants that `rows` made a stream of; raises ValueError if the stream has another length."""
        k_tiles = -(-inputs // self.tile_inputs)
        data, at = np.frombuffer(stream, dtype=np.uint8), 0
        parameters, weights = [], []
        for kind in self.kinds(rows_high=rows_high, rows_low=rows_low):
            groups, codes = -(-kind.tile_rows // self.lanes), self.tile_inputs * kind.tile_rows
            group_bytes = _whole(ROW_BYTES * self.lanes, self.beat_bytes)
            tile_bytes = _whole(-(-codes // 2) if kind.low else codes, self.beat_bytes)
            header_bytes, all_bytes = groups * group_bytes, groups * group_bytes + k_tiles * tile_bytes
            tiles = data[at : at + kind.tiles * all_bytes].reshape(kind.tiles, all_bytes)
            at += kind.tiles * all_bytes
            header = tiles[:, :header_bytes].reshape(kind.tiles, groups, group_bytes)
            records = np.ascontiguousarray(header[:, :, : ROW_BYTES * self.lanes]).view(_ROW)
            records = records.reshape(kind.tiles, groups * self.lanes)[:, : kind.tile_rows]
            parameters.append(records.reshape(-1)[: kind.rows])
            packed = tiles[:, header_bytes:].reshape(kind.tiles, k_tiles, tile_bytes)
            by_input = (_from_nibbles(packed) if kind.low else packed.view(np.int8))[:, :, :codes]
            by_row = by_input.reshape(kind.tiles, k_tiles, self.tile_inputs, kind.tile_rows).transpose(0, 3, 1, 2)
            weights.append(
                by_row.reshape(kind.tiles * kind.tile_rows, k_tiles * self.tile_inputs)[: kind.rows, :inputs]
            )
        if at != len(data):
            raise ValueError(f"{len(data)} bytes instead of {at}")
        records = np.concatenate(parameters)
        return StoredRows(
            weights=np.concatenate(weights),
            rows_high=rows_high,
            bias=records["bias"].astype(np.int32),
            mantissa=records["mantissa"].astype(np.int64),
            shift=records["shift"].astype(np.int64),
        )


def norm_stream(gain: NDArray[np.int16], bias: NDArray[np.int32], *, lanes: int, beat_bytes: int) -> bytes:
    """The parameter stream of a LayerNorm with a gain and a bias (N,)."""
    channels = np.zeros(gain.size, dtype=_CHANNEL)
    channels["gain"], channels["bias"] = gain, bias
    groups = padded(channels, unit=lanes).view(np.uint8).reshape(-1, _CHANNEL.itemsize * lanes)
    return padded(groups, unit=beat_bytes).tobytes()


def read_norm_stream(
    stream: bytes, *, width: int, lanes: int, beat_bytes: int
) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
    """Gain and bias that `norm_stream` made a stream of; raises ValueError if the stream has another length."""
    size = _CHANNEL.itemsize * lanes
    groups = np.frombuffer(stream, dtype=np.uint8).reshape(-(-width // lanes), _whole(size, beat_bytes))
    channels = np.ascontiguousarray(groups[:, :size]).view(_CHANNEL).reshape(-1)[:width]
    return channels["gain"].astype(np.int16), channels["bias"].astype(np.int32)


def _whole(size: int, unit: int) -> int:
    return unit * -(-size // unit)


def padded(values: NDArray[Any], *, unit: int) -> NDArray[Any]:
    """`values` with zeros behind along the last axis, up to a multiple of `unit`."""
    result = np.zeros((*values.shape[:-1], _whole(values.shape[-1], unit)), dtype=values.dtype)
    result[..., : values.shape[-1]] = values
    return result


def _nibbles(codes: Int8Array) -> NDArray[np.uint8]:
    """Pairs of 4-bit codes along the last axis, the first one in the lower half of the byte."""
    pairs = padded(codes, unit=2).astype(np.uint8) & 15
    return np.asarray(pairs[..., 0::2] | pairs[..., 1::2] << 4, dtype=np.uint8)


def _from_nibbles(pairs: NDArray[np.uint8]) -> Int8Array:
    """Codes of 4 bits with their sign, two for each byte."""
    codes = np.stack([pairs & 15, pairs >> 4], axis=-1).astype(np.int8)
    codes = codes.reshape(*pairs.shape[:-1], 2 * pairs.shape[-1])
    return np.asarray(np.where(codes > 7, codes - 16, codes), dtype=np.int8)
