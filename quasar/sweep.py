"""What `quasar tune` varies: training settings of a configuration, between which values, and what that may cost.

A sweep is a YAML file with the fields of `Sweep`. Torch-free and Ray-free, so that its mistakes show at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import yaml
from pydantic import TypeAdapter

from hwmodel.errors import UsageError
from quasar.config import RunConfig
from supernet.config import SupernetConfig, TrainConfig
from supernet.data.config import DataConfig
from supernet.validation import read_yaml, validate

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

#: keys of `data` that vary the training images; others would change which images are trained on, or validated
AUGMENTATION = ("crop_padding", "horizontal_flip", "min_crop_scale", "auto_augment", "random_erasing")

#: keys of `train` that say how long a trial is: early stopping compares trials of one length
LENGTH = ("train.epochs",)

#: combinations with other parameters in which an extreme value is tried before it counts as impossible
COMBINATIONS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Numbers from `min` to `max`, both included; whole ones if both are whole, by their logarithm with `log`."""

    __pydantic_config__ = {"extra": "forbid"}

    min: int | float
    max: int | float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.min) and math.isfinite(self.max) and self.min < self.max):
            raise ValueError(f"min ({self.min}) must be below max ({self.max}), and both finite")
        if self.log and self.min <= 0:
            raise ValueError(f"min must be positive with log, not {self.min}")


