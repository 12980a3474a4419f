"""Several exported subnets of one supernet on one set of weights, so that another one is there without any copy.

A row has the same codes in every subnet that has it at the same precision: entanglement, see `supernet.quantize`. So
each linear is stored twice, its rows at high and its rows at low precision, both as large as the largest subnet needs,
and a subnet holds slices of the two. Codes stay int8: a forward pass multiplies them by their scales into a weight of
floats, as `QuantLinear` does. What follows is the forward pass of `SubnetViT` itself on the same values in the same
layout, so logits are equal bit for bit.

Scales and biases of rows lie beside the codes. Norms, embeddings and activation scales are those of the largest
subnet, or slices of them. Of all these a subnet keeps its own where they differ; codes must not differ.

Shapes: G groups of rows (see `LinearPlan`), R rows of a group, K inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from hwmodel.errors import UsageError
from quasar.export.bundle import Bundle
from supernet.functional import Linear
from supernet.plan import LinearPlan
from supernet.standalone import QuantLinear, SubnetViT


class Rows(nn.Module):
    """Rows of a linear at one precision: codes (G, R, K), and scales and biases (G, R)."""

    codes: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, *, codes: Tensor, scale: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)


class StoredLinear(nn.Module):
    """Takes the place of a `QuantLinear`: the first rows of each group at high precision, the others at low."""

    def __init__(self, plan: LinearPlan, parts: Iterable[Rows]) -> None:
        super().__init__()
        self.plan = plan
        self.parts = nn.ModuleList(parts)

    def active(self) -> Linear:
        """The effective weight and bias, as `QuantLinear.active` gives them."""
        weight_GRK = self._joined("codes").mul_(self._joined("scale")[..., None])
        return Linear(weight_GRK.view(self.plan.rows, self.plan.inputs), self._joined("bias").view(-1))

    def _joined(self, name: str) -> Tensor:
        """The rows of both precisions in their order, as floats in fresh memory."""
        parts = [cast(Tensor, getattr(part, name)) for part in self.parts]
        joined = torch.empty(parts[0].shape[0], self.plan.group, *parts[0].shape[2:])
        return torch.cat(parts, dim=1, out=joined)


class DifferentWeightsError(Exception):
    """Subnet number `giver` has other codes in the same place."""

    def __init__(self, giver: int) -> None:
        super().__init__()
        self.giver = giver


class _Precision:
    """The rows of a linear at one precision, from row `first` of each group on, as far as some subnet has them."""

    def __init__(self, spans: Sequence[slice], *, groups: int, inputs: int) -> None:
        self.first = min(span.start for span in spans)
        shape = groups, max(span.stop for span in spans) - self.first
        self.rows = Rows(
            codes=torch.zeros(*shape, inputs, dtype=torch.int8), scale=torch.zeros(shape), bias=torch.zeros(shape)
        )
        self._giver_GRK = torch.full((*shape, inputs), -1, dtype=torch.int16)

    def take(self, span: slice, own: Rows, subnet: int) -> Rows:
        """Stores the rows `own` of a subnet, which are the span of each group, and gives what it holds of the store.

        Raises:
            DifferentWeightsError: the store has other codes.
        """
        groups, _, inputs = own.codes.shape
        place = slice(groups), slice(span.start - self.first, span.stop - self.first)
        giver_GRK = self._giver_GRK[place][..., :inputs]
        codes_GRK = self.rows.codes[place][..., :inputs]
        different = (codes_GRK != own.codes) & (giver_GRK >= 0)
        if bool(different.any()):
            raise DifferentWeightsError(int(giver_GRK[different][0]))
        codes_GRK.copy_(own.codes)
        known_GR = giver_GRK[..., 0] >= 0
        scale_GR, bias_GR = (
            _stored(values[place], known_GR, given)
            for values, given in ((self.rows.scale, own.scale), (self.rows.bias, own.bias))
        )
        giver_GRK.masked_fill_(giver_GRK < 0, subnet)
        return Rows(codes=codes_GRK, scale=scale_GR, bias=bias_GR)


def _stored(values: Tensor, known: Tensor, given: Tensor) -> Tensor:
    """`values` with what is given; a copy of what is given where other values are known."""
    if bool(((values != given) & known).any()):
        return given.clone()
    return values.copy_(given)


class _LinearStore:
    """One linear at both precisions, for all subnets that have it."""

    def __init__(self, plans: Sequence[LinearPlan]) -> None:
        groups, inputs = max(plan.rows // plan.group for plan in plans), max(plan.inputs for plan in plans)
        used = ([span for span in spans if span.start < span.stop] for spans in zip(*map(_spans, plans), strict=True))
        self._precisions = [_Precision(spans, groups=groups, inputs=inputs) if spans else None for spans in used]

    def take(self, linear: QuantLinear, subnet: int) -> StoredLinear:
        """Stores the rows of a subnet, and gives the linear that reads them there; see `_Precision.take`."""
        plan = linear.plan
        shape = plan.rows // plan.group, plan.group
        codes_GRK, scale_GR, bias_GR = linear.codes.view(*shape, -1), linear.scale.view(shape), linear.bias.view(shape)
        parts = []
        for precision, span in zip(self._precisions, _spans(plan), strict=True):
            if precision is not None and span.start < span.stop:
                own = Rows(codes=codes_GRK[:, span], scale=scale_GR[:, span], bias=bias_GR[:, span])
                parts.append(precision.take(span, own, subnet))
        return StoredLinear(plan, parts)


def _spans(plan: LinearPlan) -> tuple[slice, slice]:
    """The rows of each group at high and at low precision."""
    return slice(0, plan.high), slice(plan.high, plan.group)


@torch.no_grad()
def share(bundles: Sequence[Bundle]) -> list[SubnetViT]:
    """The networks of bundles, in their order, with all weights in one store; on the CPU.

    Takes the memory of the store, of a mask twice as large while it is filled, and of one bundle's own network.

    Raises:
        UsageError: two bundles have other codes in the same row at the same precision; the message names them.
        DamagedInputError: a bundle cannot be read.
    """
    plans: dict[str, list[LinearPlan]] = {}
    for bundle in bundles:
        with torch.device("meta"):
            empty = SubnetViT(bundle.config.subnet, layer_scale=bundle.config.layer_scale)
        for name, linear in _linears(empty):
            plans.setdefault(name, []).append(linear.plan)
    stores = {name: _LinearStore(of_all) for name, of_all in plans.items()}
    vectors: dict[str, list[Tensor]] = {}
    modules: dict[int, SubnetViT] = {}
    # The largest first, so that what the others have of its norms and embeddings are slices.
    for index in sorted(range(len(bundles)), key=lambda i: -bundles[i].config.subnet.embed_dim):
        module = bundles[index].module()
        for name, linear in _linears(module):
            try:
                _replace(module, name, stores[name].take(linear, index))
            except DifferentWeightsError as different:
                raise UsageError(_refusal(bundles[different.giver], bundles[index], name)) from None
        for name, buffer in list(module.named_buffers()):
            path, _, leaf = name.rpartition(".")
            owner = module.get_submodule(path)
            if not isinstance(owner, Rows):
                setattr(owner, leaf, _shared(vectors.setdefault(name, []), buffer))
        modules[index] = module
    return [modules[index] for index in range(len(bundles))]


def _linears(module: SubnetViT) -> list[tuple[str, QuantLinear]]:
    return [(name, child) for name, child in module.named_modules() if isinstance(child, QuantLinear)]


def _replace(module: nn.Module, name: str, child: nn.Module) -> None:
    path, _, leaf = name.rpartition(".")
    module.get_submodule(path).register_module(leaf, child)


def _shared(held: list[Tensor], tensor: Tensor) -> Tensor:
    """A slice of a tensor that is held, if it has the same values; else the tensor itself, which is held from now."""
    for other in held:
        if other.dim() == tensor.dim():
            view = other[tuple(slice(size) for size in tensor.shape)]
            if torch.equal(view, tensor):
                return view
    held.append(tensor)
    return tensor


def _refusal(first: Bundle, second: Bundle, linear: str) -> str:
    if first.manifest.checkpoint_digest != second.manifest.checkpoint_digest:
        reason = "they are of different supernets; give bundles of one run"
    else:
        reason = (
            "one of them was trained further by itself, or its supernet was trained on in between; give bundles of one "
            "export without fine-tuning, or this one alone"
        )
    return f"{second.folder} and {first.folder} do not share one store: rows of {linear} differ; {reason}"


def tensor_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of all that networks hold, whatever they share counted once."""
    storages = {
        buffer.untyped_storage().data_ptr(): buffer.untyped_storage().nbytes()
        for module in modules
        for buffer in module.buffers()
    }
    return sum(storages.values())
