"""What `quasar scale` is asked for: the `scale` section of a configuration.

All choices of shapes but the patch size are those of `space`. Torch-free, so that its mistakes show at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter

from hwmodel.errors import UsageError
from quasar.config import RunConfig, apply_override
from quasar.scaling.shapes import VitShape
from supernet.space import SearchSpace
from supernet.validation import read_yaml, validate

#: what budgets are given in: multiply-accumulates of an image (what papers on ViTs call FLOPs), or milliseconds
Unit = Literal["macs", "latency_ms"]

#: `search` of a configuration that has none: a study of scaling searches nothing, but a configuration needs targets
_NO_SEARCH = {"targets": [{"fps": 1}]}


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What a network may cost, given as `macs`, as `latency_ms`, or as `fps` (one image at a time)."""

    __pydantic_config__ = {"extra": "forbid"}

    macs: float | None = None
    latency_ms: float | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            raise ValueError("a budget has one of macs, latency_ms and fps")
        for name, value in given.items():
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive and finite, not {value}")

    @property
    def unit(self) -> Unit:
        """What `cost` is in."""
        return "latency_ms" if self.macs is None else "macs"

    @property
    def cost(self) -> float:
        """Multiply-accumulates, or milliseconds."""
        if self.fps is not None:
            return 1000.0 / self.fps
        cost = self.latency_ms if self.macs is None else self.macs
        assert cost is not None
        return cost


