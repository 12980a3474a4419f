"""`quasar resilience`: how accuracy falls when parts of a trained network are left out, and what that saves.

First each part alone, then greedy sequences (`quasar.resilience.moves`): of blocks, of heads, of hidden units, of rows
at low precision, and of all of these together, for latency and for energy. Rows go by energy, where that is known: on a
board those at 4 bits always save some, but not always cycles. Beside the sequences stand subnets that the supernet was
trained for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hwmodel.cost import CostEstimate
from hwmodel.files import write_atomic
from hwmodel.registry import unknown_name
from quasar.progress import stage
from quasar.resilience.measure import Accuracy, Measurer
from quasar.resilience.moves import KINDS, By, Step, all_single_moves, sequence
from quasar.resilience.opening import Study
from supernet.lowering import lower
from supernet.standalone import extract
from supernet.subnet import Subnet

#: the result of a study, in its folder
RESULT = "resilience.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Single:
    """One part left out alone: divergence from the whole network in nats, shares saved, and for blocks accuracy lost.

    `lost` and `lost_error` are shares of the images, see `quasar.resilience.measure`.
    """

    kind: str
    block: int
    what: str
    kl: float
    latency_saved: float
    energy_saved: float | None
    lost: float | None = None
    lost_error: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A measured version or path.

    Attributes:
        label: how it came about.
        left_out: what was left out since the point before it on its sequence.
        latency_share, energy_share: of those of the whole network.
        accuracy, error: top-1 as a share, and its standard error.
        lost, lost_error: accuracy below that of the whole network on the same images, and its standard error.
        kl: divergence from it on the training images, in nats; None of a path.
    """

    label: str
    left_out: tuple[str, ...]
    latency_ms: float
    latency_share: float
    energy_mj: float | None
    energy_share: float | None
    accuracy: float
    error: float
    lost: float
    lost_error: float
    kl: float | None
    subnet: dict[str, Any]


def run_study(
    study: Study, *, kinds: Sequence[str], until: float, points: int, drop: float, folder: Path
) -> dict[str, Any]:
    """Measures all that is not in the journal yet, and writes `resilience.json` and the picture into `folder`.

    Args:
        kinds: of `quasar.resilience.moves.KINDS`.
        until: share of the whole network's latency or energy at which sequences end.
        points: of a sequence whose accuracy is measured, at about equal distances in what it saves.
        drop: accuracy, as a share, for which the most that can be saved is told.

    Returns:
        The content of `resilience.json`.
    """
    measurer = study.measurer
    base = _Base(measurer)
    singles = list(_singles(measurer, base, kinds))
    sequences = {
        name: _sequence(measurer, base, name, of, by=by, until=until, points=points)
        for name, (of, by) in _plan(kinds, with_energy=base.cost.energy_mj is not None).items()
    }
    paths = list(_path_points(study, base))
    versions = [point for found in sequences.values() for point in found]
    document = study.facts | {
        "until": until,
        "whole": asdict(base.point("the whole network", measurer.subnet, base.cost, base.accuracy, kl=0.0)),
        "singles": [asdict(single) for single in singles],
        "sequences": {name: [asdict(point) for point in found] for name, found in sequences.items()},
        "paths": [asdict(point) for point in paths],
        "paths_are": study.paths_are,
        "front_latency": [asdict(point) for point in front(versions, "latency_ms")],
        "front_energy": [asdict(point) for point in front(versions, "energy_mj")],
        "drop": drop,
        "saved": {"versions": _saved(versions, drop), "paths": _saved(paths, drop)},
    }
    write_atomic(folder / RESULT, json.dumps(document, indent=2) + "\n")
    return document


def _plan(kinds: Sequence[str], *, with_energy: bool) -> dict[str, tuple[Sequence[str], By]]:
    """The sequences by name: what they leave out, and what they save."""
    plan: dict[str, tuple[Sequence[str], By]] = {
        kind: ((kind,), "energy" if kind == "rows" and with_energy else "latency") for kind in kinds
    }
    if len(kinds) > 1:
        plan["together, latency"] = kinds, "latency"
        if with_energy:
            plan["together, energy"] = kinds, "energy"
    return plan


