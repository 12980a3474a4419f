"""The result of a search as it stands in `front.json`: what is read back is checked against these classes."""

from __future__ import annotations

from dataclasses import dataclass, field
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
class Alternative:
    """One of the next best subnets for a target; its accuracy on the test split is not looked at.

    `accelerator` is set where subnets have accelerators of their own.
    """

    digest: str
    subnet: Subnet
    val_accuracy: float
    cost: Cost
    accelerator: AcceleratorConfig | None = None
    val_kl: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Importance:
    """See `search.importance`: R^2 on unseen trials, and what each kind of choice contributes to it."""

    explained: float
    choices: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomBaseline:
    """Random search with the same budget: its front, as it is drawn (`height`), and its hypervolume on the way."""

    evaluations: int
    hypervolume: float
    hypervolume_curve: tuple[tuple[int, float], ...]
    pareto: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class UniformSubnet:
    """A subnet with the same choices in all blocks and all rows at `bits`."""

    bits: int
    digest: str
    latency_ms: float
    val_accuracy: float
    val_kl: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Baselines:
    """What the search is compared with, measured by the same evaluator."""

    random: RandomBaseline
    uniform: tuple[UniformSubnet, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One target and what the search chose for it; `fps` is set where the target was given so.

    `val_accuracy_integer` is that of the exported integer arithmetic on the first `val_images_integer` images of the
    validation split: on all of them, unless that would take long. Null where a subnet has no integer form.
    """

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
    val_accuracy_integer: float | None = None
    val_kl: float | None = None
    val_images_integer: int | None = None
    cost: Cost | None = None
    alternatives: tuple[Alternative, ...] = ()

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
    """The result of a search, `front.json`. There is `val_kl` in it where subnets were ranked by their divergence."""

    device: str
    hypervolume: float
    targets: tuple[Target, ...]
    pareto: tuple[Trial, ...]
    fastest_latency_ms: float | None = None
    slowest_latency_ms: float | None = None
    algorithm: str | None = None
    evaluations: int | None = None
    hypervolume_curve: tuple[tuple[int, float], ...] = ()
    algorithm_report: dict[str, Any] = field(default_factory=dict)
    stopped: str | None = None
    importance: Importance | None = None
    baselines: Baselines | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with all keys."""
        data = cast(dict[str, Any], TypeAdapter(Front).dump_python(self, mode="json"))
        for trial in data["pareto"]:
            del trial["complete"]  # all of a front are
        for target, entry in zip(self.targets, data["targets"], strict=True):
            entry["subnet"] = None if target.subnet is None else target.subnet.to_dict()
        uniform = data["baselines"]["uniform"] if data["baselines"] else []
        alternatives = [other for target in data["targets"] for other in target["alternatives"]]
        for measured in (*data["pareto"], *data["targets"], *alternatives, *uniform):
            if measured["val_kl"] is None:
                del measured["val_kl"]
        return data


def height(measured: Trial | UniformSubnet) -> float:
    """What a picture of the front shows over the latency: the divergence where there is one, else the accuracy."""
    return measured.val_accuracy if measured.val_kl is None else measured.val_kl
