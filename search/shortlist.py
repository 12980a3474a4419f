"""The designs that can be best for some subnet of a space, out of all of a grid, with proof.

A design is left out if another one beats it for EVERY subnet: it holds every subnet that the first one holds, and its
cycles are fewer, or equal with fewer DSPs or block RAMs. No enumeration is needed for that: the difference of two
designs' cycles adds up over the parts of a subnet, so its minimum over the space consists of the least differences of
the halves (`search.parts`), for each image size and width and the smallest and the largest depth:

    least difference = stem + head + depth * (least mixer half + least MLP half)

and in a space that pools, likewise for the blocks between two poolings.

So a minimum over the shortlist is the minimum over the grid, for every subnet. It also has the one design that is best
for any set of subnets together: for one that was left out, another one in the list is at least as fast for all of them.

The largest size of a space decides the buffers of the designs in the list; which of them hold a smaller subnet is
looked up by size (`hwmodel.adaptive`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.adaptive import AdaptiveCostModel
from hwmodel.device import Device
from hwmodel.explore import best_accelerator, fullness, resized, sized_grid
from hwmodel.resources import total
from hwmodel.workload import IntArray, Workload
from search.config import HardwareConfig
from search.parts import SpaceParts
from supernet.lowering import lower
from supernet.space import SearchSpace

#: about so many cycles (designs times parts) are compared together
_CHUNK = 2**21


def adaptive_model(
    space: SearchSpace, hardware: HardwareConfig, device: Device, *, limited: Device
) -> AdaptiveCostModel:
    """The cost model that gives every subnet of `space` its own best accelerator, as far as `hardware` leaves it open.

    Args:
        limited: `device` with the limits that accelerators must keep to.

    Raises:
        UsageError: an unknown backend, or an impossible clock.
        InfeasibleError: not even the smallest subnet has an accelerator that fits.
    """
    knobs: dict[str, Any] = {"backend": hardware.backend, "array": hardware.array, "activations": hardware.activations}
    clock_mhz = device.clock_mhz if hardware.clock_mhz is None else hardware.clock_mhz
    # says what is wrong with the settings, or by how much nothing fits
    best_accelerator([lower(space.smallest())], limited, clock_mhz=clock_mhz, **knobs)
    parts = SpaceParts.of(space)
    sizes = _sizes(parts)
    tokens, activation_bytes = sizes.max(axis=0).tolist()
    grid = sized_grid(limited, tokens=tokens, activation_bytes=activation_bytes, clock_mhz=clock_mhz, **knobs)
    columns = grid.columns()
    of_size = [resized(columns, tokens=size[0], activation_bytes=size[1]) for size in sizes.tolist()]
    bram18 = np.stack([grid.flat(total(columns).bram18) for columns in of_size], axis=1)
    holds = np.stack([grid.flat(fullness(columns, limited)) <= 1 for columns in of_size], axis=1)
    dsp = grid.flat(total(columns).dsp)
    halves = _Halves.of(parts)
    kept: _Designs | None = None
    start = 0
    for cycles in grid.part_cycles(parts.population, together=_CHUNK):
        index = start + np.flatnonzero(holds[start : start + len(cycles)].any(axis=1))
        found = _Designs(
            index=index,
            dsp=dsp[index],
            bram18=bram18[index],
            holds=holds[index],
            cycles=cycles[index - start][:, halves.order],
        )
        kept = halves.unbeaten(found if kept is None else kept.and_(found))
        start += len(cycles)
    assert kept is not None
    shortlist = [grid.config(index) for index in sorted(kept.index.tolist())]
    return AdaptiveCostModel(
        device,
        limited=limited,
        shortlist=shortlist,
        grid_size=grid.size,
        best=partial(_best, device=limited, clock_mhz=clock_mhz, **knobs),
    )


def _best(workload: Workload, **settings: Any) -> AcceleratorConfig:
    return best_accelerator([workload], **settings)


def _sizes(parts: SpaceParts) -> IntArray:
    """Tokens and bytes of activations of all subnets, and of some that do not exist, without repetition; (A, 2)."""
    figures = (parts.population.part_tokens(), parts.population.part_activation_bytes)
    found = []
    for runs in _runs(parts):
        # A network is as large as its largest part, and has one of each kind.
        values = []
        for figure in figures:
            different = np.unique(figure[np.concatenate(runs)])
            values.append(different[different >= max(figure[run].min() for run in runs)].tolist())
        found += list(product(*values))
    return np.unique(np.array(found, dtype=np.int64), axis=0)


def _runs(parts: SpaceParts) -> list[list[IntArray]]:
    """For each size the parts of which a subnet has one: stem, head, what pools, then mixer halves, then MLP halves.

    The last three are runs for each of the K blocks of `SpaceParts`; part 0, without layers, where nothing is pooled.
    """
    places = range(parts.pools.shape[1])
    return [
        [
            parts.stems[z, None],
            parts.heads[z, None],
            *(table[z, k] for table in (parts.pools[..., None], parts.mixers, parts.mlps) for k in places),
        ]
        for z in range(len(parts.stems))
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Designs:
    """D designs: position in the grid, DSPs, block RAMs and whether they hold networks of A sizes, cycles of parts."""

    index: IntArray  # (D,)
    dsp: IntArray  # (D,)
    bram18: IntArray  # (D, A)
    holds: NDArray[np.bool_]  # (D, A)
    cycles: IntArray  # (D, U)

    def some(self, chosen: Any) -> _Designs:
        return _Designs(
            index=self.index[chosen],
            dsp=self.dsp[chosen],
            bram18=self.bram18[chosen],
            holds=self.holds[chosen],
            cycles=self.cycles[chosen],
        )

    def and_(self, others: _Designs) -> _Designs:
        return _Designs(
            index=np.concatenate([self.index, others.index]),
            dsp=np.concatenate([self.dsp, others.dsp]),
            bram18=np.concatenate([self.bram18, others.bram18]),
            holds=np.concatenate([self.holds, others.holds]),
            cycles=np.concatenate([self.cycles, others.cycles]),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Halves:
    """Where the parts of each size stand among the columns of a table of cycles.

    `order` puts the parts in the order of `_runs`, for one size after the other; `starts` are the beginnings of these
    runs and the end of the last one. `repeats` says how often a subnet of the smallest and one of the largest depth has
    a part of each run.
    """

    order: IntArray  # (U',)
    starts: tuple[int, ...]  # Z * (2 + 3 * K) + 1
    repeats: tuple[IntArray, IntArray]  # (2 + 3 * K,) each

    @staticmethod
    def of(parts: SpaceParts) -> _Halves:
        runs = [run for of_size in _runs(parts) for run in of_size]
        once = np.ones(2 + parts.pools.shape[1], dtype=np.int64)  # stem, head and what pools
        shallow, deep = (parts.repeats(parts.space.depth[end]) for end in (0, -1))
        return _Halves(
            order=np.concatenate(runs),
            starts=(0, *np.cumsum([len(run) for run in runs]).tolist()),
            repeats=(np.concatenate([once, shallow, shallow]), np.concatenate([once, deep, deep])),
        )

    def of_subnets(self, figures: IntArray, reduce: Callable[..., NDArray[Any]]) -> NDArray[Any]:
        """Sums over the parts of the subnets that halves chosen by `reduce` make up: figures (D, U') to (2 * Z, D)."""
        runs = np.stack([reduce(figures[:, start:end], axis=1) for start, end in pairwise(self.starts)])
        kinds = len(self.repeats[0])
        of_size = runs.reshape(len(runs) // kinds, kinds, len(figures))  # (Z, 2 + 3 * K, D)
        return np.concatenate([np.einsum("zrd,r->zd", of_size, repeats) for repeats in self.repeats])

    def unbeaten(self, designs: _Designs) -> _Designs:
        """Those of the designs that no other one beats for every subnet."""
        # A design has fewer cycles in the mean over subnets than those that it beats, so it comes first.
        mean = self.of_subnets(designs.cycles, np.mean).mean(axis=0)
        order = np.lexsort((designs.dsp, mean))
        kept: list[int] = []
        while len(order):
            kept.append(int(order[0]))
            beaten = self._beaten(designs.some(order[:1]), designs.some(order[1:]))
            order = order[1:][~beaten]
        return designs.some(kept)

    def _beaten(self, by: _Designs, designs: _Designs) -> NDArray[np.bool_]:
        """Whether the one design `by` beats each of the designs, (D,)."""
        least = self.of_subnets(designs.cycles - by.cycles, np.min).min(axis=0)
        better = (by.bram18 < designs.bram18) | ((by.bram18 == designs.bram18) & (by.index < designs.index)[:, None])
        better = (by.dsp < designs.dsp) | ((by.dsp == designs.dsp) & better.all(axis=1))
        holds = (by.holds | ~designs.holds).all(axis=1)
        return np.asarray(holds & ((least > 0) | ((least == 0) & better)))
