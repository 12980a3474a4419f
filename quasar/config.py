"""The configuration of a run: one YAML file over the settings of all packages, with `a.b=c` overrides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import TypeAdapter

from hwmodel.errors import UsageError
from search.config import HardwareConfig, SearchConfig
from supernet.config import FinetuneConfig, SupernetConfig, TrainConfig
from supernet.data.config import DataConfig
from supernet.space import SearchSpace, without_defaults
from supernet.validation import read_yaml, validate

#: file in a run folder with the resolved configuration
CONFIG_FILE = "config.yaml"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """All settings of a run.

    The run folder is `output_dir/name`. With `finetune`, `quasar run` trains the chosen subnets further, one by one.
    `compute` is where torch runs, `threads` how many CPU threads it uses (by default one for each core; with 1, results
    do not depend on the number of cores, and small networks train no slower).
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    data: DataConfig
    space: SearchSpace
    train: TrainConfig
    search: SearchConfig
    supernet: SupernetConfig = field(default_factory=SupernetConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    finetune: FinetuneConfig | None = None
    output_dir: str = "runs"
    seed: int = 0
    compute: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.name in ("", "..") or Path(self.name).name != self.name:
            raise UsageError(f"name must be a plain folder name, not '{self.name}'")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed must lie in 0..2^63-1, not {self.seed}")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads must be at least 1 or null, not {self.threads}")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output_dir) / self.name

    def to_dict(self) -> dict[str, Any]:
        """Plain data for YAML; `load_config` gives an equal configuration back."""
        data = cast(dict[str, Any], TypeAdapter(RunConfig).dump_python(self, mode="json"))
        return data | {"space": without_defaults(data["space"])}

    def to_yaml(self) -> str:
        """The resolved configuration as a YAML document."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a configuration file, or the one of a run folder, and applies overrides of the form `a.b=value`.

    Raises:
        UsageError: no such file, an unknown key, a wrong type or value; the message names the file and the key.
        DamagedInputError: the file is no YAML.
    """
    file = path / CONFIG_FILE if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise UsageError(f"{path}: is not a run folder (it has no {CONFIG_FILE}); give a configuration file")
    data = read_yaml(file, what="configuration file")
    if data is None:
        data = {}
    if isinstance(data, dict):
        if path.is_dir():
            # A run folder may have been moved, or be named from another working directory: it is where it is.
            place = path.resolve() if path.name in ("", "..") else path
            data |= {"output_dir": str(place.parent), "name": place.name}
        for override in overrides:
            apply_override(data, override)
    given = f" with {' '.join(overrides)}" if overrides else ""
    return validate(RunConfig, data, source=f"{file}{given}")


def apply_override(data: Any, override: str) -> None:
    """Sets one key of nested mappings from `a.b=value`, the value being YAML; raises `UsageError`."""
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise UsageError(f"override '{override}' is not of the form key.sub=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"override '{override}': '{text}' is not a YAML value") from None
    for key in keys[:-1]:
        if isinstance(data, dict) and data.get(key) is None:
            data[key] = {}
        data = data[key] if isinstance(data, dict) else None
    if not isinstance(data, dict):
        raise UsageError(f"override '{override}': '{'.'.join(keys[:-1])}' has no keys of its own")
    data[keys[-1]] = value


#: keys that say where and on what a run computes, not what: the digest of the images knows them wherever they are
PLACE_KEYS = (
    "data.root",
    "data.download",
    "data.workers",
    "search.executor",
    "search.workers",
    "threads",
    "compute",
)


def changed_settings(first: RunConfig, second: RunConfig) -> list[str]:
    """The keys in which two configurations differ, without `PLACE_KEYS`."""
    return [key for key in differing_keys(first, second) if key not in PLACE_KEYS]


def differing_keys(first: RunConfig, second: RunConfig) -> list[str]:
    """The keys in which two configurations differ, as dotted paths."""
    ours, theirs = _flat(first.to_dict()), _flat(second.to_dict())
    return sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {prefix: data}
    return {
        key: value for name, item in data.items() for key, value in _flat(item, f"{prefix}.{name}".strip(".")).items()
    }