class _Base:
    """The whole network, with which all else is compared."""

    def __init__(self, measurer: Measurer) -> None:
        self.cost = measurer.cost(measurer.base)
        with stage("whole network") as progress:
            self.accuracy = measurer.accuracy(measurer.base)
            progress(1, 1, f"{self.accuracy.share:.2%}")

    def saved(self, cost: CostEstimate) -> tuple[float, float | None]:
        """The shares of latency and energy that something saves."""
        energy = None if self.cost.energy_mj is None else 1 - _known(cost.energy_mj) / self.cost.energy_mj
        return 1 - cost.latency_ms / self.cost.latency_ms, energy

    def point(
        self,
        label: str,
        subnet: Subnet,
        cost: CostEstimate,
        accuracy: Accuracy,
        *,
        kl: float | None,
        left_out: Iterable[str] = (),
    ) -> Point:
        """All figures of a version or path."""
        lost, lost_error = accuracy.less(self.accuracy)
        latency_saved, energy_saved = self.saved(cost)
        return Point(
            label=label,
            left_out=tuple(left_out),
            latency_ms=cost.latency_ms,
            latency_share=1 - latency_saved,
            energy_mj=cost.energy_mj,
            energy_share=None if energy_saved is None else 1 - energy_saved,
            accuracy=accuracy.share,
            error=accuracy.error,
            lost=lost,
            lost_error=lost_error,
            kl=kl,
            subnet=subnet.to_dict(),
        )


def _known(energy: float | None) -> float:
    assert energy is not None  # a device gives energies of all networks or of none
    return energy


def _singles(measurer: Measurer, base: _Base, kinds: Sequence[str]) -> Iterator[Single]:
    moves = all_single_moves(measurer, kinds)
    with stage("single parts") as progress:
        measurer.follow(measurer.base)
        for number, move in enumerate(moves, start=1):
            version = move.of(measurer.base)
            latency_saved, energy_saved = base.saved(measurer.cost(version))
            lost = lost_error = None
            if move.kind == "blocks":
                lost, lost_error = measurer.accuracy(version).less(base.accuracy)
            yield Single(
                kind=move.kind,
                block=move.block,
                what=str(move),
                kl=measurer.divergence(version),
                latency_saved=latency_saved,
                energy_saved=energy_saved,
                lost=lost,
                lost_error=lost_error,
            )
            progress(number, len(moves), f"without {move}")


def _sequence(
    measurer: Measurer, base: _Base, name: str, kinds: Sequence[str], *, by: By, until: float, points: int
) -> list[Point]:
    with stage(f"sequence of {name}") as progress:
        steps = list(sequence(measurer, kinds, by=by, until=until, progress=progress))
    found = []
    shown = spread(steps, until=until, points=points)
    with stage(f"accuracy of {name}") as progress:
        for number, index in enumerate(shown):
            step, before = steps[index], shown[number - 1] if number else 0
            found.append(
                base.point(
                    name,
                    measurer.shape(step.version),
                    measurer.cost(step.version),
                    measurer.accuracy(step.version),
                    kl=step.kl,
                    left_out=[str(one.move) for one in steps[before + 1 : index + 1]],
                )
            )
            progress(number + 1, len(shown), f"{step.cost / steps[0].cost:.0%} of the {by}: {found[-1].accuracy:.2%}")
    return found


def spread(steps: Sequence[Step], *, until: float, points: int) -> list[int]:
    """Of the steps of a sequence, about `points` at equal distances in cost; the first and the last among them."""
    whole = steps[0].cost
    marks = [whole * (1 - (1 - until) * number / points) for number in range(points + 1)]
    first_below = (next((i for i, step in enumerate(steps) if step.cost <= mark), None) for mark in marks)
    return sorted({index for index in first_below if index is not None} | {len(steps) - 1})


def _path_points(study: Study, base: _Base) -> Iterator[Point]:
    if study.supernet is None or not study.paths:
        return
    measurer = study.measurer
    with stage("paths") as progress:
        for number, subnet in enumerate(study.paths, start=1):
            accuracy = measurer.accuracy_of_path(subnet, partial(extract, study.supernet, subnet))
            yield base.point("path", subnet, measurer.model.estimate(lower(subnet)), accuracy, kl=None)
            progress(number, len(study.paths), f"{accuracy.share:.2%}")


def front(points: Iterable[Point], cost: str) -> list[Point]:
    """The points that no other one beats in accuracy at no more of `cost`, the cheapest first."""
    best: list[Point] = []
    for point in sorted((p for p in points if getattr(p, cost) is not None), key=lambda p: (getattr(p, cost), p.lost)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def _saved(points: Sequence[Point], drop: float) -> dict[str, Any]:
    """The most latency and the most energy that is saved for at most `drop` of accuracy, and by which points."""
    near = [point for point in points if point.lost <= drop + 1e-9]
    found: dict[str, Any] = {"latency": None, "energy": None}
    for figure, share in (("latency", "latency_share"), ("energy", "energy_share")):
        known = [point for point in near if getattr(point, share) is not None]
        if known:
            best = min(known, key=lambda point: getattr(point, share))
            found[figure] = {"saved": 1 - getattr(best, share), "point": asdict(best)}
    return found


def check_kinds(text: str) -> tuple[str, ...]:
    """The kinds that an option names, in the order of `KINDS`; raises `UsageError`."""
    named = [name.strip() for name in text.split(",")]
    for name in named:
        if name not in KINDS:
            raise unknown_name("kind of part", name, KINDS)
    return tuple(kind for kind in KINDS if kind in named)