#: a range, or a list of choices
Parameter = Range | tuple[Any, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """A search over training settings by TPE (Optuna), with early stopping of poor trials by ASHA (arXiv:1810.05934).

    Args:
        parameters: by dotted key of the configuration, a list of choices, or `min`, `max` and, if wanted, `log: true`.
        trials: trainings, with those that are stopped early or fail.
        concurrent: of them at the same time; as many as the cluster has room for if null.
        cpus_per_trial: CPU cores, which is also the number of torch's threads.
        gpus_per_trial: GPUs; below 1, several trials share one.
        grace_epochs: epochs before a trial may be stopped.
        reduction_factor: of the trials that come to an epoch where ASHA decides, one in so many goes on. It decides
            after `grace_epochs` times 1, this, this squared, ...
        seed: of the choice of parameters. With several trials at a time their order, and so the choice, may differ.
        metric: to make large: the accuracy on the validation split, as the mean of all probe subnets, of the largest
            (`max_accuracy`) or of the smallest (`min_accuracy`).
    """

    __pydantic_config__ = {"extra": "forbid"}

    parameters: dict[str, Parameter]
    trials: int
    concurrent: int | None = None
    cpus_per_trial: int = 1
    gpus_per_trial: float = 0.0
    grace_epochs: int = 1
    reduction_factor: float = 3.0
    seed: int = 0
    metric: Literal["mean_accuracy", "max_accuracy", "min_accuracy"] = "mean_accuracy"

    def __post_init__(self) -> None:
        if not self.parameters:
            raise ValueError("parameters must have at least one key")
        for name in ("trials", "concurrent", "cpus_per_trial", "grace_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be positive, not {value}")
        if not (0 <= self.gpus_per_trial < 1 or self.gpus_per_trial.is_integer()) or self.gpus_per_trial < 0:
            raise ValueError(f"gpus_per_trial must be a share of one GPU or a whole number, not {self.gpus_per_trial}")
        if not 1 < self.reduction_factor < math.inf:
            raise ValueError(f"reduction_factor must be above 1 and finite, not {self.reduction_factor}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in 0..2^32-1, not {self.seed}")

    def to_yaml(self) -> str:
        """The sweep as a YAML document; `load_sweep` gives an equal one back."""
        return yaml.safe_dump(TypeAdapter(Sweep).dump_python(self, mode="json"), sort_keys=False)


def load_sweep(path: Path) -> Sweep:
    """Reads a sweep.

    Raises:
        UsageError: no such file, an unknown key, a wrong type or value; the message names the file and the key.
        DamagedInputError: the file is no YAML.
    """
    data = read_yaml(path, what="sweep file")
    if isinstance(data, dict) and isinstance(data.get("parameters"), dict):
        parameters = {key: _parameter(key, value, source=str(path)) for key, value in data["parameters"].items()}
        data = data | {"parameters": parameters}
    return validate(Sweep, {} if data is None else data, source=str(path))


def _parameter(key: Any, value: Any, *, source: str) -> Parameter:
    keys = parameter_keys()
    where = f"{source}: parameters.{key}"
    if key not in keys:
        close = difflib.get_close_matches(str(key), keys, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"valid here: {', '.join(keys)}"
        raise UsageError(f"{where}: is no key that can be tuned: {hint}")
    if isinstance(value, dict):
        given = validate(Range, value, source=where)
        if keys[key] in (float, float | None):  # 1 to 2 has numbers between
            given = dataclasses.replace(given, min=float(given.min), max=float(given.max))
        return given
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where}: must be a list of choices, or min and max, not {value!r}")
    for choice in value:
        if choice is not None and not isinstance(choice, bool | int | float | str):
            raise UsageError(f"{where}: a choice must be a single value, not {choice!r}")
    return tuple(value)


def parameter_keys() -> dict[str, Any]:
    """The keys of a configuration that can be tuned, with their types."""
    train = {key: kind for key, kind in _leaves(TrainConfig, "train") if key not in LENGTH}
    data = {key: kind for key, kind in _leaves(DataConfig, "data") if key.removeprefix("data.") in AUGMENTATION}
    return train | dict(_leaves(SupernetConfig, "supernet")) | data


def _leaves(cls: type[Any], prefix: str) -> Iterator[tuple[str, Any]]:
    kinds = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        key, kind = f"{prefix}.{field.name}", kinds[field.name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from _leaves(kind, key)
        else:
            yield key, kind


def settings(base: RunConfig, parameters: Mapping[str, Any], *, source: str) -> RunConfig:
    """The configuration with these parameters; raises `UsageError`, which begins with `source`, if they do not fit."""
    data = base.to_dict()
    for key, value in parameters.items():
        *sections, name = key.split(".")
        place = data
        for section in sections:
            place = place[section]
        place[name] = value
    return validate(RunConfig, data, source=source)


def check_sweep(sweep: Sweep, base: RunConfig, *, source: str) -> dict[str, RunConfig]:
    """For each extreme value, by "source: parameters.key=value", a configuration that has it.

    That is the one with this value alone or, if that is none, one with other extreme values beside it.

    Raises:
        UsageError: a value that is impossible in all of them; a sweep that does not fit the configuration.
    """
    if sweep.grace_epochs > base.train.epochs:
        raise UsageError(
            f"{source}: grace_epochs ({sweep.grace_epochs}) must not be more than train.epochs ({base.train.epochs})"
        )
    if base.compute != "auto" and (base.compute == "cuda") != (sweep.gpus_per_trial > 0):
        raise UsageError(f"{source}: gpus_per_trial is {sweep.gpus_per_trial:g}, but compute is {base.compute}")
    ends = {key: _extremes(parameter) for key, parameter in sweep.parameters.items()}
    found = {}
    for key, values in ends.items():
        others = {name: ends[name] for name in ends if name != key}
        for value in values:
            where = f"{source}: parameters.{key}={value}"
            found[where] = _first_possible(base, {key: value}, others, source=where)
    return found


def _extremes(parameter: Parameter) -> tuple[Any, ...]:
    return (parameter.min, parameter.max) if isinstance(parameter, Range) else parameter


def _first_possible(
    base: RunConfig, fixed: Mapping[str, Any], others: Mapping[str, tuple[Any, ...]], *, source: str
) -> RunConfig:
    combinations = (dict(zip(others, values, strict=True)) for values in itertools.product(*others.values()))
    first: UsageError | None = None
    for combination in itertools.islice(itertools.chain([{}], combinations), COMBINATIONS):
        try:
            return settings(base, {**combination, **fixed}, source=source)
        except UsageError as error:
            first = first or error  # the one with this value alone says it best
    raise cast(UsageError, first)


def distributions(sweep: Sweep) -> dict[str, BaseDistribution]:
    """The parameters in Optuna's form."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def distribution(parameter: Parameter) -> BaseDistribution:
        if not isinstance(parameter, Range):
            return CategoricalDistribution(parameter)
        if isinstance(parameter.min, int) and isinstance(parameter.max, int):
            return IntDistribution(parameter.min, parameter.max, log=parameter.log)
        return FloatDistribution(parameter.min, parameter.max, log=parameter.log)

    return {key: distribution(parameter) for key, parameter in sweep.parameters.items()}
