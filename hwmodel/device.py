"""Devices as data: one YAML file each, in which every figure carries its source.

The file's `kind` says what it holds, and which cost model it gets: `fpga` (or nothing) a `Device`, an FPGA board;
`roofline` a `hwmodel.processor.Processor`; `measured` a `hwmodel.measured.MeasuredHost`. A new device is a new file in
`hwmodel/devices/`, a path to a file, or an entry point of another package in the group `quasar.devices` (a Path to such
a file, or a callable that returns one).

The file of a board holds `name`, `title`, `part`, `memory`, and one `{value: ..., source: ...}` for every other field
of `Device`; those of `Limits` and `EnergyConstants` sit under `limits` and `energy`.

An overlay is a file with `base`, the name of a device or a path relative to the overlay: it holds only what differs
from that device. That of a board may hold a `calibration`, which `hwmodel.calibrate` writes: how reports of real
implementations correct the estimates of LUT and FF.

This module imports no NumPy, so that a command line can list the devices at once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwmodel.device_file import MAY_BE_ZERO, SHARE, overlaid, read_fields, read_mapping
from hwmodel.errors import DamagedInputError, UsageError
from hwmodel.processor import PRECISION_BYTES, Processor
from hwmodel.registry import Registry, unknown_name

if TYPE_CHECKING:
    from hwmodel.measured import MeasuredHost

DEVICE_FOLDER = Path(__file__).with_name("devices")

#: a device's file, or a function that finds it
DeviceSource = Path | Callable[[], Path]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The share of each resource that a design may use and still close timing, in (0, 1]."""

    dsp: float = field(metadata=SHARE)
    bram18: float = field(metadata=SHARE)
    lut: float = field(metadata=SHARE)
    ff: float = field(metadata=SHARE)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EnergyConstants:
    """Energy of one multiply-accumulate, of one byte moved at each memory level, and the static power: estimates."""

    mac_8bit_pj: float
    mac_4bit_pj: float
    buffer_pj_per_byte: float
    ddr_pj_per_byte: float
    static_w: float = field(metadata=MAY_BE_ZERO)


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
    uram: int = field(metadata=MAY_BE_ZERO)
    clock_mhz: float
    max_clock_mhz: float
    ddr_gb_per_s: float
    ddr_efficiency: float = field(metadata=SHARE)
    port_bits: int
    hp_ports: int
    limits: Limits
    energy: EnergyConstants
    sources: Mapping[str, str]
    calibration: Calibration | None


_KINDS: dict[str, type] = {"fpga": Device, "roofline": Processor}


def load_device(name_or_path: str | Path) -> Device:
    """The FPGA board called so, or the one in the file so named if it ends in .yaml or .yml.

    Raises:
        UsageError: no such device (the message suggests the nearest), no such file, a broken plug-in, or no FPGA board.
        DamagedInputError: the file is not YAML, or a figure is missing, unknown or impossible.
    """
    device = load_hardware(name_or_path)
    if not isinstance(device, Device):
        raise UsageError(
            f"{device.name} is no FPGA board ({device.title}), and this is about an accelerator on one; give a board "
            "such as zcu102"
        )
    return device


def load_hardware(name_or_path: str | Path) -> Device | Processor | MeasuredHost:
    """The device of any kind that is called so or stands in this file; errors as for `load_device`."""
    if Path(name_or_path).suffix in (".yaml", ".yml"):
        return _read(Path(name_or_path))
    return _read(_path_of(str(name_or_path)))


def device_names() -> list[str]:
    """The devices of all kinds that `load_hardware` knows by name, sorted."""
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


def _read(path: Path) -> Device | Processor | MeasuredHost:
    document = _document(path)
    calibration = None
    if "base" in document:
        own = dict(document)
        base = _base_document(path, own.pop("base"))
        if "calibration" in own and base.get("kind", "fpga") == "fpga":
            calibration = _calibration(path, own.pop("calibration"))
        document = overlaid(base, own, _KINDS.get(base.get("kind", "fpga"), Device))
    kind = document.pop("kind", "fpga")
    if kind == "fpga":
        return _board(path, document, calibration)
    if kind == "roofline":
        return _processor(path, document)
    if kind == "measured":
        from hwmodel.measured import MeasuredHost

        return MeasuredHost.from_document(path, document)
    raise DamagedInputError(f"{path}: {unknown_name('kind', str(kind), (*_KINDS, 'measured'))}")


def _board(path: Path, document: Mapping[Any, Any], calibration: Calibration | None) -> Device:
    device = Device(**read_fields(path, Device, document), calibration=calibration)
    if device.clock_mhz > device.max_clock_mhz:
        raise DamagedInputError(
            f"{path}: 'clock_mhz' {device.clock_mhz:g} exceeds 'max_clock_mhz' {device.max_clock_mhz:g}; lower it"
        )
    return device


def _processor(path: Path, document: Mapping[Any, Any]) -> Processor:
    processor = Processor(**read_fields(path, Processor, document))
    if processor.precision not in PRECISION_BYTES:
        raise DamagedInputError(f"{path}: {unknown_name('precision', processor.precision, PRECISION_BYTES)}")
    if processor.peak_gops.at(processor.precision) is None:
        raise DamagedInputError(
            f"{path}: 'precision' is {processor.precision}, for which 'peak_gops' has no figure; add it, or choose "
            "another precision"
        )
    return processor


def _document(path: Path) -> dict[Any, Any]:
    try:
        return read_mapping(path)
    except OSError as error:
        raise UsageError(
            f"device file '{path}' cannot be read: {error.strerror}; give another file or one of: "
            f"{', '.join(device_names())}"
        ) from error


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
