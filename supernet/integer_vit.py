"""An extracted subnet in the integer arithmetic of the hardware, operation by operation, in NumPy.

Between operations there are codes only: 8 bits for what a product reads, 16 bits for the residual stream and the
logits. LayerScale is folded into a linear's factors, GELU into a table, the zero point of an input into the bias. The
class token and the position embeddings are codes of the residual stream, which the residual unit adds to the patches.

Three kinds of scale are not part of an extracted subnet, because training keeps those values as floats: of the
residual stream (one for the whole network, so that its sums need no rescaling), of each block's attention scores, and
of the logits. `IntegerRanges` holds them; `find_ranges` takes them from images.

Shape suffixes as in `supernet.functional`: B images, T tokens, D channels, H heads, N channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from numpy.typing import NDArray
from torch import Tensor

from hwmodel.errors import UsageError
from hwmodel.integer import FloatArray, Int8Array, IntegerGemm
from hwmodel.integer_vector import IntegerResidual
from supernet import functional
from supernet.functional import ActivationSites, Norm
from supernet.operators.integer import IntegerMixer, IntegerNorm, Recorder, naming, requantization
from supernet.operators.registry import OPERATORS, operator
from supernet.standalone import LayerNorm, QuantLinear, SubnetBlock, SubnetViT
from supernet.subnet import Subnet

Int16Array = NDArray[np.int16]

ACT_BITS = 8
RESIDUAL_LIMIT = 2**15 - 1
#: room above the largest residual and logit that was seen, so that other images do not saturate
HEADROOM = 1.5


@dataclass(frozen=True, kw_only=True, slots=True)
class IntegerRanges:
    """Scales that the integer network needs beside the subnet's own: value of one code of each.

    `scores` has one scale for each block, None where its operator has no tensor without a site (see `IntegerMixer`).
    """

    __pydantic_config__ = {"extra": "forbid"}

    residual: float
    scores: tuple[float | None, ...]
    logits: float


@torch.no_grad()
def find_ranges(module: SubnetViT, x_BCHW: Tensor) -> IntegerRanges:
    """The scales that a batch of normalised images suggests, from a pass with quantized activations.

    Raises:
        UsageError: an operator of the subnet has no integer form, or it pools.
    """
    check_integer_form(module.subnet)
    largest = torch.zeros(())
    scores: list[float | None] = []
    smallest = 1e-8

    def watched(norm: Norm) -> Norm:
        def apply(x: Tensor) -> Tensor:
            nonlocal largest
            largest = torch.maximum(largest, x.abs().amax())
            return norm(x)

        return cast(Norm, apply)

    stem = module.sites.quantizer(None)
    x_BTD = functional.embed_patches(
        stem("image", functional.resize_images(x_BCHW, module.subnet.image_size)),
        module.patch_embed.active(),
        module.cls_token,
        module.position,
        patch_size=module.subnet.patch_size,
    )
    for child, choice in zip(module.blocks, module.subnet.blocks, strict=True):
        block, mixer = cast(SubnetBlock, child), integer_form(choice.operator)
        seen: dict[str, Tensor] = {}

        def watch(site: str, x: Tensor, block: SubnetBlock = block, seen: dict[str, Tensor] = seen) -> Tensor:
            seen[site] = block.mixer_sites.quantizer(None)(site, x)
            return seen[site]

        x_BTD = functional.encoder_block(
            x_BTD,
            norm1=watched(block.norm1.active()),
            norm2=watched(block.norm2.active()),
            scale1=block.scale1,
            scale2=block.scale2,
            mix=block.mix,
            mixer={name: cast(QuantLinear, linear).active() for name, linear in block.mixer.items()},
            mlp={name: cast(QuantLinear, linear).active() for name, linear in block.mlp.items()},
            head_dim=block.head_dim,
            mixer_quantizer=watch,
            quantizer=block.sites.quantizer(None),
        )
        own = mixer.own_scale({site: x.numpy() for site, x in seen.items()})
        scores.append(None if own is None else max(own, smallest))
    x_BD = stem("norm", watched(module.norm.active())(x_BTD)[:, 0])
    logits = module.head.active()(x_BD).abs().amax()
    return IntegerRanges(
        residual=max(float(largest) * HEADROOM / RESIDUAL_LIMIT, smallest),
        scores=tuple(scores),
        logits=max(float(logits) * HEADROOM / RESIDUAL_LIMIT, smallest),
    )


def check_integer_form(subnet: Subnet) -> None:
    """Raises `UsageError` where the arithmetic of the hardware is not known for all that the subnet does."""
    if subnet.pooling:
        places = ", ".join(map(str, subnet.pooling))
        raise UsageError(
            f"pooling of patches, here before block {places}, has no integer form, so this subnet cannot be exported; "
            "choose one without pooling"
        )
    for block in subnet.blocks:
        integer_form(block.operator)


def integer_form(name: str) -> type[IntegerMixer]:
    """The integer form of the operator called `name`; raises `UsageError` if it has none."""
    form = operator(name).integer
    if form is None:
        known = ", ".join(other for other in OPERATORS.names() if operator(other).integer is not None)
        raise UsageError(
            f"the operator '{name}' has no integer form, so it cannot be exported; those that have: {known}"
        )
    return form


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class IntegerLinear:
    """A linear's constants in the order of the hardware: rows at high precision first.

    Hardware row i computes output channel `channels[i]`; see `IntegerGemm` for the other fields.
    """

    name: str
    weights: Int8Array
    rows_high: int
    bias: NDArray[np.int32]
    mantissa: NDArray[np.int64]
    shift: NDArray[np.int64]
    channels: NDArray[np.int64]
    table: Int8Array | None
    wide: bool

    def __call__(self, codes: Int8Array, record: Recorder | None) -> Int8Array | Int16Array:
        """Output codes (F, rows) in channel order, of input codes (F, inputs)."""
        gemm = IntegerGemm(
            activations=codes,
            weights=self.weights,
            rows_high=self.rows_high,
            bias=self.bias,
            mantissa=self.mantissa,
            shift=self.shift,
            table=self.table,
            least=-128 if self.wide or self.table is not None else -127,
            wide=self.wide,
        )
        if record is not None:
            record(self.name, gemm)
        rows = gemm.outputs()
        outputs = np.empty_like(rows)
        outputs[:, self.channels] = rows
        return outputs


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class IntegerBlock:
    """One encoder block."""

    name: str
    norm1: IntegerNorm
    qkv: IntegerLinear
    mixer: IntegerMixer
    proj: IntegerLinear
    norm2: IntegerNorm
    fc1: IntegerLinear
    fc2: IntegerLinear

    def __call__(self, x_BTD: Int16Array, record: Recorder | None) -> Int16Array:
        """Codes of the residual stream (B, T, D) after the block."""
        batch, tokens, width = x_BTD.shape
        rows = x_BTD.reshape(-1, width)
        qkv = self.qkv(self.norm1(rows, record), record)
        mixed = self.mixer(qkv.reshape(batch, tokens, -1, 3, self.mixer.head_dim).astype(np.int8), record)
        rows = _add(f"{self.name}.residual1", rows, self.proj(mixed.reshape(batch * tokens, -1), record), record)
        hidden = self.fc1(self.norm2(rows, record), record).astype(np.int8)
        rows = _add(f"{self.name}.residual2", rows, self.fc2(hidden, record), record)
        return rows.reshape(x_BTD.shape)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class IntegerViT:
    """The whole network.

    `position` holds codes of the residual stream (T, D): the class token with its position embedding, then the
    position embeddings of the patches. `image_scale` and `logit_scale` are the values of one code.
    """

    subnet: Subnet
    image_scale: float
    logit_scale: float
    patch_embed: IntegerLinear
    position: Int16Array
    blocks: tuple[IntegerBlock, ...]
    norm: IntegerNorm
    head: IntegerLinear

    @staticmethod
    def of(module: SubnetViT, ranges: IntegerRanges) -> IntegerViT:
        """The integer form of an extracted subnet.

        Raises:
            UsageError: an operator has no integer form, the subnet pools, activations have not 8 bits, or a factor is
                beyond what the hardware holds.
        """
        check_integer_form(module.subnet)
        if module.subnet.act_bits != ACT_BITS:
            raise UsageError(f"the integer network has activations of {ACT_BITS} bits, not {module.subnet.act_bits}")
        stem = module.sites
        position = module.position.double().clone()
        position[0] += module.cls_token.double()
        codes = np.rint(position.numpy() / ranges.residual)
        return IntegerViT(
            subnet=module.subnet,
            image_scale=_scale(stem, "image"),
            logit_scale=ranges.logits,
            patch_embed=_linear("patch_embed", module.patch_embed, stem, "image", output_scale=ranges.residual),
            position=np.clip(codes, -RESIDUAL_LIMIT - 1, RESIDUAL_LIMIT).astype(np.int16),
            blocks=tuple(_block(f"blocks.{index}", module, index, ranges) for index in range(module.subnet.depth)),
            norm=_norm("norm", module.norm, ranges.residual, _scale(stem, "norm")),
            head=_linear("head", module.head, stem, "norm", output_scale=ranges.logits),
        )

    def quantize_images(self, x_BCHW: Tensor) -> Int8Array:
        """Codes of normalised images (B, C, H, W), resized to the subnet's image size."""
        resized = functional.resize_images(x_BCHW, self.subnet.image_size).double().numpy()
        return np.clip(np.rint(resized / self.image_scale), -127, 127).astype(np.int8)

    def __call__(self, images_BCHW: Int8Array, record: Recorder | None = None) -> Int16Array:
        """Codes of the logits (B, classes); `record` is told of every operation, which are those of all images."""
        batch, size = len(images_BCHW), self.subnet.patch_size
        grid = self.subnet.image_size // size
        patches = images_BCHW.reshape(batch, -1, grid, size, grid, size).transpose(0, 2, 4, 1, 3, 5)
        embedded = self.patch_embed(patches.reshape(batch * grid * grid, -1), record)
        width = self.subnet.embed_dim
        rows = np.zeros((batch, self.subnet.tokens, width), dtype=np.int16)
        rows[:, 1:] = embedded.reshape(batch, -1, width)
        position = np.broadcast_to(self.position, rows.shape).reshape(-1, width)
        x_BTD = _add("pos_embed", rows.reshape(-1, width), position, record).reshape(rows.shape)
        for block in self.blocks:
            x_BTD = block(x_BTD, record)
        logits = self.head(self.norm(np.ascontiguousarray(x_BTD[:, 0]), record), record)
        return logits.astype(np.int16, copy=False)


