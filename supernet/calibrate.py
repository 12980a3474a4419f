"""Static activation ranges from images: which range each site shall have, without any training.

A pass over some images in floats (nothing is rounded) fills a histogram for each activation site, and an estimator
chooses a range from it:

* `full_range`: from the smallest to the largest value seen.
* `percentile_range`: leaves out one value in 10,000 at each end.
* `least_error_range`: the share of the full range with the least mean squared error after quantization, or after
  what reads the site (`before_gelu_range`).

A histogram has a bin for each bfloat16 number, so one pass is enough whatever the range turns out to be; a bin is 2^-8
of its value wide, as fine as an 8-bit code near the end of the range and finer below.

Also here: clip factors of low-precision rows that weigh each input by its second moment (`calibrate` on a supernet),
and `recalibrate` for an extracted subnet, which sees other ranges than the supernet's largest.

Left out: errors that quantized inputs add to later sites, and what a site's error does to the loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor

from supernet.functional import ActivationSites, Observer
from supernet.operators.registry import operator
from supernet.plan import LinearPlan, head_plan, mlp_plan, patch_plan, pool_plan
from supernet.quantize import round_bias, search_clip
from supernet.standalone import QuantLinear, SubnetBlock, SubnetPool, SubnetViT
from supernet.subnet import Subnet
from supernet.vit import ElasticBlock, ElasticLinear, SupernetViT, unquantized

_BINS = 1 << 16

Range = tuple[Tensor, Tensor]


class Histogram:
    """Counts of the values seen at one site, in a bin for each bfloat16 number."""

    def __init__(self, device: torch.device) -> None:
        self._counts = torch.zeros(_BINS, dtype=torch.int64, device=device)

    def add(self, x: Tensor) -> None:
        """Counts the values of `x`, of any shape."""
        bins = x.detach().to(torch.bfloat16).flatten().view(torch.int16).to(torch.int32) + _BINS // 2
        self._counts += torch.bincount(bins, minlength=_BINS)

    def values(self) -> tuple[Tensor, Tensor]:
        """The N different values seen in ascending order, and how often each was, both (N,)."""
        codes = torch.arange(-_BINS // 2, _BINS // 2, device=self._counts.device).to(torch.int16)
        seen = self._counts > 0
        values, order = codes.view(torch.bfloat16)[seen].float().sort()
        return values, self._counts[seen][order]


#: the range (smallest, largest) for values (N,) in ascending order, their counts (N,), and whether the site is
#: asymmetric
Estimator = Callable[[Tensor, Tensor, bool], Range]


def full_range(values: Tensor, counts: Tensor, asymmetric: bool) -> Range:
    """From the smallest to the largest value."""
    return values[0], values[-1]


def percentile_range(values: Tensor, counts: Tensor, asymmetric: bool, *, share: float = 1e-4) -> Range:
    """Without the outermost `share` of the values at each end."""
    rank = counts.cumsum(0).double() / counts.sum()
    return values[(rank > share).nonzero()[0, 0]], values[(rank >= 1 - share).nonzero()[0, 0]]


def least_error_range(
    values: Tensor, counts: Tensor, asymmetric: bool, *, read_by: Callable[[Tensor], Tensor] = torch.Tensor.clone
) -> Range:
    """The share of the full range with the least mean squared error of quantized values.

    At asymmetric sites only the upper end moves: the lower one is GELU's minimum, which is frequent.

    Args:
        read_by: the function behind the site, after which errors count.
    """
    site = ActivationSites(("x",), bits=8, asymmetric=("x",) if asymmetric else ()).to(values.device)
    quantize = site.quantizer(None)
    candidates = [
        (values[0] if asymmetric else values[0] * share, values[-1] * share)
        for share in torch.linspace(1.0, 0.1, 46, device=values.device)
    ]
    errors = []
    for smallest, largest in candidates:
        site.move_range(0, smallest, largest)
        difference = read_by(quantize("x", values)) - read_by(values)
        errors.append((difference.double().square() * counts).sum())
    return candidates[int(torch.stack(errors).argmin())]


#: before GELU it costs nothing to clip what is far below 0
before_gelu_range = partial(least_error_range, read_by=F.gelu)

#: how the range of a site is chosen, by its name; `full_range` for all others. Measured on an ImageNet ViT-Tiny: after
#: a norm the largest values are few, in channels that the next linear relies on, and must not be clipped.
ESTIMATORS: Mapping[str, Estimator] = {
    "fc1": before_gelu_range,
    **dict.fromkeys(("q", "k", "v", "mixed", "gelu"), least_error_range),
}


class CalibrationObserver(Observer):
    """Fills a histogram for each site, and sums the squares of each channel, while a model runs on floats.

    Attributes:
        histograms: by site.
        squares: sums over images and tokens by site, (D,); only of sites whose values are (B, T, D).
    """

    def __init__(self) -> None:
        super().__init__(quantize=False)
        self.histograms: dict[tuple[ActivationSites, int], Histogram] = {}
        self.squares: dict[tuple[ActivationSites, int], Tensor] = {}

    def record(self, sites: ActivationSites, index: int, x: Tensor) -> None:
        """Notes the values at one site."""
        site = (sites, index)
        if site not in self.histograms:
            self.histograms[site] = Histogram(x.device)
        self.histograms[site].add(x)
        if x.ndim == 3:
            squares = x.detach().square().sum(dim=(0, 1))
            self.squares[site] = self.squares[site] + squares if site in self.squares else squares

    def set_ranges(self, estimators: Mapping[str, Estimator] = ESTIMATORS) -> None:
        """Gives each site that was seen the range that its estimator chooses."""
        for (sites, index), histogram in self.histograms.items():
            estimate = estimators.get(sites.names[index], full_range)
            sites.move_range(index, *estimate(*histogram.values(), sites.asymmetric[index]))


@torch.no_grad()
def calibrate(
    model: SupernetViT, batches: Iterable[Tensor], *, estimators: Mapping[str, Estimator] = ESTIMATORS
) -> None:
    """Activation ranges and clip factors of a supernet, from its largest subnets in floats.

    Scales that are learned start again at what is measured here.

    Args:
        batches: normalised images (B, C, H, W), on the model's device.
    """
    observer = CalibrationObserver()
    space = model.space
    largest = [space.largest(operator=index) for index in range(len(space.operator))]
    subnets = [dataclasses.replace(subnet, pooling=pooling) for subnet in largest for pooling in space.pooling]
    for x_BCHW in batches:
        for subnet in subnets:
            model(x_BCHW, subnet, observer, weights=unquantized)
    observer.set_ranges(estimators)
    model.measure_rows()
    model.refresh_clips()
    for subnet in subnets:
        for linear, plan, sites in linears_of(model, subnet):
            site = (sites, sites.names.index(plan.site))
            if site in observer.squares:
                inputs = observer.squares[site]
                linear.clip.copy_(search_clip(linear.weight, linear.ranges(), low_bits=linear.low_bits, inputs=inputs))


@torch.no_grad()
def recalibrate(
    module: SubnetViT, batches: Iterable[Tensor], *, estimators: Mapping[str, Estimator] = ESTIMATORS
) -> None:
    """Activation ranges of an extracted subnet from training images, with its biases rounded to the new units.

    A supernet has one range for each site, which all of its subnets share; a subnet alone can have its own. Weight
    codes stay as they are.

    Args:
        batches: normalised images (B, C, H, W), on the module's device.
    """
    observer = CalibrationObserver()
    for x_BCHW in batches:
        module(x_BCHW, observer)
    observer.set_ranges(estimators)
    for group in module.modules():
        if isinstance(group, ActivationSites):
            group.take(group)  # zero points of an extracted subnet are integers
    scales = module.sites.scales()
    linears = [(module.patch_embed, scales), (module.head, scales)]
    for block in cast(Iterable[SubnetBlock], module.blocks):
        scales = block.sites.scales() | block.mixer_sites.scales()
        linears += [(cast(QuantLinear, linear), scales) for linear in (*block.mixer.values(), *block.mlp.values())]
    for pool in cast(Iterable[SubnetPool], module.pools.values()):
        linears.append((pool.merge, pool.sites.scales()))
    for linear, scales in linears:
        linear.bias.copy_(round_bias(linear.bias, linear.scale, scales[linear.plan.site]))


def linears_of(model: SupernetViT, subnet: Subnet) -> Iterator[tuple[ElasticLinear, LinearPlan, ActivationSites]]:
    """The linears of a supernet that a subnet uses, with their slices and the sites that hold the input's."""
    yield model.patch_embed, patch_plan(subnet), model.sites
    for block, choice in zip(cast(Iterable[ElasticBlock], model.blocks), subnet.blocks, strict=False):
        mixer = block.mixers[choice.operator]
        plans = operator(choice.operator).load_module().plan(subnet, choice)
        for owner, slices in ((mixer, plans), (block.mlp, mlp_plan(subnet, choice))):
            for name, plan in slices.items():
                own = cast(ActivationSites, mixer.sites)
                sites = own if plan.site in own.names else block.sites
                yield cast(ElasticLinear, owner.get_submodule(name)), plan, sites
    for place in subnet.pooling:
        pool = model.pool(place)
        yield pool.merge, pool_plan(subnet), pool.sites
    yield model.head, head_plan(subnet), model.sites
