"""What can be left out of a version next, and in which order it is best left out.

A sequence is greedy: it takes the move with the least divergence for the latency, or for the energy, that it saves,

    (KL(whole || after) - KL(whole || before)) / (latency before - latency after),

again and again. What a move adds to the divergence hardly ever falls when more is left out, so earlier figures are
hopeful, and only the most hopeful moves are measured anew at a step (lazy evaluation: Minoux, "Accelerated greedy
algorithms", 1978): until the best of them is a fresh one, and `LOOKS` at most.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from hwmodel.cost import CostEstimate
from quasar.resilience.measure import Measurer
from supernet.config import Progress
from supernet.prune import Kept, Version
from supernet.subnet import LINEARS

#: what a sequence is to save
By = Literal["latency", "energy"]
#: what can be left out; "rows" go from high to low precision
KINDS = ("blocks", "heads", "units", "rows")
#: moves that are measured at a step of a sequence; all, where only blocks go
LOOKS = 3
#: the shares of its hidden units that a block may keep
_UNIT_SHARES = (0.75, 0.5, 0.25)


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """One thing that is left out of one block.

    Attributes:
        kind: one of `KINDS`.
        part: the head, the number of units that stay, or the linear; empty for a block.
        kept: the block after it; None if it is gone.
    """

    kind: str
    block: int
    part: str
    kept: Kept | None

    @property
    def place(self) -> tuple[str, int, str]:
        """Where it acts: its figures are those of the next move there, until that is measured."""
        return self.kind, self.block, self.part if self.kind == "rows" else ""

    def __str__(self) -> str:
        return {
            "blocks": f"block {self.block}",
            "heads": f"head {self.part} of block {self.block}",
            "units": f"units of block {self.block} but {self.part}",
            "rows": f"{self.part} of block {self.block} at low precision",
        }[self.kind]

    def of(self, version: Version) -> Version:
        """What it makes of a version."""
        changed = (self.kept if kept.block == self.block else kept for kept in version)
        return tuple(kept for kept in changed if kept is not None)


def next_moves(measurer: Measurer, version: Version, kinds: Collection[str]) -> list[Move]:
    """What can be left out of a version next: of heads and units, the least important."""
    found = []
    for kept in version:
        block, importance = kept.block, measurer.importance[kept.block]
        if "blocks" in kinds and len(version) > 1:
            found.append(Move(kind="blocks", block=block, part="", kept=None))
        if "heads" in kinds and len(kept.heads) > 1:
            found.append(without_head(kept, min(kept.heads, key=lambda head: float(importance.heads[head]))))
        if "units" in kinds:
            levels = unit_levels(len(importance.units))
            found += [_with_units(kept, units) for units in levels if units < kept.units][:1]
        if "rows" in kinds:
            found += rows_to_low(measurer, kept)
    return found


def all_single_moves(measurer: Measurer, kinds: Collection[str]) -> list[Move]:
    """Each single thing that can be left out of the whole network: any head, and units down to each level."""
    version = measurer.base
    found = next_moves(measurer, version, set(kinds) & {"blocks", "rows"})
    for kept in version:
        if "heads" in kinds and len(kept.heads) > 1:
            found += [without_head(kept, head) for head in kept.heads]
        if "units" in kinds:
            found += [_with_units(kept, units) for units in unit_levels(kept.units)]
    return sorted(found, key=lambda move: KINDS.index(move.kind))


def unit_levels(units: int) -> list[int]:
    """The numbers of units that a block may keep, fewer than all, the most first."""
    return sorted({max(1, round(share * units)) for share in _UNIT_SHARES} - {units}, reverse=True)


def without_head(kept: Kept, head: int) -> Move:
    """Leaves out one head."""
    heads = tuple(index for index in kept.heads if index != head)
    return Move(kind="heads", block=kept.block, part=str(head), kept=replace(kept, heads=heads))


def _with_units(kept: Kept, units: int) -> Move:
    return Move(kind="units", block=kept.block, part=str(units), kept=replace(kept, units=units))


def rows_to_low(measurer: Measurer, kept: Kept) -> list[Move]:
    """Lowers the rows of one linear, for each that has rows at high precision."""
    ratios = measurer.subnet.blocks[kept.block].high_precision_ratios
    return [
        Move(
            kind="rows",
            block=kept.block,
            part=linear,
            kept=replace(kept, low=tuple(name for name in LINEARS if name in (*kept.low, linear))),
        )
        for linear, ratio in zip(LINEARS, ratios, strict=True)
        if ratio > 0 and linear not in kept.low
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A version on a sequence, what was left out last (None for the whole network), and what it costs of `by`."""

    version: Version
    move: Move | None
    cost: float
    kl: float


def sequence(measurer: Measurer, kinds: Collection[str], *, by: By, until: float, progress: Progress) -> Iterator[Step]:
    """Versions with more and more left out, down to the share `until` of the whole network's latency or energy.

    Ends before that where nothing is left that would save any. Energy must be known.
    """
    version, kl = measurer.base, 0.0
    whole = cost = amount(measurer.cost(version), by)
    added: dict[tuple[str, int, str], float] = {}
    for move in next_moves(measurer, version, kinds):
        added[move.place] = measurer.divergence(move.of(version))
    yield Step(version=version, move=None, cost=cost, kl=kl)
    while cost > until * whole:
        saved: dict[Move, float] = {}
        for move in next_moves(measurer, version, kinds):
            gain = cost - amount(measurer.cost(move.of(version)), by)
            if gain > 0:
                saved[move] = gain
        if not saved:
            return
        measurer.follow(version)
        chosen = _cheapest(measurer, version, kl, saved, added, looks=None if set(kinds) == {"blocks"} else LOOKS)
        version = chosen.of(version)
        cost, kl = cost - saved[chosen], measurer.divergence(version)
        done = min(1.0, (1 - cost / whole) / (1 - until))
        progress(round(100 * done), 100, f"{cost / whole:.0%} of the {by}, divergence {kl:.3g}")
        yield Step(version=version, move=chosen, cost=cost, kl=kl)


def amount(cost: CostEstimate, by: By) -> float:
    """The latency in ms, or the energy in mJ, which must be known."""
    if by == "latency":
        return cost.latency_ms
    assert cost.energy_mj is not None  # `quasar.resilience.study` sees to that
    return cost.energy_mj


def _cheapest(
    measurer: Measurer,
    version: Version,
    kl: float,
    saved: dict[Move, float],
    added: dict[tuple[str, int, str], float],
    *,
    looks: int | None,
) -> Move:
    """The move that adds the least divergence for what it saves; updates what is known of each place."""

    def price(move: Move) -> float:
        return added[move.place] / saved[move]

    fresh: set[Move] = set()
    while True:
        best = min(saved, key=price)
        if best in fresh or (looks is not None and len(fresh) == looks):
            return min(fresh, key=price)
        added[best.place] = measurer.divergence(best.of(version)) - kl
        fresh.add(best)
        if looks is None:  # all moves are measured before one is chosen
            for move in saved:
                added[move.place] = measurer.divergence(move.of(version)) - kl
            return min(saved, key=price)