def _add(name: str, x: Int16Array, y: NDArray[np.int8] | Int16Array, record: Recorder | None) -> Int16Array:
    operation = IntegerResidual(x=x, y=y.astype(np.int16, copy=False))
    if record is not None:
        record(name, operation)
    return operation.outputs()


def _block(name: str, module: SubnetViT, index: int, ranges: IntegerRanges) -> IntegerBlock:
    block, choice, residual = cast(SubnetBlock, module.blocks[index]), module.subnet.blocks[index], ranges.residual
    sites, mixer = block.sites, block.mixer_sites
    qkv, proj = (cast(QuantLinear, block.mixer[linear]) for linear in ("qkv", "proj"))
    fc1, fc2 = (cast(QuantLinear, block.mlp[linear]) for linear in ("fc1", "fc2"))
    scales = {site: _scale(mixer, site) for site in mixer.names}
    qkv_scale = np.tile(np.repeat([scales[part] for part in "qkv"], block.head_dim), choice.num_heads)
    return IntegerBlock(
        name=name,
        norm1=_norm(f"{name}.norm1", block.norm1, residual, _scale(sites, "norm1")),
        qkv=_linear(f"{name}.qkv", qkv, sites, "norm1", output_scale=qkv_scale, wide=False),
        mixer=integer_form(choice.operator).of(
            name, scales, head_dim=block.head_dim, tokens=module.subnet.tokens, own_scale=ranges.scores[index]
        ),
        proj=_linear(f"{name}.proj", proj, mixer, "mixed", output_scale=residual, row_factor=block.scale1),
        norm2=_norm(f"{name}.norm2", block.norm2, residual, _scale(sites, "norm2")),
        fc1=_linear(
            f"{name}.fc1",
            fc1,
            sites,
            "norm2",
            output_scale=_scale(sites, "fc1"),
            table=_gelu_table(sites),
            wide=False,
        ),
        fc2=_linear(f"{name}.fc2", fc2, sites, "gelu", output_scale=residual, row_factor=block.scale2),
    )


