"""Boards as data: one YAML file each, in which every figure carries its source.

A file holds `name`, `title`, `part`, and one `{value: ..., source: ...}` for every other field of `Device`; those of
`Limits` and `EnergyConstants` sit under `limits` and `energy`. A new board is a new file in `hwmodel/devices/`, a path
to a file, or an entry point of another package in the group `quasar.devices` (a Path to such a file, or a callable
that returns one). This module imports no NumPy, so that a command line can list the boards at once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from hwmodel.errors import DamagedInputError, UsageError
from hwmodel.registry import Registry, unknown_name

DEVICE_FOLDER = Path(__file__).with_name("devices")

#: a board's file, or a function that finds it
DeviceSource = Path | Callable[[], Path]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The share of each resource that a design may use and still close timing, in (0, 1]."""

    dsp: float
    bram18: float
    lut: float
    ff: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EnergyConstants:
    """Energy of one multiply-accumulate, of one byte moved at each memory level, and the static power: estimates."""

    mac_8bit_pj: float
    mac_4bit_pj: float
    buffer_pj_per_byte: float
    ddr_pj_per_byte: float
    static_w: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One board.

    `ddr_gb_per_s` is the peak (10^9 bytes per second) and `ddr_efficiency` the share of it that was measured;
    `hp_ports` memory ports of `port_bits` each connect the logic to it. `clock_mhz` is the default clock. `sources`
    maps each figure ("dsp", "limits.dsp", "energy.static_w") to where it comes from.
    """

    name: str
    title: str
    part: str
    dsp: int
    bram18: int
    lut: int
    ff: int
    uram: int
    clock_mhz: float
    max_clock_mhz: float
    ddr_gb_per_s: float
    ddr_efficiency: float
    port_bits: int
    hp_ports: int
    limits: Limits
    energy: EnergyConstants
    sources: Mapping[str, str]


_TEXTS = ("name", "title", "part")
_SECTIONS: dict[str, type] = {"limits": Limits, "energy": EnergyConstants}
_MAY_BE_ZERO = ("uram", "energy.static_w")
_SHARES = ("ddr_efficiency", "limits.dsp", "limits.bram18", "limits.lut", "limits.ff")


def load_device(name_or_path: str | Path) -> Device:
    """The board called so, or the one in the file so named if it ends in .yaml or .yml.

    Raises:
        UsageError: no such board (the message suggests the nearest), no such file, or a broken plug-in.
        DamagedInputError: the file is not YAML, or a figure is missing, unknown or impossible.
    """
    if Path(name_or_path).suffix in (".yaml", ".yml"):
        return _read(Path(name_or_path))
    name = str(name_or_path)
    source = _devices().get(name)
    try:
        path = source() if callable(source) else source
    except Exception as error:
        raise UsageError(
            f"plug-in of device '{name}' failed: {type(error).__name__}: {error}; mend or uninstall it"
        ) from error
    if not isinstance(path, Path):
        raise UsageError(f"plug-in of device '{name}' must give a Path, not {type(path).__name__}; mend it")
    return _read(path)


def device_names() -> list[str]:
    """The boards that `load_device` knows by name, sorted."""
    return _devices().names()


@functools.cache
def _devices() -> Registry[DeviceSource]:
    registry: Registry[DeviceSource] = Registry("device", group="quasar.devices")
    for path in DEVICE_FOLDER.glob("*.yaml"):
        registry.register(path.stem)(path)
    return registry


def _read(path: Path) -> Device:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"device file '{path}' cannot be read: {error.strerror}; give another file or one of: "
            f"{', '.join(device_names())}"
        ) from error
    except UnicodeDecodeError as error:
        raise DamagedInputError(f"{path}: not UTF-8 text; save it as UTF-8 YAML") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise DamagedInputError(
            f"{path}: not valid YAML{line}: {getattr(error, 'problem', error)}; mend the syntax there"
        ) from error
    if not isinstance(document, dict):
        raise DamagedInputError(f"{path}: expected a mapping of figures; start from hwmodel/devices/zcu102.yaml")
    sources: dict[str, str] = {}
    values = _section(path, "", Device, document, sources)
    if values["clock_mhz"] > values["max_clock_mhz"]:
        raise DamagedInputError(
            f"{path}: 'clock_mhz' {values['clock_mhz']:g} exceeds 'max_clock_mhz' {values['max_clock_mhz']:g}; lower it"
        )
    return Device(**values, sources=sources)


def _section(path: Path, prefix: str, cls: type, section: Mapping[Any, Any], sources: dict[str, str]) -> dict[str, Any]:
    """The field values of `cls` from one mapping of the file; sources of the figures are added to `sources`."""
    fields = [field for field in dataclasses.fields(cls) if field.name != "sources"]
    known = [field.name for field in fields]
    for key in section:
        if key not in known:
            raise DamagedInputError(f"{path}: {unknown_name('key', f'{prefix}{key}', (prefix + k for k in known))}")
    values: dict[str, Any] = {}
    for field in fields:
        key = f"{prefix}{field.name}"
        entry = section.get(field.name)
        if field.name in _TEXTS:
            if not isinstance(entry, str) or not entry:
                raise DamagedInputError(f"{path}: '{key}' must be a text; add '{key}: ...'")
            values[field.name] = entry
        elif field.name in _SECTIONS:
            if not isinstance(entry, dict):
                raise DamagedInputError(f"{path}: '{key}' must be a mapping of figures; add it")
            nested = _SECTIONS[field.name]
            values[field.name] = nested(**_section(path, f"{key}.", nested, entry, sources))
        else:
            values[field.name], sources[key] = _figure(path, key, entry, whole=field.type == "int")
    return values


def _figure(path: Path, key: str, entry: object, *, whole: bool) -> tuple[float, str]:
    form = f"write '{key.rpartition('.')[2]}: {{value: ..., source: \"...\"}}'"
    if entry is None:
        raise DamagedInputError(f"{path}: figure '{key}' is missing; {form}")
    if not isinstance(entry, dict) or set(entry) != {"value", "source"}:
        raise DamagedInputError(f"{path}: figure '{key}' needs exactly a value and a source; {form}")
    value, source = entry["value"], entry["source"]
    if not isinstance(source, str) or not source.strip():
        raise DamagedInputError(f"{path}: figure '{key}' has no source; say where the value comes from")
    kind = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise DamagedInputError(f"{path}: figure '{key}' must be {kind}, not {value!r}; {form}")
    if not math.isfinite(value) or value < 0 or (value == 0 and key not in _MAY_BE_ZERO):
        bound = "at least 0" if key in _MAY_BE_ZERO else "above 0"
        raise DamagedInputError(f"{path}: figure '{key}' must be {bound}, not {value!r}; correct it")
    if key in _SHARES and value > 1:
        raise DamagedInputError(f"{path}: figure '{key}' is a share, at most 1, not {value!r}; correct it")
    return (value if whole else float(value)), source
