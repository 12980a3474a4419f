"""Versions of an extracted subnet with parts left out, without any training.

A version keeps some blocks; of each some heads, some hidden units, and its rows at the precision that they had or all
at low precision. It is a subnet again, of another shape, so it has a cost, and `prune` gives its module: slices of the
codes, scales and biases of the whole one. What a linear reads keeps its scale, and nothing is calibrated anew.

Which heads and units go first is a matter of their importance:

    fisher   E[(g . w)^2] over the weights that read the head or unit (`supernet.fisher`), g the gradient of the
             log-likelihood: what removing it does to the output, to the first order
    norm     the product of the norms of the weights that write it and of those that read it; needs no images

Left out: whole attentions or MLPs of a block that stays, since a subnet's block has both, with one head or unit at
least.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from hwmodel.errors import UsageError
from supernet.fisher import FisherScores, attention_of, blocks_of
from supernet.plan import mlp_plan
from supernet.quantize import qmax, quantize, round_bias, row_ranges, row_scales, search_clip
from supernet.standalone import QuantLinear, SubnetBlock, SubnetViT
from supernet.subnet import LINEARS, BlockChoice, Subnet, hidden_units
from supernet.vit import ElasticBlock, SupernetViT

#: how heads and units are ranked
Measure = Literal["fisher", "norm"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """What a version keeps of one block of the whole network.

    Attributes:
        block: index of the block there.
        heads: indices of its heads, ascending.
        units: number of its hidden units; the most important ones.
        low: the linears all of whose rows are at low precision, in the order of `LINEARS`.
    """

    block: int
    heads: tuple[int, ...]
    units: int
    low: tuple[str, ...] = ()


#: the blocks that are kept, in order
Version = tuple[Kept, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockImportance:
    """The importance of the heads (H,) and hidden units (M,) of one block; only their order counts."""

    heads: Tensor
    units: Tensor

    def kept_units(self, count: int) -> Tensor:
        """The indices of the `count` most important units, ascending."""
        return self.units.argsort(descending=True, stable=True)[:count].sort().values


def whole(subnet: Subnet) -> Version:
    """The version that leaves nothing out."""
    return tuple(
        Kept(
            block=index, heads=tuple(range(block.num_heads)), units=int(hidden_units(block.mlp_ratio, subnet.embed_dim))
        )
        for index, block in enumerate(subnet.blocks)
    )


def pruned_subnet(subnet: Subnet, version: Version, importance: tuple[BlockImportance, ...]) -> Subnet:
    """The architecture of a version of `subnet`, with the precision that each row has."""
    return dataclasses.replace(
        subnet, blocks=tuple(_pruned_block(subnet, kept, importance[kept.block]) for kept in version)
    )


def _pruned_block(subnet: Subnet, kept: Kept, importance: BlockImportance) -> BlockChoice:
    block = subnet.blocks[kept.block]
    low = {f"{linear}_ratio": 0.0 for linear in kept.low}
    if kept.units == hidden_units(block.mlp_ratio, subnet.embed_dim):
        return dataclasses.replace(block, num_heads=len(kept.heads), **low)  # type: ignore[arg-type]
    # Units keep their order, so those with rows at high precision are the first ones of fc1 again.
    high = int((importance.kept_units(kept.units) < mlp_plan(subnet, block)["fc1"].high).sum())
    fewer = {"mlp_ratio": kept.units / subnet.embed_dim, "fc1_ratio": high / kept.units} | low
    return dataclasses.replace(block, num_heads=len(kept.heads), **fewer)  # type: ignore[arg-type]


@torch.no_grad()
def prune(module: SubnetViT, low: SubnetViT, version: Version, importance: tuple[BlockImportance, ...]) -> SubnetViT:
    """The module of a version of `module`.

    Args:
        low: the same network with all rows of its blocks at low precision, from `low_precision` or `requantized`.
    """
    subnet = pruned_subnet(module.subnet, version, importance)
    pruned = _empty(subnet, like=module)
    _take_rest(pruned, module)
    for ours, kept in zip(pruned.blocks, version, strict=True):
        source, lowered = (cast(SubnetBlock, network.blocks[kept.block]) for network in (module, low))
        _take_rest(cast(SubnetBlock, ours), source)
        heads = torch.tensor(kept.heads, device=module.cls_token.device)
        channels = torch.arange(subnet.head_dim, device=heads.device)
        inputs = (heads[:, None] * subnet.head_dim + channels).flatten()
        rows = (heads[:, None] * 3 * subnet.head_dim + torch.arange(3 * subnet.head_dim, device=heads.device)).flatten()
        units = importance[kept.block].kept_units(kept.units).to(heads.device)
        slices: dict[str, tuple[Tensor | None, Tensor | None]]
        slices = {"qkv": (rows, None), "proj": (None, inputs), "fc1": (units, None), "fc2": (None, units)}
        for name, (of_rows, of_inputs) in slices.items():
            taken = _linear(lowered if name in kept.low else source, name)
            _take_slice(_linear(cast(SubnetBlock, ours), name), taken, of_rows, of_inputs)
    return pruned.eval()


def _empty(subnet: Subnet, *, like: SubnetViT) -> SubnetViT:
    layer_scale = cast(SubnetBlock, like.blocks[0]).scale1 is not None
    return SubnetViT(subnet, layer_scale=layer_scale).to(like.cls_token.device)


def _take_rest(ours: SubnetViT | SubnetBlock, source: SubnetViT | SubnetBlock) -> None:
    """Copies all tensors of the same place but those of blocks, or of the linears of a block."""
    theirs = dict(source.named_buffers())
    for name, tensor in ours.named_buffers():
        if not name.startswith(("blocks.", "mixer.", "mlp.")):
            tensor.copy_(theirs[name])


def _linear(block: SubnetBlock, name: str) -> QuantLinear:
    return cast(QuantLinear, (block.mixer if name in ("qkv", "proj") else block.mlp)[name])


def _take_slice(ours: QuantLinear, source: QuantLinear, rows: Tensor | None, inputs: Tensor | None) -> None:
    codes, scale, bias = source.codes, source.scale, source.bias
    if rows is not None:
        codes, scale, bias = codes[rows], scale[rows], bias[rows]
    if inputs is not None:
        codes = codes[:, inputs]
    ours.codes.copy_(codes)
    ours.scale.copy_(scale)
    ours.bias.copy_(bias)


def check_prunable(subnet: Subnet, *, source: str) -> None:
    """Raises `UsageError` naming `source` if the subnet pools, or has another operator than attention.

    Heads of another operator mean nothing, and without a block the places of pooling would be others.
    """
    if subnet.pooling:
        raise UsageError(f"{source}: it pools patches; parts can be left out of networks without pooling alone")
    for index, block in enumerate(subnet.blocks):
        if block.operator != "attention":
            raise UsageError(
                f"{source}: block {index} has the operator '{block.operator}'; parts can be left out of networks with "
                "attention alone"
            )


@torch.no_grad()
def low_precision(supernet: SupernetViT, module: SubnetViT) -> SubnetViT:
    """An extracted subnet of `supernet` with all rows of its blocks at low precision, from the supernet's weights.

    The space need not have that choice.
    """
    low = _empty(_all_low(module.subnet), like=module)
    _take_rest(low, module)
    for ours, theirs, block in zip(low.blocks, supernet.blocks, low.subnet.blocks, strict=False):
        cast(SubnetBlock, ours).take(cast(ElasticBlock, theirs), block)
    return low.eval()


@torch.no_grad()
def requantized(module: SubnetViT) -> SubnetViT:
    """As `low_precision`, of a network whose float weights are gone: rows at high precision are quantized again.

    Their scales are clipped as those of a supernet are (`supernet.quantize.search_clip`).
    """
    subnet = module.subnet
    low = _empty(_all_low(subnet), like=module)
    _take_rest(low, module)
    for ours, theirs in zip(low.blocks, module.blocks, strict=True):
        target, source = cast(SubnetBlock, ours), cast(SubnetBlock, theirs)
        _take_rest(target, source)
        scales = source.sites.scales() | source.mixer_sites.scales()
        for name in LINEARS:
            linear = _linear(source, name)
            weight = linear.active().weight
            ranges = row_ranges(weight)
            clip = search_clip(weight, ranges, low_bits=subnet.low_bits)
            _, scale = row_scales(ranges, clip, low_bits=subnet.low_bits, high_bits=subnet.high_bits)
            codes = quantize(weight, scale[:, None], float(qmax(subnet.low_bits))).to(torch.int8)
            bias = round_bias(linear.bias, scale, scales[linear.plan.site])
            is_high = torch.from_numpy(linear.plan.is_high).to(scale.device)
            result = _linear(target, name)
            result.codes.copy_(torch.where(is_high[:, None], codes, linear.codes))
            result.scale.copy_(torch.where(is_high, scale, linear.scale))
            result.bias.copy_(torch.where(is_high, bias, linear.bias))
    return low.eval()


def _all_low(subnet: Subnet) -> Subnet:
    blocks = (
        dataclasses.replace(block, qkv_ratio=0.0, proj_ratio=0.0, fc1_ratio=0.0, fc2_ratio=0.0)
        for block in subnet.blocks
    )
    return dataclasses.replace(subnet, blocks=tuple(blocks))


def fisher_importance(supernet: SupernetViT, scores: FisherScores, subnet: Subnet) -> tuple[BlockImportance, ...]:
    """The importance of the heads and units of `subnet`: their scores in the largest subnet."""
    found = []
    for elastic, block in zip(blocks_of(supernet), subnet.blocks, strict=False):
        heads = scores.removed[attention_of(elastic).proj].reshape(-1, subnet.head_dim).sum(dim=1)
        units = scores.removed[elastic.mlp.fc2]
        count = int(hidden_units(block.mlp_ratio, subnet.embed_dim))
        found.append(BlockImportance(heads=heads[: block.num_heads].cpu(), units=units[:count].cpu()))
    return tuple(found)


@torch.no_grad()
def norm_importance(module: SubnetViT) -> tuple[BlockImportance, ...]:
    """By norms: of heads, value rows times inputs of proj; of units, rows of fc1 times inputs of fc2."""
    found = []
    for block in module.blocks:
        weights = {name: _linear(cast(SubnetBlock, block), name).active().weight.cpu() for name in LINEARS}
        head_dim = module.subnet.head_dim
        value = weights["qkv"].reshape(-1, 3, head_dim, weights["qkv"].shape[1])[:, 2]
        read = weights["proj"].T.reshape(value.shape[0], head_dim, -1)
        found.append(
            BlockImportance(
                heads=value.flatten(1).norm(dim=1) * read.flatten(1).norm(dim=1),
                units=weights["fc1"].norm(dim=1) * weights["fc2"].norm(dim=0),
            )
        )
    return tuple(found)
