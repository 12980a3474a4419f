"""Hidden units whose activations are many times larger than all others, made small without changing the network much.

Pretrained transformers have a few units that answer with "massive activations" to a few tokens: one unit of an ImageNet
ViT-Tiny reaches 214 where its 767 neighbours stay below 7. The range of an 8-bit site must either hold that value, and
then its step drowns the others, or clip it, and the network relies on it. Such a unit is rarely near 0: it is either
far below, where GELU gives 0, or far above, where GELU is the identity. So it can be moved and made smaller before
GELU, and larger after it:

    GELU(x)  is about  gain * GELU((x - shift) / factor) + offset

with gain and offset fitted to what was seen (see `_fit`). All of it folds into weights: 1 / factor and shift into
the unit's row and bias of fc1, gain into its column of fc2, offset into the bias of fc2.

`factor` lets the unit reach 2.5 times what all others reach, and `shift` is that of the best fit. A smaller reach makes
the unit's column larger, which costs its rows of fc2 precision; a larger one makes the activations' step larger.
Measured on that ViT-Tiny, as the Kullback-Leibler divergence from floats in nats, with all rows at 8 bits: 0.100
without this, 0.023 for a reach of 6, 0.016 for 3.5, 0.010 for 2.5; in floats, the change is 0.0001.

Left out: what 4-bit rows lose to the larger column. Measured, it is far less than they gain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor

from supernet.functional import ActivationSites, Observer
from supernet.vit import ElasticBlock, ElasticMlp, SupernetViT, unquantized

#: an outlier's largest value is at least so many times that of the unit at the 99th percentile of its block
OUTLIER = 4.0
#: what it may reach afterwards, in units of what all others reach
REACH = 2.5
#: shifts tried, as shares of the outlier's largest value
_SHIFTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)


class _Hidden(Observer):
    """Watches hidden units before GELU: the largest value of each, or all values of chosen ones."""

    def __init__(self, chosen: dict[ActivationSites, Tensor] | None = None) -> None:
        super().__init__(quantize=False)
        self.chosen = chosen
        self.largest: dict[ActivationSites, Tensor] = {}
        self.values: dict[ActivationSites, list[Tensor]] = {}

    def record(self, sites: ActivationSites, index: int, x: Tensor) -> None:
        """Notes the values at one site, if it is that before GELU."""
        if sites.names[index] != "fc1":
            return
        x_NM = x.flatten(0, 1)
        if self.chosen is None:
            largest = x_NM.amax(dim=0)
            self.largest[sites] = torch.maximum(largest, self.largest.get(sites, largest))
        elif sites in self.chosen:
            self.values.setdefault(sites, []).append(x_NM[:, self.chosen[sites]])


@torch.no_grad()
def soften_outliers(model: SupernetViT, batches: Sequence[Tensor]) -> int:
    """Makes the outliers among the hidden units smaller, in place, and gives their number.

    Args:
        batches: normalised images (B, C, H, W), on the model's device.
    """
    survey = _observe(model, batches, _Hidden())
    blocks = {block.sites: block.mlp for block in cast(Iterable[ElasticBlock], model.blocks)}
    outliers = {
        sites: (largest > OUTLIER * largest.quantile(0.99)).nonzero().flatten()
        for sites, largest in survey.largest.items()
    }
    outliers = {sites: units for sites, units in outliers.items() if len(units)}
    if not outliers:
        return 0
    seen = _observe(model, batches, _Hidden(outliers))
    for sites, units in outliers.items():
        others = survey.largest[sites].clone()
        others[units] = 0.0
        values_NU = torch.cat(seen.values[sites])
        for place, unit in enumerate(units.tolist()):
            _soften(blocks[sites], unit, values_NU[:, place], reach=REACH * others.max())
    return sum(map(len, outliers.values()))


def _observe(model: SupernetViT, batches: Iterable[Tensor], observer: _Hidden) -> _Hidden:
    for x_BCHW in batches:
        model(x_BCHW, model.space.largest(), observer, weights=unquantized)
    return observer


def _soften(mlp: ElasticMlp, unit: int, x_N: Tensor, *, reach: Tensor) -> None:
    """Rescales one unit, which has the values `x_N` before GELU, so that it gets no larger than `reach`."""
    fits = []
    for share in _SHIFTS:
        shift = share * x_N.max()
        factor = (x_N.max() - shift) / reach
        fits.append((*_fit(F.gelu((x_N - shift) / factor), F.gelu(x_N)), shift, factor))
    _, gain, offset, shift, factor = min(fits, key=lambda fit: float(fit[0]))
    column = mlp.fc2.weight[:, unit].clone()
    mlp.fc1.weight[unit] /= factor
    mlp.fc1.bias[unit] = (mlp.fc1.bias[unit] - shift) / factor
    mlp.fc2.weight[:, unit] = gain * column
    mlp.fc2.bias.add_(offset * column)


def _fit(x_N: Tensor, y_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The least weighted mean squared error of `gain * x + offset` from y, and that gain and offset.

    Weights are 1 / (1 + y^2): errors count relative to large values, which are few tokens', and absolutely where the
    unit is off, which is at all others.
    """
    weight_N = 1 / (1 + y_N.square())
    weight_N = weight_N / weight_N.sum()
    x_mean, y_mean = (weight_N * x_N).sum(), (weight_N * y_N).sum()
    gain = (weight_N * (x_N - x_mean) * (y_N - y_mean)).sum() / (weight_N * (x_N - x_mean).square()).sum()
    offset = y_mean - gain * x_mean
    return (weight_N * (gain * x_N + offset - y_N).square()).sum(), gain, offset
