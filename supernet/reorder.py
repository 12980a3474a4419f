"""Orders heads, hidden units and channels of a supernet by importance, once, without changing its function in floats.

Subnets use prefixes: the first channels, heads and hidden units, and the first rows of each linear are those at high
precision. So what matters most must come first. Producer and consumer are permuted together:

* q and k share one order of channels within each head; v has its own, with the inputs of proj;
* heads among themselves, with the inputs of proj;
* the rows of fc1 with the inputs of fc2;
* all residual channels: the rows of patch embedding, class token, positions, proj, fc2 and layer scales, the norms,
  and the inputs of qkv, fc1 and the head share one order.

Two things can happen to a row or unit, and each has its own measure, by the Fisher information of 200 or so images:

* it goes to low precision: s = E[(g . (w - Q(w)))^2], where g is the gradient of the log-likelihood to the row and
  Q(w) the row at low precision. This is the row's error through the full Fisher matrix of the row; the diagonal alone,
  sum_k F_kk (w_k - Q(w_k))^2, ignores that errors of a row add up. Rows of linears that share an order are summed.
* it is removed: p = E[(g . w)^2], over the weights that read it.

Where a dimension has several choices, p decides which units belong to the smallest one, to the next, and so on; among
those, and where there is one choice only, s decides. A supernet whose subnets are trained keeps what belongs to each
choice (`keep_subnets`), so no subnet changes.

Labels are drawn from the model's own predictions, as the Fisher information wants it; none are needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from hwmodel.errors import UsageError
from supernet.functional import Observer
from supernet.quantize import qmax, quantize
from supernet.space import SearchSpace
from supernet.subnet import hidden_units
from supernet.vit import ElasticAttention, ElasticBlock, ElasticLinear, ElasticNorm, SupernetViT, unquantized


@dataclass(slots=True)
class _Scores:
    """Sums over images, by linear of a block: of rows at low precision, of inputs removed; and of channels removed."""

    low: dict[ElasticLinear, Tensor]
    removed: dict[ElasticLinear, Tensor]
    channels: Tensor


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
    scores = _measure(model, batches, generator)
    with torch.no_grad():
        _apply(model, scores, keep_subnets=keep_subnets)
    model.refresh_clips()


def _measure(model: SupernetViT, batches: Iterable[Tensor], generator: torch.Generator) -> _Scores:
    linears = [linear for block in _blocks(model) for linear in _linears(block)]
    errors = {linear: _low_error(linear) for linear in linears}
    writers = [linear for block in _blocks(model) for linear in (_attention(block).proj, block.mlp.fc2)]
    scores = _Scores(
        low={linear: torch.zeros_like(linear.bias) for linear in linears},
        removed={linear: torch.zeros_like(linear.weight[0]) for linear in linears},
        channels=torch.zeros_like(model.cls_token),
    )
    subnet = model.space.largest()
    for x_BCHW in batches:
        for x_1CHW in torch.split(x_BCHW, 1):  # squares are of one image's gradient
            logits = model(x_1CHW, subnet, Observer(quantize=False), weights=unquantized)
            log_shares = logits.log_softmax(dim=1)
            label = torch.multinomial(log_shares.detach().exp().cpu(), 1, generator=generator)
            gradients = torch.autograd.grad(log_shares[0, int(label)], [linear.weight for linear in linears])
            gradient = dict(zip(linears, gradients, strict=True))
            products = {linear: gradient[linear] * linear.weight.detach() for linear in linears}
            for linear in linears:
                scores.low[linear] += (gradient[linear] * errors[linear]).sum(dim=1).square()
                scores.removed[linear] += products[linear].sum(dim=0).square()
            scores.channels += torch.stack([products[linear].sum(dim=1) for linear in writers]).sum(dim=0).square()
    return scores


def _low_error(linear: ElasticLinear) -> Tensor:
    """What low precision takes away from each weight, (rows, inputs)."""
    weight = linear.weight.detach()
    _, scale = linear.scales()
    return weight - quantize(weight, scale[:, None], float(qmax(linear.low_bits))).mul_(scale[:, None])


def _apply(model: SupernetViT, scores: _Scores, *, keep_subnets: bool) -> None:
    space = model.space
    blocks = list(_blocks(model))

    def order(low: Tensor, removed: Tensor, sizes: Iterable[int]) -> Tensor:
        return importance_order(low, -torch.arange(len(low)) if keep_subnets else removed, sizes)

    written = [scores.low[linear] for block in blocks for linear in (_attention(block).proj, block.mlp.fc2)]
    channels = order(torch.stack(written).sum(dim=0), scores.channels, space.embed_dim)
    _permute_channels(model, channels)
    hidden_sizes = {int(hidden_units(ratio, width)) for ratio in space.mlp_ratio for width in space.embed_dim}
    for block in blocks:
        fc1, fc2 = block.mlp.fc1, block.mlp.fc2
        hidden = order(scores.low[fc1], scores.removed[fc2], hidden_sizes)
        _permute(fc1, rows=hidden)
        _permute(fc2, inputs=hidden)
        _reorder_heads(_attention(block), scores, space, keep_subnets=keep_subnets)


def _reorder_heads(attention: ElasticAttention, scores: _Scores, space: SearchSpace, *, keep_subnets: bool) -> None:
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
    for block in _blocks(model):
        attention, mlp = _attention(block), block.mlp
        _permute(attention.qkv, inputs=order)
        _permute(attention.proj, rows=order)
        _permute(mlp.fc1, inputs=order)
        _permute(mlp.fc2, rows=order)
        vectors += [*_norm(block.norm1), *_norm(block.norm2)]
        vectors += [scale for scale in (block.scale1, block.scale2) if scale is not None]
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


def _attention(block: ElasticBlock) -> ElasticAttention:
    return cast(ElasticAttention, block.mixers["attention"])


def _linears(block: ElasticBlock) -> tuple[ElasticLinear, ...]:
    attention = _attention(block)
    return attention.qkv, attention.proj, block.mlp.fc1, block.mlp.fc2


def _blocks(model: SupernetViT) -> Iterable[ElasticBlock]:
    return cast(Iterable[ElasticBlock], model.blocks)
