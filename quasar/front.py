"""The result of a search as it stands in `front.json`: what is read back is checked against these classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic import TypeAdapter

from hwmodel.accelerator import AcceleratorConfig
from search.trial import Trial
from supernet.subnet import Subnet


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The recorded cost of a chosen subnet; cost models that know no resources leave them out."""

    latency_ms: float
    fps: float
    cycles: int | None = None
    dsp: int | None = None
    bram18: int | None = None
    lut: int | None = None
    ff: int | None = None
    energy_mj: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One target and what the search chose for it; `fps` is set where the target was given so."""

    latency_ms: float
    status: Literal["ok", "infeasible"]
    fps: float | None = None
    reason: str | None = None
    nearest_latency_ms: float | None = None
    digest: str | None = None
    subnet: Subnet | None = None
    accelerator: AcceleratorConfig | None = None
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    cost: Cost | None = None

    def __post_init__(self) -> None:
        missing = [key for key in ("subnet", "cost", "val_accuracy") if getattr(self, key) is None]
        if self.status == "ok" and missing:
            raise ValueError(f"status is ok, but {missing[0]} is missing")

    @property
    def label(self) -> str:
        """The limit as the user gave it."""
        return f"≤ {self.latency_ms:.4g} ms" if self.fps is None else f"≥ {self.fps:.4g} FPS"


@dataclass(frozen=True, kw_only=True, slots=True)
class Front:
    """The result of a search, `front.json`."""

    device: str
    hypervolume: float
    targets: tuple[Target, ...]
    pareto: tuple[Trial, ...]
    fastest_latency_ms: float | None = None
    slowest_latency_ms: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with all keys."""
        return cast(dict[str, Any], TypeAdapter(Front).dump_python(self, mode="json"))
