"""Orders heads, hidden units and channels of a supernet by importance, once, without changing its function in floats.

Subnets use prefixes: the first channels, heads and hidden units, and the first rows of each linear are those at high
precision. So what matters most must come first. Producer and consumer are permuted together:

* q and k share one order of channels within each head; v has its own, with the inputs of proj;
* heads among themselves, with the inputs of proj;
* the rows of fc1 with the inputs of fc2;
* all residual channels: the rows of patch embedding, class token, positions, proj, fc2 and layer scales, the norms,
  and the inputs of qkv, fc1 and the head share one order; so do both sides of what pools patches.

Two things can happen to a row or unit, and each has its own measure (`supernet.fisher`): s, that it goes to low
precision, and p, that it is removed. Of rows of linears that share an order, s is summed.

Where a dimension has several choices, p decides which units belong to the smallest one, to the next, and so on; among
those, and where there is one choice only, s decides. A supernet whose subnets are trained keeps what belongs to each
choice (`keep_subnets`), so no subnet changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor

from hwmodel.errors import UsageError
from supernet.fisher import FisherScores, attention_of, blocks_of, fisher_scores
from supernet.space import SearchSpace
from supernet.subnet import hidden_units
from supernet.vit import ElasticAttention, ElasticLinear, ElasticNorm, ElasticPool, SupernetViT


def reorder(
    model: SupernetViT, batches: Iterable[Tensor], *, generator: torch.Generator, keep_subnets: bool = False
) -> None:
    """Reorders a supernet in place; its largest subnet computes the same in floats as before.

    Args:
        batches: normalised images (B, C, H, W), on the model's device.
        generator: on the CPU, draws the labels.
        keep_subnets: leave to each choice of a dimension the units that it has, so that all subnets stay the same.

    Raises:
        UsageError: the space has an operator other than attention, whose channels have no known meaning.
    """
    if model.space.operator != ("attention",):
        raise UsageError("supernet.reorder: only attention can be reordered; set it to false for other operators")
    scores = fisher_scores(model, batches, generator=generator)
    with torch.no_grad():
        _apply(model, scores, keep_subnets=keep_subnets)
    model.refresh_clips()


def _apply(model: SupernetViT, scores: FisherScores, *, keep_subnets: bool) -> None:
    space = model.space
    blocks = list(blocks_of(model))

    def order(low: Tensor, removed: Tensor, sizes: Iterable[int]) -> Tensor:
        return importance_order(low, -torch.arange(len(low)) if keep_subnets else removed, sizes)

    written = [scores.low[linear] for block in blocks for linear in (attention_of(block).proj, block.mlp.fc2)]
    channels = order(torch.stack(written).sum(dim=0), scores.channels, space.embed_dim)
    _permute_channels(model, channels)
    hidden_sizes = {int(hidden_units(ratio, width)) for ratio in space.mlp_ratio for width in space.embed_dim}
    for block in blocks:
        fc1, fc2 = block.mlp.fc1, block.mlp.fc2
        hidden = order(scores.low[fc1], scores.removed[fc2], hidden_sizes)
        _permute(fc1, rows=hidden)
        _permute(fc2, inputs=hidden)
        _reorder_heads(attention_of(block), scores, space, keep_subnets=keep_subnets)


def _reorder_heads(
    attention: ElasticAttention, scores: FisherScores, space: SearchSpace, *, keep_subnets: bool
) -> None:
    heads, channels = space.max_heads, space.head_dim
    low_HPN = scores.low[attention.qkv].reshape(heads, 3, channels)
    removed_H = scores.removed[attention.proj].reshape(heads, channels).sum(dim=1)
    if keep_subnets:
        order_H = torch.arange(heads, device=removed_H.device)
    else:
        order_H = removed_H.argsort(descending=True, stable=True)
    query_key_HN = low_HPN[:, :2].sum(dim=1).argsort(dim=1, descending=True, stable=True)
    value_HN = low_HPN[:, 2].argsort(dim=1, descending=True, stable=True)
    within_HPN = torch.stack([query_key_HN, query_key_HN, value_HN], dim=1)
    starts_HP = torch.arange(3 * heads, device=removed_H.device).reshape(heads, 3) * channels
    _permute(attention.qkv, rows=(within_HPN + starts_HP[:, :, None])[order_H].flatten())
    starts_H = torch.arange(heads, device=removed_H.device) * channels
    _permute(attention.proj, inputs=(value_HN + starts_H[:, None])[order_H].flatten())


def importance_order(low: Tensor, removed: Tensor, sizes: Iterable[int]) -> Tensor:
    """The order (N,) of units: by tiers that `sizes` end, filled by `removed`, each sorted by `low`; descending.

    Args:
        low: (N,) what it costs to have a unit at low precision.
        removed: (N,) what it costs to remove it.
        sizes: how many units the choices of the dimension keep.
    """
    by_removal = removed.to(low.device).argsort(descending=True, stable=True)
    ends = sorted({size for size in sizes if size < len(low)} | {len(low)})
    tiers = [by_removal[start:end].sort().values for start, end in zip([0, *ends], ends, strict=False)]
    return torch.cat([tier[low[tier].argsort(descending=True, stable=True)] for tier in tiers])


def _permute_channels(model: SupernetViT, order: Tensor) -> None:
    """Gives the residual channels a new order, everywhere."""
    _permute(model.patch_embed, rows=order)
    _permute(model.head, inputs=order)
    vectors: list[Tensor] = [model.cls_token, *_norm(model.norm)]
    for block in blocks_of(model):
        attention, mlp = attention_of(block), block.mlp
        _permute(attention.qkv, inputs=order)
        _permute(attention.proj, rows=order)
        _permute(mlp.fc1, inputs=order)
        _permute(mlp.fc2, rows=order)
        vectors += [*_norm(block.norm1), *_norm(block.norm2)]
        vectors += [scale for scale in (block.scale1, block.scale2) if scale is not None]
    for pool in cast(Iterable[ElasticPool], model.pools.values()):
        four = torch.arange(4, device=order.device)  # inputs of a channel: its 2 x 2 neighbours
        _permute(pool.merge, rows=order, inputs=(4 * order[:, None] + four).flatten())
        vectors += _norm(pool.norm)
    for vector in vectors:
        vector.copy_(vector[order])
    model.position.copy_(model.position[:, order])


def _permute(linear: ElasticLinear, *, rows: Tensor | None = None, inputs: Tensor | None = None) -> None:
    if rows is not None:
        linear.weight.copy_(linear.weight[rows])
        linear.bias.copy_(linear.bias[rows])
    if inputs is not None:
        linear.weight.copy_(linear.weight[:, inputs])


def _norm(norm: ElasticNorm) -> tuple[Tensor, Tensor]:
    return norm.weight, norm.bias
