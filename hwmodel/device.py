"""Boards as data: one YAML file each, in which every figure carries its source.

A file holds `name`, `title`, `part`, `memory`, and one `{value: ..., source: ...}` for every other field of `Device`;
those of `Limits` and `EnergyConstants` sit under `limits` and `energy`. A new board is a new file in
`hwmodel/devices/`, a path to a file, or an entry point of another package in the group `quasar.devices` (a Path to such
a file, or a callable that returns one).

An overlay is a file with `base`, the name of a board or a path relative to the overlay: it holds only what differs from
that board. It may hold a `calibration`, which `hwmodel.calibrate` writes: how reports of real implementations correct
the estimates of LUT and FF.

This module imports no NumPy, so that a command line can list the boards at once.
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
class Factor:
    """What an estimate is multiplied by, and the standard error of that (None where one design alone was measured)."""

    value: float
    error: float | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ResourceFit:
    """Corrections of one resource: a factor for each part of the accelerator that was measured, by its name.

    `error_percent` is the standard deviation of the measured designs about the corrected estimates; None if unknown.
    """

    factors: Mapping[str, Factor]
    error_percent: float | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Corrections of LUT and FF, by part (see `hwmodel.resources`); one without a factor keeps its estimate."""

    lut: ResourceFit
    ff: ResourceFit


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One board.

    `memory` says what the external memory is (DDR4, LPDDR4, HBM2). `ddr_gb_per_s` is its peak (10^9 bytes per second),
    whatever its kind, and `ddr_efficiency` the share of it that can be sustained; `hp_ports` memory ports of
    `port_bits` each connect the logic to it. `clock_mhz` is the default clock. `sources` maps each figure ("dsp",
    "limits.dsp", "energy.static_w") to where it comes from. `calibration` is None where no design was measured.
    """

    name: str
    title: str
    part: str
    memory: str
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
    calibration: Calibration | None


_TEXTS = ("name", "title", "part", "memory")
_SECTIONS: dict[str, type] = {"limits": Limits, "energy": EnergyConstants}
_MAY_BE_ZERO = ("uram", "energy.static_w")
_RECORDS = ("sources", "calibration")  # fields that are no figures
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast
_SHARES = ("ddr_efficiency", "limits.dsp", "limits.bram18", "limits.lut", "limits.ff")


def load_device(name_or_path: str | Path) -> Device:
    """The board called so, or the one in the file so named if it ends in .yaml or .yml.

    Raises:
        UsageError: no such board (the message suggests the nearest), no such file, or a broken plug-in.
        DamagedInputError: the file is not YAML, or a figure is missing, unknown or impossible.
    """
    if Path(name_or_path).suffix in (".yaml", ".yml"):
        return _read(Path(name_or_path))
    return _read(_path_of(str(name_or_path)))


def device_names() -> list[str]:
    """The boards that `load_device` knows by name, sorted."""
    return _devices().names()


@functools.cache
def _devices() -> Registry[DeviceSource]:
    registry: Registry[DeviceSource] = Registry("device", group="quasar.devices")
    for path in DEVICE_FOLDER.glob("*.yaml"):
        registry.register(path.stem)(path)
    return registry


def _path_of(name: str) -> Path:
    source = _devices().get(name)
    try:
        path = source() if callable(source) else source
    except Exception as error:
        raise UsageError(
            f"plug-in of device '{name}' failed: {type(error).__name__}: {error}; mend or uninstall it"
        ) from error
    if not isinstance(path, Path):
        raise UsageError(f"plug-in of device '{name}' must give a Path, not {type(path).__name__}; mend it")
    return path


def _read(path: Path) -> Device:
    document = _document(path)
    calibration = None
    if "base" in document:
        own = dict(document)
        base = own.pop("base")
        if "calibration" in own:
            calibration = _calibration(path, own.pop("calibration"))
        document = _over(_base_document(path, base), own)
    sources: dict[str, str] = {}
    values = _section(path, "", Device, document, sources)
    if values["clock_mhz"] > values["max_clock_mhz"]:
        raise DamagedInputError(
            f"{path}: 'clock_mhz' {values['clock_mhz']:g} exceeds 'max_clock_mhz' {values['max_clock_mhz']:g}; lower it"
        )
    return Device(**values, sources=sources, calibration=calibration)


def _document(path: Path) -> dict[Any, Any]:
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
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
    return document


def _base_document(path: Path, base: object) -> dict[Any, Any]:
    if not isinstance(base, str) or not base:
        raise DamagedInputError(f"{path}: 'base' must be the name of a device or a path, not {base!r}")
    is_path = Path(base).suffix in (".yaml", ".yml")
    base_path = path.parent / base if is_path else _path_of(base)
    document = _document(base_path)
    if "base" in document:
        raise DamagedInputError(f"{path}: its base '{base}' is an overlay itself; name a complete device file")
    _read(base_path)  # a mistake in the base is reported for the base
    return document


def _over(base: Mapping[Any, Any], own: Mapping[Any, Any]) -> dict[Any, Any]:
    """The figures of `base`, replaced by those of an overlay, section by section."""
    merged = {**base, **own}
    for section in _SECTIONS:
        if isinstance(own.get(section), dict):
            merged[section] = {**base[section], **own[section]}
    return merged


def _calibration(path: Path, entry: object) -> Calibration:
    known = ("lut", "ff", "clock", "designs")  # the last two are a record for people
    if not isinstance(entry, dict):
        raise DamagedInputError(f"{path}: 'calibration' must be a mapping; write it with 'quasar hw calibrate'")
    for key in entry:
        if key not in known:
            raise DamagedInputError(f"{path}: {unknown_name('key', f'calibration.{key}', known)}")
    return Calibration(lut=_fit(path, "lut", entry.get("lut")), ff=_fit(path, "ff", entry.get("ff")))


def _fit(path: Path, resource: str, entry: object) -> ResourceFit:
    key = f"calibration.{resource}"
    if not isinstance(entry, dict) or not {"error_percent", "factors"} <= set(entry) <= {
        "method",
        "error_percent",
        "factors",
    }:
        raise DamagedInputError(f"{path}: '{key}' needs 'factors' and 'error_percent'; calibrate again")
    factors = entry["factors"]
    if not isinstance(factors, dict) or not all(
        isinstance(name, str) and isinstance(factor, dict) and set(factor) == {"value", "error"}
        for name, factor in factors.items()
    ):
        raise DamagedInputError(f"{path}: '{key}.factors' needs a value and an error for each part; calibrate again")
    return ResourceFit(
        factors={
            name: Factor(
                value=_positive(path, f"{key}.factors.{name}.value", factor["value"]),
                error=_error_bar(path, f"{key}.factors.{name}.error", factor["error"]),
            )
            for name, factor in factors.items()
        },
        error_percent=_error_bar(path, f"{key}.error_percent", entry["error_percent"]),
    )


def _positive(path: Path, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise DamagedInputError(f"{path}: '{key}' must be a number above 0, not {value!r}; calibrate again")
    return float(value)


def _error_bar(path: Path, key: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise DamagedInputError(f"{path}: '{key}' must be a number of at least 0, or null, not {value!r}")
    return float(value)


def _section(path: Path, prefix: str, cls: type, section: Mapping[Any, Any], sources: dict[str, str]) -> dict[str, Any]:
    """The field values of `cls` from one mapping of the file; sources of the figures are added to `sources`."""
    fields = [field for field in dataclasses.fields(cls) if field.name not in _RECORDS]
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