def _norm(name: str, norm: LayerNorm, scale_in: float, scale_out: float) -> IntegerNorm:
    gain, bias = norm.weight.double().numpy(), norm.bias.double().numpy()
    return IntegerNorm.of(name, gain, bias, scale_in=scale_in, scale_out=scale_out)


def _linear(
    name: str,
    linear: QuantLinear,
    sites: ActivationSites,
    site: str,
    *,
    output_scale: float | FloatArray,
    row_factor: Tensor | None = None,
    table: Int8Array | None = None,
    wide: bool = True,
) -> IntegerLinear:
    """The constants of a linear whose input is of `site`; see the module's docstring for what is folded."""
    codes = linear.codes.numpy().astype(np.int64)
    unit = linear.scale.double().numpy() * _scale(sites, site)
    factor = unit / output_scale
    if row_factor is not None:
        factor = factor * row_factor.double().numpy()
    # The hardware's factors are positive: where LayerScale is not, the row changes its sign instead.
    sign = np.where(factor < 0, -1, 1)
    bias = sign * (np.rint(linear.bias.double().numpy() / unit) - _zero(sites, site) * codes.sum(axis=1))
    # A row of zeros has a tiny scale, and so an endless bias; like the fake-quantized bias it saturates, with room for
    # what the products add.
    most = 2**31 - 1 - 128 * np.abs(codes).sum(axis=1)
    bias = np.clip(bias, -most, most)
    is_high = linear.plan.is_high
    channels = np.argsort(~is_high, kind="stable")
    with naming(name):
        mantissa, shift = requantization(np.abs(factor[channels]))
    return IntegerLinear(
        name=name,
        weights=(codes * sign[:, None])[channels].astype(np.int8),
        rows_high=int(is_high.sum()),
        bias=bias[channels].astype(np.int32),
        mantissa=mantissa,
        shift=shift,
        channels=channels,
        table=table,
        wide=wide,
    )


def _gelu_table(sites: ActivationSites) -> Int8Array:
    """Codes of GELU's output by those of its input, -128 to 127; the input saturates at -127, as in training."""
    inputs = torch.arange(-128, 128, dtype=torch.float64).clamp(min=-127) * _scale(sites, "fc1")
    codes = torch.round(F.gelu(inputs) / _scale(sites, "gelu")) + _zero(sites, "gelu")
    least = -128 if sites.asymmetric[sites.names.index("gelu")] else -127
    return np.asarray(codes.clamp(least, 127).numpy().astype(np.int8))


def _scale(sites: ActivationSites, site: str) -> float:
    return float(sites.scale[sites.names.index(site)])


def _zero(sites: ActivationSites, site: str) -> int:
    return round(float(sites.zero_point[sites.names.index(site)]))
