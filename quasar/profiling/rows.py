"""What a profile is: a row for each type of operator, and their sums."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

#: the figures of a row whose shares are shown
FIGURES = ("flops", "bytes", "latency_ms", "energy_mj")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """All operators of one type for one image; latency and energy are None where no model gives them."""

    kind: str
    operators: int
    macs: int
    flops: int
    bytes: int
    latency_ms: float | None
    energy_mj: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """The rows of one network on one device, those with the most FLOPs first.

    Attributes:
        basis: what the figures rest on, in a sentence.
        left_out: what the device cannot run, in a sentence; None if it runs all of it.
    """

    network: str
    device: str
    title: str
    basis: str
    rows: tuple[Row, ...]
    left_out: str | None = None

    def total(self, figure: str) -> float | None:
        """The sum of a figure over all rows; None where a row has none."""
        values = [getattr(row, figure) for row in self.rows]
        return None if None in values else sum(values)

    def shares(self, figure: str) -> list[float] | None:
        """The share of each row in the sum of one of `FIGURES`; None where there is no sum."""
        total = self.total(figure)
        return [getattr(row, figure) / total for row in self.rows] if total else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the shares of each row."""
        shares = {figure: self.shares(figure) for figure in FIGURES}
        return {
            "network": self.network,
            "device": self.device,
            "basis": self.basis,
            "left_out": self.left_out,
            "total": {"macs": self.total("macs")} | {figure: self.total(figure) for figure in FIGURES},
            "rows": [
                asdict(row) | {"share": {name: values[index] for name, values in shares.items() if values}}
                for index, row in enumerate(self.rows)
            ],
        }


def rows_of(operators: Iterable[Row]) -> tuple[Row, ...]:
    """Operators added up by type, the type with the most FLOPs first."""
    found: dict[str, list[Row]] = {}
    for operator in operators:
        found.setdefault(operator.kind, []).append(operator)
    rows = [
        Row(
            kind=kind,
            operators=sum(one.operators for one in group),
            macs=sum(one.macs for one in group),
            flops=sum(one.flops for one in group),
            bytes=sum(one.bytes for one in group),
            latency_ms=_sum(one.latency_ms for one in group),
            energy_mj=_sum(one.energy_mj for one in group),
        )
        for kind, group in found.items()
    ]
    return tuple(sorted(rows, key=lambda row: (-row.flops, -row.bytes)))


def _sum(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)
