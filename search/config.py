"""Settings of the search and of the hardware that it searches for. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

#: by what subnets are ranked
Signal = Literal["accuracy", "kl"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One limit on speed, given as `latency_ms` or as `fps` (frames per second, one frame at a time)."""

    __pydantic_config__ = {"extra": "forbid"}

    latency_ms: float | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        if (self.latency_ms is None) == (self.fps is None):
            raise ValueError("a target has either latency_ms or fps")
        name = "fps" if self.latency_ms is None else "latency_ms"
        value = getattr(self, name)
        if not (value > 0 and math.isfinite(value) and math.isfinite(self.limit_ms)):
            raise ValueError(f"{name} must be positive and finite, not {value}")

    @property
    def limit_ms(self) -> float:
        """The largest latency that meets the target."""
        if self.latency_ms is not None:
            return self.latency_ms
        assert self.fps is not None
        return 1000.0 / self.fps

    def __str__(self) -> str:
        return f"{self.latency_ms:g} ms" if self.latency_ms is not None else f"{self.fps:g} FPS"


@dataclass(frozen=True, kw_only=True, slots=True)
class HardwareConfig:
    """The device, which accelerators subnets get, and what of an accelerator is given; what is null is chosen.

    `accelerator` is "fixed": all subnets share the fastest one for the largest subnet of the space; "per_subnet": every
    subnet gets the fastest one for itself; or "shared": all targets get the one that serves them best together, which
    the search finds (`search.sharing`). `array` is the number of rows and inputs of the DSP array, `backend` the way
    products are packed into a DSP, `activations` where they live between layers: in the device's memory blocks or in
    DDR.
    """

    __pydantic_config__ = {"extra": "forbid"}

    device: str = "zcu102"
    accelerator: Literal["fixed", "per_subnet", "shared"] = "fixed"
    clock_mhz: float | None = None
    backend: str | None = None
    array: tuple[int, int] | None = None
    activations: str = "onchip"

    def __post_init__(self) -> None:
        if self.clock_mhz is not None and not (self.clock_mhz > 0 and math.isfinite(self.clock_mhz)):
            raise ValueError(f"clock_mhz must be positive, not {self.clock_mhz}")
        if self.array is not None and not all(size > 0 for size in self.array):
            raise ValueError(f"array must be two positive sizes, not {list(self.array)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Hard limits on every subnet beside its target, checked by the cost model before any accuracy is measured.

    `energy_mj` is that of one image, `weight_bytes` the packed weights without biases and scales. `dsp`, `bram18` and
    `lut` are limits of the accelerator: none above them is chosen. What is null has no limit but the device's.
    """

    __pydantic_config__ = {"extra": "forbid"}

    latency_ms: float | None = None
    fps: float | None = None
    energy_mj: float | None = None
    weight_bytes: float | None = None
    dsp: int | None = None
    bram18: int | None = None
    lut: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"limits: {field.name} must be positive and finite, not {value}")

    @property
    def limit_ms(self) -> float:
        """The largest latency that `latency_ms` and `fps` allow; infinite without either."""
        by_rate = math.inf if self.fps is None else 1000.0 / self.fps
        return by_rate if self.latency_ms is None else min(by_rate, self.latency_ms)


@dataclass(frozen=True, kw_only=True, slots=True)
class RacingConfig:
    """Subnets that are clearly no improvement are not measured on the whole validation split; see `search.racing`.

    `error` is the largest probability that a subnet is dropped that is better than the best one so far by at least
    `margin`: a share of the images or, where subnets are ranked by divergence, of the best one's. Accuracies of fewer
    than `images` images are measured on all of them; divergences, of which a few images tell more, race in any case,
    and where `most_images` is given, on that many at most, in whole batches.
    """

    __pydantic_config__ = {"extra": "forbid"}

    error: float = 0.1
    margin: float = 0.003
    images: int = 2000
    most_images: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.error < 0.5:
            raise ValueError(f"racing: error must lie in (0, 0.5), not {self.error}")
        if not 0 <= self.margin < 1:
            raise ValueError(f"racing: margin must lie in [0, 1), not {self.margin}")
        for name in ("images", "most_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"racing: {name} must be at least 1, not {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """An Optuna study that gets a copy of all measured subnets, see `search.study`.

    `storage` is a database URL such as sqlite:///studies.db, or the path of a journal file; `name` is the study's, by
    default that of the run.
    """

    __pydantic_config__ = {"extra": "forbid"}

    storage: str
    name: str | None = None

    def __post_init__(self) -> None:
        for key in ("storage", "name"):
            if getattr(self, key) == "":
                raise ValueError(f"study: {key} must not be empty")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """A search for the best subnet under each target.

    Subnets are ranked by `signal`: their accuracy, or `kl`, the mean Kullback-Leibler divergence of their outputs from
    those of the largest subnet in floats; the latter needs fewer images, and asks for what a trained network gave. Of
    the `finalists` with the least divergence under each target the most accurate is chosen: with more than one, the
    validation split should have thousands of images.
    `evaluations` is the number of subnets that are measured, `population` how many of them in a generation,
    `mutation_probability` the chance of each gene to change, `parents` how many of the best under a target breed.
    `limits` hold for all targets. `top` subnets are kept for each target; the first is what is exported. With
    `baselines` the same number of random subnets and a ladder of uniform ones at 8 and at 4 bits are measured as well.
    Without `racing`, every subnet is measured on the whole validation split. `study` is for optuna-dashboard. With the
    `precision` int8, which `auto` takes where a CPU makes it fast, products are those of codes; what a search chooses
    is measured in float32 all the same.

    With the executor `ray`, `workers` processes measure the subnets of a generation at the same time, by default one
    for each CPU core or GPU of the cluster. The result does not depend on their number. It is that of `local` where
    `threads` is 1: sums of floats depend on the number of threads, of which workers have one unless `threads` is set.
    """

    __pydantic_config__ = {"extra": "forbid"}

    targets: tuple[Target, ...]
    algorithm: str = "predictor"
    signal: Signal = "accuracy"
    finalists: int = 1
    precision: Literal["auto", "float32", "int8"] = "auto"
    evaluations: int = 200
    population: int = 20
    parents: int = 10
    mutation_probability: float = 0.15
    batch_size: int = 512
    racing: RacingConfig | None = RacingConfig()
    limits: Limits = Limits()
    top: int = 1
    baselines: bool = False
    study: StudyConfig | None = None
    executor: Literal["local", "ray"] = "local"
    workers: int | None = None

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets: the list is empty; give at least one latency_ms or fps")
        for name in ("finalists", "evaluations", "population", "parents", "batch_size", "top"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1 or null, not {self.workers}")
        if self.executor == "local" and (self.workers or 1) > 1:
            raise ValueError(f"workers: {self.workers} of them need executor: ray")
        if not 0 < self.mutation_probability <= 1:
            raise ValueError(f"mutation_probability must lie in (0, 1], not {self.mutation_probability}")
        limits = [target.limit_ms for target in self.targets]
        if len(set(limits)) < len(limits):
            raise ValueError("targets: the same limit is given twice")

    @property
    def finalists_of_target(self) -> int:
        """How many of the best under each target are measured on all images, in float32, before one is chosen."""
        return max(self.top, self.finalists) if self.signal == "kl" else self.top
