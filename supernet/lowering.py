"""From subnets to what the hardware executes; the same code serves one subnet and a population of thousands.

A block is two halves: a mixer half, determined by image size, width, operator, heads and two ratios, and an MLP half,
determined by image size, width, MLP ratio and two ratios. A space has a few hundred different halves, so each one that
occurs is lowered once, as a part of the population (see `hwmodel.workload`), and a subnet is a row of part numbers.

Biases, LayerScale and requantization ride on the drain of a product, and GELU is a table there, so none of them is a
layer of its own. Activations are `act_bits` wide, the residual stream 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwmodel.workload import GemmColumns, IntArray, Population, VectorColumns, Workload
from supernet.operators.registry import LayerColumns, MixerShapes, operator
from supernet.subnet import Subnet, SubnetArrays, hidden_units, high_precision_rows

RESIDUAL_BYTES = 2

#: up to so many different values are told apart by a comparison with each, which is faster than to sort
FEW_VALUES = 32
#: up to so many different codes are told apart by a table with a place for each
DENSE_CODES = 2**16


def lower(subnet: Subnet) -> Workload:
    """The workload of one subnet for one image."""
    return lower_many(SubnetArrays.of(subnet)).workload(0, name=subnet.digest)


def lower_many(subnets: SubnetArrays) -> Population:
    """The workloads of N subnets as a population of stems, block halves and heads."""
    blocks = int(subnets.depth.max())
    active = np.arange(blocks) < subnets.depth[:, None]
    size = _joined([_coded(subnets.image_size), _coded(subnets.embed_dim)])
    size_of_block, size_of_head = _Codes(size.codes[:, None], size.choices), size
    if subnets.pooled is not None:
        levels = _levels(subnets)
        size_of_block = _joined([size_of_block, _coded(levels[:, :blocks])])
        size_of_head = _joined([size, _coded(levels[np.arange(len(levels)), subnets.depth - 1])])
    halves = 2 if subnets.pooled is None else 3  # of a block, with what pools before it
    heads = _coded(subnets.num_heads[:, :blocks])
    mlp = _coded(subnets.mlp_ratio[:, :blocks])
    ratios = _coded(subnets.high_precision_ratio[:, :blocks])
    qkv, proj, fc1, fc2 = (_Codes(ratios.codes[..., i], ratios.choices) for i in range(4))
    # The operator leads, so that the mixers of one operator follow each other.
    mixers = _Codes(subnets.operator[:, :blocks], len(subnets.operators))

    table = PartTable()
    table.add(LayerColumns(), np.zeros(1, dtype=np.int64))  # part 0 fills the slots beyond a subnet's depth
    parts = np.empty((len(subnets.depth), 2 + halves * blocks), dtype=np.int64)
    first, parts[:, 0] = _numbered(size, None, offset=table.parts)
    table.add(*_stems(subnets, first))
    if subnets.pooled is not None:
        pooled = active & subnets.pooled[:, :blocks]
        first, parts[:, 1:-1:3] = _numbered(size_of_block, pooled, offset=table.parts)
        if len(first):
            table.add(*_pools(subnets, *np.divmod(first, blocks)))
    key = _joined([mixers, size_of_block, heads, qkv, proj])
    first, parts[:, halves - 1 : -1 : halves] = _numbered(key, active, offset=table.parts)
    rows, columns = np.divmod(first, max(blocks, 1))
    chosen = subnets.operator[rows, columns]
    for index, name in enumerate(subnets.operators):
        if (chosen == index).any():
            table.add(*_mixers(subnets, name, rows[chosen == index], columns[chosen == index]))
    key = _joined([size_of_block, mlp, fc1, fc2])
    first, parts[:, halves:-1:halves] = _numbered(key, active, offset=table.parts)
    table.add(*_mlps(subnets, *np.divmod(first, max(blocks, 1))))
    first, parts[:, -1] = _numbered(size_of_head, None, offset=table.parts)
    table.add(*_heads(subnets, first))

    return table.population(
        parts,
        slots=("", *(str(b) for b in range(blocks) for _ in range(halves)), ""),
        high_bits=subnets.high_bits,
        low_bits=subnets.low_bits,
        act_bits=subnets.act_bits,
    )


Lowered = tuple[LayerColumns, IntArray]  # the layers of some parts, and the bytes of activations (U,) of each


def _stems(subnets: SubnetArrays, rows: IntArray) -> Lowered:
    """The patch embeddings of the subnets `rows` (U,), to which the class token and the positions are added."""
    width = subnets.embed_dim[rows]
    tokens = _tokens(subnets, rows)
    patches = tokens - 1
    inputs = np.full_like(patches, subnets.in_chans * subnets.patch_size**2)
    layers = LayerColumns()
    layers.gemm(
        "patch_embed",
        "patch_embed",
        tokens=patches,
        inputs=inputs,
        rows_high=width,
        rows_low=np.zeros_like(width),
        count=np.ones_like(width),
    )
    layers.vector("pos_embed", "residual", tokens=tokens, width=width, count=np.ones_like(width))
    return layers, patches * inputs * _act_bytes(subnets) + _residual_bytes(subnets, rows)


def _mixers(subnets: SubnetArrays, mixer: str, rows: IntArray, blocks: IntArray) -> Lowered:
    """The mixer halves of the blocks `blocks` (U,) of the subnets `rows` (U,), which all have the operator `mixer`."""
    shapes = MixerShapes(
        name="blocks.{}",
        tokens=_tokens(subnets, rows, blocks),
        embed_dim=subnets.embed_dim[rows],
        num_heads=subnets.num_heads[rows, blocks],
        head_dim=subnets.head_dim,
        qkv_ratio=subnets.high_precision_ratio[rows, blocks, 0],
        proj_ratio=subnets.high_precision_ratio[rows, blocks, 1],
    )
    return mixer_halves(mixer, shapes, act_bytes=_act_bytes(subnets))


def mixer_halves(mixer: str, shapes: MixerShapes, *, act_bytes: int) -> Lowered:
    """The mixer halves of U blocks that all have the operator `mixer`: norm, operator, residual."""
    every = np.ones_like(shapes.tokens)
    layers = LayerColumns()
    layers.vector("blocks.{}.norm1", "layernorm", tokens=shapes.tokens, width=shapes.embed_dim, count=every)
    peak = operator(mixer).lower(layers, shapes, every)
    layers.vector("blocks.{}.residual1", "residual", tokens=shapes.tokens, width=shapes.embed_dim, count=every)
    return layers, peak * act_bytes + residual_bytes(shapes.tokens, shapes.embed_dim)


def _mlps(subnets: SubnetArrays, rows: IntArray, blocks: IntArray) -> Lowered:
    """The MLP halves of the blocks `blocks` (U,) of the subnets `rows` (U,)."""
    width = subnets.embed_dim[rows]
    return mlp_halves(
        tokens=_tokens(subnets, rows, blocks),
        width=width,
        hidden=hidden_units(subnets.mlp_ratio[rows, blocks], width),
        ratios=subnets.high_precision_ratio[rows, blocks, 2:],
        act_bytes=_act_bytes(subnets),
    )


def mlp_halves(
    *, tokens: IntArray, width: IntArray, hidden: IntArray, ratios: NDArray[np.float64], act_bytes: int
) -> Lowered:
    """The MLP halves of U blocks: norm, fc1, fc2, residual; `ratios` (U, 2) are the shares of 8-bit rows of both."""
    fc1_high = high_precision_rows(ratios[:, 0], hidden)
    fc2_high = high_precision_rows(ratios[:, 1], width)
    every = np.ones_like(tokens)
    layers = LayerColumns()
    layers.vector("blocks.{}.norm2", "layernorm", tokens=tokens, width=width, count=every)
    layers.gemm(
        "blocks.{}.fc1",
        "fc1",
        tokens=tokens,
        inputs=width,
        rows_high=fc1_high,
        rows_low=hidden - fc1_high,
        count=every,
    )
    layers.gemm(
        "blocks.{}.fc2",
        "fc2",
        tokens=tokens,
        inputs=hidden,
        rows_high=fc2_high,
        rows_low=width - fc2_high,
        count=every,
    )
    layers.vector("blocks.{}.residual2", "residual", tokens=tokens, width=width, count=every)
    # fc2's hidden inputs lie beside its 16-bit outputs, until those are added to the residual stream
    alive = tokens * (hidden * act_bytes + width * RESIDUAL_BYTES)
    return layers, alive + residual_bytes(tokens, width)


def _heads(subnets: SubnetArrays, rows: IntArray) -> Lowered:
    """The last normalisation and the classifier, of the class token alone, of the subnets `rows` (U,)."""
    width, one = subnets.embed_dim[rows], np.ones_like(rows)
    layers = LayerColumns()
    layers.vector("norm", "layernorm", tokens=one, width=width, count=one)
    classes = np.full_like(rows, subnets.num_classes)
    layers.gemm("head", "head", tokens=one, inputs=width, rows_high=classes, rows_low=np.zeros_like(rows), count=one)
    return layers, residual_bytes(_tokens(subnets, rows, subnets.depth[rows] - 1), width)


def _pools(subnets: SubnetArrays, rows: IntArray, blocks: IntArray) -> Lowered:
    """The pooling before the blocks `blocks` (U,) of the subnets `rows` (U,); the class token stays as it is."""
    return merging(
        patches=_tokens(subnets, rows, blocks - 1) - 1,
        pooled=_tokens(subnets, rows, blocks) - 1,
        width=subnets.embed_dim[rows],
        act_bytes=_act_bytes(subnets),
    )


def merging(*, patches: IntArray, pooled: IntArray, width: IntArray, act_bytes: int) -> Lowered:
    """U linears that make `pooled` (U,) patches of `patches` (U,), each from 2 x 2 neighbours after a LayerNorm."""
    every = np.ones_like(patches)
    layers = LayerColumns()
    layers.vector("pools.{}.norm", "layernorm", tokens=patches, width=width, count=every)
    layers.gemm(
        "pools.{}.merge",
        "merge",
        tokens=pooled,
        inputs=4 * width,
        rows_high=width,
        rows_low=np.zeros_like(width),
        count=every,
    )
    # the residual stream beside its codes, and those beside the next stream; the class token is in both
    before = patches * width * (RESIDUAL_BYTES + act_bytes)
    after = pooled * width * (4 * act_bytes + RESIDUAL_BYTES)
    return layers, np.maximum(before, after) + width * RESIDUAL_BYTES


def _levels(subnets: SubnetArrays) -> IntArray:
    """How often the grid has been pooled when a block begins, (N, B)."""
    assert subnets.pooled is not None
    return np.cumsum(subnets.pooled, axis=1)


def _tokens(subnets: SubnetArrays, rows: IntArray, blocks: IntArray | None = None) -> IntArray:
    """Tokens of the subnets `rows` (U,) in their blocks `blocks` (U,), or before the first one."""
    grid = subnets.image_size[rows] // subnets.patch_size
    if subnets.pooled is not None and blocks is not None:
        grid = -(-grid // 2 ** _levels(subnets)[rows, blocks])
    return np.asarray(grid**2 + 1)


def _residual_bytes(subnets: SubnetArrays, rows: IntArray) -> IntArray:
    return residual_bytes(_tokens(subnets, rows), subnets.embed_dim[rows])


def residual_bytes(tokens: IntArray, width: IntArray) -> IntArray:
    """Bytes of the residual stream."""
    return tokens * width * RESIDUAL_BYTES


def _act_bytes(subnets: SubnetArrays) -> int:
    return -(-subnets.act_bits // 8)


class PartTable:
    """The parts lowered so far."""

    def __init__(self) -> None:
        self.parts = 0
        self.gemms: list[GemmColumns] = []
        self.vectors: list[VectorColumns] = []
        self.gemm_counts: list[int] = []  # layers of each part
        self.vector_counts: list[int] = []
        self.activation_bytes: list[IntArray] = []

    def add(self, layers: LayerColumns, activation_bytes: IntArray) -> None:
        """Appends as many parts with these layers as `activation_bytes` (U,) has entries."""
        count = len(activation_bytes)
        gemms, vectors = layers.gemm_columns(count), layers.vector_columns(count)
        self.parts += count
        self.gemms.append(gemms)
        self.vectors.append(vectors)
        self.gemm_counts += [len(gemms.names) // count] * count
        self.vector_counts += [len(vectors.names) // count] * count
        self.activation_bytes.append(activation_bytes)

    def population(
        self, parts: IntArray, *, slots: tuple[str, ...], high_bits: int, low_bits: int, act_bits: int
    ) -> Population:
        """The networks that consist of the parts with these numbers, (N, S)."""
        return Population(
            gemms=GemmColumns.joined(self.gemms),
            vectors=VectorColumns.joined(self.vectors),
            gemm_starts=np.cumsum([0, *self.gemm_counts]),
            vector_starts=np.cumsum([0, *self.vector_counts]),
            part_activation_bytes=np.concatenate(self.activation_bytes),
            slots=slots,
            parts=parts,
            high_bits=high_bits,
            low_bits=low_bits,
            act_bits=act_bits,
        )


class _Codes(NamedTuple):
    """Equal values as equal whole numbers from 0 up to `choices`, in an array of any shape."""

    codes: NDArray[Any]
    choices: int


def _coded(values: NDArray[Any]) -> _Codes:
    """Codes for the values of an array that has few different ones."""
    codes = np.zeros(values.shape, dtype=np.uint8)
    flat, unknown = values.reshape(-1), np.ones(values.size, dtype=bool)
    for code in range(FEW_VALUES):
        position = int(unknown.argmax())
        if not unknown[position]:
            return _Codes(codes, code)
        same = flat == flat[position]
        codes.reshape(-1)[:] += same.view(np.uint8) * np.uint8(code)
        unknown ^= same
    different, inverse = np.unique(flat, return_inverse=True)
    return _Codes(inverse.reshape(values.shape), len(different))


def _joined(fields: Sequence[_Codes]) -> _Codes:
    """Codes for the combinations of several values, ordered by the first, then by the second, and so on."""
    codes, choices = np.zeros((), dtype=np.int64), 1
    for field in fields:
        codes = codes * field.choices + field.codes
        choices *= field.choices
        if choices > DENSE_CODES:  # keeps the product of choices inside int64
            different, inverse = np.unique(codes, return_inverse=True)
            codes, choices = inverse.reshape(codes.shape), len(different)
    return _Codes(codes, choices)


def _numbered(key: _Codes, active: NDArray[np.bool_] | None, *, offset: int) -> tuple[IntArray, IntArray]:
    """Numbers for the keys that occur, in their order and from `offset` on, but 0 wherever `active` is False.

    Returns:
        For each number a position in the flattened key (U,), and the number of each key, in the shape of the key.
    """
    codes, choices = key
    if active is not None:
        codes = np.where(active, codes, choices)
    flat = codes.reshape(-1)
    position = np.full(choices + 1, -1, dtype=np.int64)
    position[flat] = np.arange(flat.size)
    position[choices] = -1
    found = position >= 0
    number = np.where(found, np.cumsum(found) - 1 + offset, 0)
    return position[found], number[codes]
