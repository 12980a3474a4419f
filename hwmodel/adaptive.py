"""The cost of networks each of which gets the best accelerator for itself: hardware and network chosen together.

For one network "best" is what `hwmodel.explore` says: of all designs that fit the device, the one with the fewest
cycles, then with the fewest DSPs, then with the fewest block RAMs, its buffers sized for the network. A grid has ten
thousand designs, but of those only a few dozen are best for any network of a search space. The model is given such a
shortlist; over it, the best design of each of thousands of networks is a minimum over columns of a table, because
cycles are sums of one number for each part of a network. Costs are exact if no design outside the shortlist is ever
better (`search.shortlist` proves that for its shortlists); `accelerator_for` looks at the whole grid anyway.

What fits depends on the network's size: block RAM and LUT grow with its tokens and its bytes of activations. Networks
have few different sizes, and the designs that hold each of them are worked out when it first occurs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from hwmodel.accelerator import AcceleratorColumns, AcceleratorConfig
from hwmodel.cost import CHUNK, BoolArray, FpgaCostBatch, FpgaCostEstimate, FpgaCostModel
from hwmodel.device import Device
from hwmodel.errors import InfeasibleError
from hwmodel.explore import fullness, resized
from hwmodel.resources import total
from hwmodel.workload import IntArray, Population, Workload

#: the key of a design that does not hold a network, above all others
_NEVER = np.iinfo(np.int64).max


class AdaptiveCostModel:
    """See `hwmodel.cost.CostModel`; every network has an accelerator of its own.

    Args:
        device: the device, with its own limits.
        limited: the device with the limits that accelerators must keep to.
        shortlist: the designs to choose from, in the order of the grid, sized for the largest networks.
        grid_size: the number of designs that the shortlist stands for.
        best: the best of all designs for one network; raises `InfeasibleError` if none holds it.
    """

    def __init__(
        self,
        device: Device,
        *,
        limited: Device,
        shortlist: Sequence[AcceleratorConfig],
        grid_size: int,
        best: Callable[[Workload], AcceleratorConfig],
    ) -> None:
        self.device = device
        self.limited = limited
        self.shortlist = tuple(shortlist)
        self.grid_size = grid_size
        self._best = best

    @cached_property
    def designs(self) -> tuple[FpgaCostModel, ...]:
        """A model for each design of the shortlist."""
        return tuple(FpgaCostModel(self.device, design) for design in self.shortlist)

    def holding_all(self) -> tuple[FpgaCostModel, ...]:
        """Those of the designs that hold the largest networks, and so all; raises `InfeasibleError` if none does."""
        full = fullness(AcceleratorColumns.of(self.shortlist), self.limited)
        holds = np.broadcast_to(full, (len(self.shortlist), 1))[:, 0] <= 1
        if not holds.any():
            raise InfeasibleError(
                f"no accelerator on {self.device.name} holds the largest subnets, so none can be shared by all; give "
                "the space smaller choices, or use hardware.accelerator=per_subnet"
            )
        return tuple(self.designs[i] for i in np.flatnonzero(holds))

    def accelerator_for(self, workload: Workload) -> AcceleratorConfig:
        """The best accelerator of the whole grid; raises `InfeasibleError` if none holds the network."""
        return self._best(workload)

    def table(self, population: Population) -> AdaptiveCostTable:
        """The costs of parts on every design; raises `UsageError` for bits or operations that they lack."""
        return AdaptiveCostTable(self, population)

    def estimate_many(self, population: Population) -> FpgaCostBatch:
        """The costs of N networks; same errors."""
        return self.table(population).costs(population.parts)

    def estimate(self, workload: Workload) -> FpgaCostEstimate:
        """The cost of one network on its best accelerator; same errors as `accelerator_for`."""
        return FpgaCostModel(self.device, self.accelerator_for(workload)).estimate(workload)


class AdaptiveCostTable:
    """What the parts of a population cost on each of the K designs of a shortlist."""

    def __init__(self, model: AdaptiveCostModel, population: Population) -> None:
        self._model = model
        self._tables = [design.table(population) for design in model.designs]
        self._cycles = np.stack([table.part_cycles for table in self._tables], axis=1)  # (U, K)
        # The size of a network is the largest of its parts', so positions among the sorted values serve as well.
        self._tokens, self._token_places = np.unique(population.part_tokens(), return_inverse=True)
        self._bytes, self._byte_places = np.unique(population.part_activation_bytes, return_inverse=True)
        self._holding: dict[int, IntArray] = {}

    def costs(self, parts: IntArray, *, energy: bool = True) -> FpgaCostBatch:
        """See `CostTable`; networks that no design holds have the figures of the design with the fewest cycles."""
        chosen, fits = self.choose(parts)
        fits &= ~self._tables[0].part_too_wide[parts].any(axis=1)
        cycles = np.zeros(len(parts), dtype=np.int64)
        latency_ms, energy_mj = np.zeros(len(parts)), np.zeros(len(parts))
        for design in np.unique(chosen):
            here = chosen == design
            batch = self._tables[design].costs(parts[here], energy=energy)
            cycles[here], latency_ms[here], energy_mj[here] = batch.cycles, batch.latency_ms, batch.energy_mj
        return FpgaCostBatch(cycles=cycles, latency_ms=latency_ms, energy_mj=energy_mj, fits=fits)

    def choose(self, parts: IntArray) -> tuple[IntArray, BoolArray]:
        """The position in the shortlist of each network's design, and whether that holds it; both (N,)."""
        step = max(1, CHUNK // (parts.shape[1] * self._cycles.shape[1]))
        found = [self._choose(parts[start : start + step]) for start in range(0, len(parts), step)]
        if not found:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_)
        return np.concatenate([chosen for chosen, _ in found]), np.concatenate([fits for _, fits in found])

    def _choose(self, parts: IntArray) -> tuple[IntArray, BoolArray]:
        cycles = self._cycles.take(parts, axis=0).sum(axis=1)
        sizes = self._token_places.take(parts).max(axis=1) * len(self._bytes)
        sizes += self._byte_places.take(parts).max(axis=1)
        different, size = np.unique(sizes, return_inverse=True)
        ranks = np.stack([self._ranks(code) for code in different.tolist()])[size]  # (N, K)
        designs = cycles.shape[1]
        key = np.where(ranks < 0, _NEVER, cycles * designs + ranks)
        chosen = key.argmin(axis=1)
        fits = ranks[np.arange(len(parts)), chosen] >= 0
        return np.where(fits, chosen, cycles.argmin(axis=1)), fits

    def _ranks(self, code: int) -> IntArray:
        """The place of each design among those with equal cycles, (K,); -1 if it holds no network of this size."""
        if code not in self._holding:
            model = self._model
            token_place, byte_place = divmod(code, len(self._bytes))
            columns = resized(
                AcceleratorColumns.of(model.shortlist),
                tokens=int(self._tokens[token_place]),
                activation_bytes=int(self._bytes[byte_place]),
            )
            sums = total(columns)
            figures = (sums.bram18, sums.dsp, fullness(columns, model.limited))
            bram18, dsp, full = (np.broadcast_to(figure, (len(model.shortlist), 1))[:, 0] for figure in figures)
            ranks = np.lexsort((bram18, dsp)).argsort()
            ranks[full > 1] = -1
            self._holding[code] = ranks
        return self._holding[code]