@dataclass(frozen=True, kw_only=True, slots=True)
class Compound:
    """Compound scaling by hand, after EfficientNet (Tan and Le 2019, arXiv:1905.11946), whose factors are the defaults.

    For each doubling of the cost, depth, width and resolution grow by these factors. The cost of a ViT is about
    depth * width^2 * resolution^2, as that of a convolutional network is.
    """

    __pydantic_config__ = {"extra": "forbid"}

    depth: float = 1.2
    width: float = 1.1
    resolution: float = 1.15

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not 1 <= getattr(self, field.name) < math.inf:
                raise ValueError(f"{field.name} must be a factor of at least 1, not {getattr(self, field.name)}")
        grows = self.depth * self.width**2 * self.resolution**2
        if abs(grows - 2) > 0.2:
            raise ValueError(
                f"depth * width^2 * resolution^2 must be about 2, so that the cost doubles, not {grows:.3g}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalePlan:
    """A study of how networks should grow.

    Args:
        budgets: at least two, all of one unit: MACs, or a latency on `hardware.device`.
        baseline: the network that is left unscaled, and from which compound scaling by hand starts.
        mode: how candidates are ranked: `standalone` trains each by itself, `supernet` one supernet over the space,
            whose weights they inherit.
        patch_size: choices in the mode standalone; that of the space if null.
        tolerance: a candidate's cost is off its budget by at most this share.
        candidates: for each budget; where there are more shapes, a seeded choice that fills the space.
        best: of them, by validation accuracy, the law is fitted to so many for each budget.
        seeds: trainings of each candidate (mode standalone).
        confirm_seeds: trainings, with other seeds, of the shapes that are compared at the end.
        epochs: of each training of one network by itself; `train.epochs` if null.
        compound: the growth of compound scaling by hand.
    """

    __pydantic_config__ = {"extra": "forbid"}

    budgets: tuple[Budget, ...]
    baseline: VitShape
    mode: Literal["standalone", "supernet"] = "standalone"
    patch_size: tuple[int, ...] | None = None
    tolerance: float = 0.1
    candidates: int = 12
    best: int = 3
    seeds: int = 1
    confirm_seeds: int = 2
    epochs: int | None = None
    compound: Compound = Compound()

    def __post_init__(self) -> None:
        self._check_budgets()
        for name in ("candidates", "best", "seeds", "confirm_seeds", "epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.best > self.candidates:
            raise ValueError(f"best ({self.best}) must not be more than candidates ({self.candidates})")
        if self.patch_size is not None and (not self.patch_size or min(self.patch_size) < 1):
            raise ValueError(f"patch_size: give positive choices, not {list(self.patch_size)}")
        if self.mode == "supernet":
            if self.patch_size is not None:
                raise ValueError(
                    "patch_size: a supernet has one, space.patch_size; leave it out, or use mode: standalone"
                )
            if self.seeds > 1:
                raise ValueError("seeds: in the mode supernet candidates inherit their weights; give seeds: 1")

    def _check_budgets(self) -> None:
        if len(self.budgets) < 2:
            raise ValueError(f"budgets: exponents need at least two budgets, not {len(self.budgets)}")
        if len({budget.unit for budget in self.budgets}) > 1:
            raise ValueError("budgets: give all in macs, or all as latency_ms or fps")
        costs = [budget.cost for budget in self.budgets]
        if len(set(costs)) < len(costs):
            raise ValueError("budgets: the same one is given twice")
        object.__setattr__(self, "budgets", tuple(sorted(self.budgets, key=lambda budget: budget.cost)))
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must lie between 0 and 1, not {self.tolerance}")
        for lower, upper in pairwise(sorted(costs)):
            if lower * (1 + self.tolerance) >= upper * (1 - self.tolerance):
                raise ValueError(
                    f"budgets: {lower:g} and {upper:g} are too close: a network may be within the tolerance of both, "
                    f"{self.tolerance:g}; lower it, or give other budgets"
                )

    @property
    def unit(self) -> Unit:
        """What all budgets are in."""
        return self.budgets[0].unit


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A configuration with its plan; `source` is its file, for messages."""

    config: RunConfig
    plan: ScalePlan
    source: str

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return Path(self.config.output_dir) / f"{self.config.name}-scale"

    @property
    def patch_sizes(self) -> tuple[int, ...]:
        """The choices, in ascending order."""
        given = self.plan.patch_size
        return (self.config.space.patch_size,) if given is None else tuple(sorted(set(given)))

    @property
    def epochs(self) -> int:
        """Of a training of one network by itself."""
        return self.config.train.epochs if self.plan.epochs is None else self.plan.epochs

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `load_study` gives an equal one back from it."""
        return {**self.config.to_dict(), "scale": TypeAdapter(ScalePlan).dump_python(self.plan, mode="json")}

    def to_yaml(self) -> str:
        """The same as a YAML document."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Reads a configuration with a section `scale`, and applies overrides of the form `a.b=value`.

    Raises:
        UsageError: no such file, an unknown key, a wrong type or value, or a plan that does not fit the space; the
            message names the file and the key.
        DamagedInputError: the file is no YAML.
    """
    data = read_yaml(path, what="configuration file")
    data = {} if data is None else data
    if isinstance(data, dict):
        for override in overrides:
            apply_override(data, override)
    source = f"{path} with {' '.join(overrides)}" if overrides else str(path)
    if not isinstance(data, dict) or not isinstance(data.get("scale"), dict):
        raise UsageError(
            f"{source}: has no section 'scale' with budgets and a baseline; docs/scaling.md has an example"
        )
    rest = {"search": _NO_SEARCH} | {key: value for key, value in data.items() if key != "scale"}
    plan = validate(ScalePlan, data["scale"], source=f"{source}: scale")
    study = Study(config=validate(RunConfig, rest, source=source), plan=plan, source=source)
    _check_fits(study)
    return study


def _check_fits(study: Study) -> None:
    config, plan = study.config, study.plan
    space = config.space
    for name in ("operator", "high_precision_ratio"):
        choices = getattr(space, name)
        if len(choices) > 1:
            raise UsageError(
                f"{study.source}: space.{name} has {len(choices)} choices; the shapes of a study share one, so give one"
            )
    if space.num_heads == "embed" and plan.baseline.embed_dim != plan.baseline.num_heads * space.head_dim:
        raise UsageError(
            f"{study.source}: scale.baseline: num_heads must be embed_dim / head_dim = "
            f"{plan.baseline.embed_dim / space.head_dim:g}, as space.num_heads is embed, not {plan.baseline.num_heads}"
        )
    for patch in study.patch_sizes:
        if all(size % patch for size in space.image_size):
            raise UsageError(
                f"{study.source}: scale.patch_size: {patch} divides none of space.image_size {list(space.image_size)}"
            )
    if space.pooling != ((),):
        raise UsageError(f"{study.source}: space.pooling: the shapes of a study do not pool; leave it out")
    try:
        plan.baseline.subnet(space)
    except UsageError as error:
        raise UsageError(f"{study.source}: scale.baseline: {error}") from error
    if not study.epochs:
        raise UsageError(f"{study.source}: train.epochs is 0; give scale.epochs")
    if config.hardware.accelerator == "shared":
        raise UsageError(
            f"{study.source}: hardware.accelerator=shared is what a search finds; give fixed or per_subnet"
        )


def space_with_patch(space: SearchSpace, patch_size: int) -> SearchSpace:
    """The space with another patch size, and the image sizes that it divides, of which there is at least one."""
    sizes = tuple(size for size in space.image_size if size % patch_size == 0)
    return dataclasses.replace(space, patch_size=patch_size, image_size=sizes)
