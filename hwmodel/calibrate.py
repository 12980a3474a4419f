"""Corrects the estimates of LUT, FF and clock from Vivado reports of implementations that a user ran.

A design is one accelerator with its reports (see `hwmodel.vivado`); its `parts` say what of the accelerator it holds,
since the engine alone is often implemented first.

LUT and FF. With x_p the estimate of part p in `hwmodel.resources` and y what the report says, the relative errors of
the designs d are made small: least squares over `sum_p f_p * x_dp / y_d = 1`.

    one factor for all parts      if there are few designs, or if more factors do not explain them better
    one factor for each part      from two designs more than there are factors, if they are determined well (condition
                                  number below 100) and positive. Parts that vary together in all designs share a
                                  factor; parts below 2 % of every design keep their estimate.

Error bars are standard errors: sqrt(diag((A^T A)^-1) * RSS / (designs - factors)), A the matrix of x_dp / y_d. One
design says nothing about its own error, so that error is unknown (None), not 0.

Clock. Each timing report gives 1000 / (period - WNS) MHz of the engine's clock. The LOWEST of the designs becomes the
default clock: what every measured design reached. A run with slack to spare could have been faster, so this is
conservative. The board's most (`max_clock_mhz`) still holds.

A factor of the array holds for the backend that it was measured on; applied to the other one, it is a guess. Designs of
both backends in one calibration share it.

DSP and block RAM are exact by structure and are not fitted; they are shown beside the report, where a difference tells
that the configuration is not that of the report, or that the design holds more than the accelerator.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from hwmodel.accelerator import AcceleratorColumns, AcceleratorConfig, parse_array
from hwmodel.device import Device, Factor, ResourceFit
from hwmodel.errors import DamagedInputError, UsageError
from hwmodel.files import write_atomic
from hwmodel.registry import unknown_name
from hwmodel.resources import resource_terms
from hwmodel.vivado import Timing, Utilization, read_report

FloatArray = NDArray[np.float64]

SMALL_PART = 0.02
MOST_CONDITION = 100.0
SPARE_DESIGNS = 2
#: a fit by part must leave less than this share of the error of the single factor
BETTER = 0.8


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """An accelerator that was implemented, the parts of it that the design holds, and its reports."""

    accelerator: AcceleratorConfig
    parts: tuple[str, ...]
    utilization: Utilization
    timing: Timing | None

    @property
    def label(self) -> str:
        """Shape and backend."""
        a = self.accelerator
        return f"{a.array_rows}x{a.array_inputs} {a.backend}"

    def estimates(self, resource: str) -> dict[str, int]:
        """The uncorrected estimate of each of the design's parts: `resource` is a field of `ResourceTerm`."""
        terms = resource_terms(AcceleratorColumns.one(self.accelerator))
        return {term.name: int(getattr(term, resource)) for term in terms if term.name in self.parts}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """The corrections of one resource, how they came about, and the errors of each design without and with them."""

    fit: ResourceFit
    method: str
    before_percent: tuple[float, ...]
    after_percent: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A calibration; `clock_mhz` is None without timing reports, and `clock_error_mhz` below two of them."""

    designs: tuple[Design, ...]
    lut: Fitted
    ff: Fitted
    clock_mhz: float | None
    clock_error_mhz: float | None


def part_names() -> tuple[str, ...]:
    """The parts of an accelerator that a design can hold, as `hwmodel.resources` names them."""
    return tuple(term.name for term in resource_terms(AcceleratorColumns.one(design_config(array=(8, 8)))))


def design_config(*, array: tuple[int, int], backend: str = "dual", **keys: Any) -> AcceleratorConfig:
    """The accelerator of a report. Keys that are not given have the defaults of the RTL's parameters.

    Raises:
        UsageError: a key is unknown or its value impossible.
    """
    defaults = {
        "array_rows": array[0],
        "array_inputs": array[1],
        "backend": backend,
        "clock_mhz": 150.0,  # plays no part in resources
        "weight_stream_bits": 64,
        "activation_stream_bits": 64,
        "output_stream_bits": 64,
        "activations": "onchip",
        "activation_buffer_bytes": 1024 * array[1],
        "max_tokens": 256,
        "vector_lanes": 16,
    }
    return AcceleratorConfig.from_dict(defaults | keys)


def design_of(
    reports: Sequence[Path],
    accelerator: AcceleratorConfig,
    device: Device,
    *,
    parts: Sequence[str] | None = None,
    clock: str | None = None,
) -> Design:
    """One design from its utilization report and, if given, its timing report, in any order.

    Raises:
        UsageError: not one utilization report and at most one timing report, an unknown part, or another device.
        DamagedInputError: see `read_report`.
    """
    known = part_names()
    for part in parts or ():
        if part not in known:
            raise unknown_name("part", part, known)
    read = [read_report(path, clock=clock) for path in reports]
    utilizations = [report for report in read if isinstance(report, Utilization)]
    timings = [report for report in read if isinstance(report, Timing)]
    if len(utilizations) != 1 or len(timings) > 1:
        raise UsageError(
            f"a design needs one utilization report and at most one timing report, not {len(utilizations)} and "
            f"{len(timings)} ({', '.join(map(str, reports))}); list several designs in a file for --designs"
        )
    for report in read:
        if _die(report.part) != _die(device.part):
            raise UsageError(
                f"{report.path}: is of {report.part}, but {device.name} has {device.part}; give its --device"
            )
    return Design(
        accelerator=accelerator,
        parts=tuple(parts) if parts else known,
        utilization=utilizations[0],
        timing=timings[0] if timings else None,
    )


def _die(part: str) -> str:
    return part.lower().partition("-")[0]


def calibrate(designs: Sequence[Design], device: Device) -> Result:
    """Corrections that make the estimates agree with the designs; `device` must not be calibrated itself.

    Raises:
        UsageError: no design, or a calibrated device.
        DamagedInputError: a report counts no LUT or no FF.
    """
    if not designs:
        raise UsageError("a calibration needs at least one design; give its reports")
    if device.calibration is not None:
        raise UsageError(f"device '{device.name}' is calibrated already; give its base to --device")
    clocks = [design.timing.clock_mhz for design in designs if design.timing]
    return Result(
        designs=tuple(designs),
        lut=_fitted(designs, "lut"),
        ff=_fitted(designs, "ff"),
        # Rounded down: what is claimed was reached.
        clock_mhz=math.floor(100 * min(*clocks, device.max_clock_mhz)) / 100 if clocks else None,
        clock_error_mhz=float(np.std(clocks, ddof=1)) if len(clocks) > 1 else None,
    )


def _fitted(designs: Sequence[Design], resource: str) -> Fitted:
    estimates = [design.estimates(resource) for design in designs]
    measured = np.array([getattr(design.utilization, resource) for design in designs], dtype=np.float64)
    for design, count in zip(designs, measured, strict=True):
        if count <= 0:
            raise DamagedInputError(f"{design.utilization.path}: counts no {resource.upper()}; is the design empty?")
    names = [name for name in part_names() if any(estimate.get(name, 0) for estimate in estimates)]
    x = np.array([[estimate.get(name, 0) for name in names] for estimate in estimates], dtype=np.float64)
    factors, error, method = _one_factor(names, x / measured[:, None])
    by_part = _factor_for_each(names, x / measured[:, None])
    # Without a remaining error there is nothing to explain better.
    if by_part is not None and error is not None and error > 1e-9 and by_part[1] < BETTER * error:
        factors, error, method = by_part
    corrected = x @ np.array([factors[name].value if name in factors else 1.0 for name in names])
    return Fitted(
        fit=ResourceFit(factors=factors, error_percent=None if error is None else 100 * error),
        method=method,
        before_percent=tuple(100 * (x.sum(axis=1) / measured - 1)),
        after_percent=tuple(100 * (corrected / measured - 1)),
    )


def _one_factor(names: Sequence[str], shares: FloatArray) -> tuple[dict[str, Factor], float | None, str]:
    value, bars, error = _least_squares(shares.sum(axis=1, keepdims=True), np.ones(len(shares)))
    factor = Factor(value=float(value[0]), error=None if bars is None else float(bars[0]))
    return dict.fromkeys(names, factor), error, "one factor for all parts"


def _factor_for_each(names: Sequence[str], shares: FloatArray) -> tuple[dict[str, Factor], float, str] | None:
    """Factors by part; None if the designs do not determine them. `shares` are x_dp / y_d, (designs, parts)."""
    large = (shares >= SMALL_PART * shares.sum(axis=1, keepdims=True)).any(axis=0)
    groups: list[list[int]] = []
    for part in np.flatnonzero(large):
        for group in groups:
            if _parallel(shares[:, part], shares[:, group[0]]):
                group.append(int(part))
                break
        else:
            groups.append([int(part)])
    if len(groups) < 2 or len(shares) < len(groups) + SPARE_DESIGNS:
        return None
    columns = np.stack([shares[:, group].sum(axis=1) for group in groups], axis=1)
    if np.linalg.cond(columns / np.linalg.norm(columns, axis=0)) > MOST_CONDITION:
        return None
    values, bars, error = _least_squares(columns, 1 - shares[:, ~large].sum(axis=1))
    if bars is None or error is None or (values <= 0).any():
        return None
    factors = {
        names[part]: Factor(value=float(value), error=float(bar))
        for group, value, bar in zip(groups, values, bars, strict=True)
        for part in group
    }
    return factors, error, f"{len(groups)} factors for {len(factors)} parts"


def _parallel(a: FloatArray, b: FloatArray) -> bool:
    return bool(a @ b >= (1 - 1e-9) * np.linalg.norm(a) * np.linalg.norm(b))


def _least_squares(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray | None, float | None]:
    """Solution of a @ f = b, its standard errors and the standard deviation of b - a @ f; None without spare rows."""
    values = np.asarray(np.linalg.lstsq(a, b, rcond=None)[0], dtype=np.float64)
    spare = len(b) - a.shape[1]
    if spare < 1:
        return values, None, None
    variance = float(((b - a @ values) ** 2).sum()) / spare
    bars = np.asarray(np.sqrt(np.diag(np.linalg.inv(a.T @ a)) * variance), dtype=np.float64)
    return values, bars, math.sqrt(variance)


def write_overlay(path: Path, result: Result, *, base: str, device: Device, overwrite: bool) -> None:
    """Writes the device file that `load_device` reads: `base` (a name, or a path) with the corrections.

    Raises:
        UsageError: the file exists and is not to be overwritten, it is the base, or it does not end in .yaml or .yml.
        QuasarError: the system refused to write.
    """
    check_overlay_path(path, overwrite=overwrite)
    if Path(base).suffix in (".yaml", ".yml"):
        if path.exists() and path.samefile(base):
            raise UsageError(f"'{path}' is the device to calibrate, which the new file refers to; give another --out")
        base = os.path.relpath(base, path.parent)
    document: dict[str, Any] = {"name": path.stem, "title": f"{device.title}, calibrated", "base": base}
    if result.clock_mhz is not None:
        clocks = [f"{d.timing.clock_mhz:.2f} MHz in {d.timing.path.name}" for d in result.designs if d.timing]
        document["clock_mhz"] = {
            "value": result.clock_mhz,
            "source": f"Vivado timing, the lowest of the designs: {', '.join(clocks)}",
        }
    document["calibration"] = {
        "lut": _entry(result.lut),
        "ff": _entry(result.ff),
        "clock": {"lowest_mhz": result.clock_mhz, "error_mhz": _rounded(result.clock_error_mhz)},
        "designs": [_record(design) for design in result.designs],
    }
    head = (
        "# Written by 'quasar hw calibrate' from Vivado reports; use it wherever a device is asked for.\n"
        "# A factor multiplies the estimate of a part; errors are standard errors, null where unknown.\n"
    )
    write_atomic(path, head + yaml.safe_dump(document, sort_keys=False, width=120, allow_unicode=True))


def check_overlay_path(path: Path, *, overwrite: bool) -> None:
    """Raises `UsageError` if an overlay must not be written there."""
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(f"--out must end in .yaml or .yml to be found as a device, not '{path.name}'")
    if path.exists() and not overwrite:
        raise UsageError(f"'{path}' exists; give another --out, or --overwrite")


def _entry(fitted: Fitted) -> dict[str, Any]:
    return {
        "method": fitted.method,
        "error_percent": _rounded(fitted.fit.error_percent),
        "factors": {
            name: {"value": _rounded(factor.value), "error": _rounded(factor.error)}
            for name, factor in fitted.fit.factors.items()
        },
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _record(design: Design) -> dict[str, Any]:
    u, t = design.utilization, design.timing
    return {
        "accelerator": design.accelerator.to_dict(),
        "parts": list(design.parts),
        "reports": [str(u.path)] + ([str(t.path)] if t else []),
        "part": u.part,
        "state": u.state,
        "lut": u.lut,
        "ff": u.ff,
        "bram18": u.bram18,
        "dsp": u.dsp,
        "clock": {"name": t.clock, "period_ns": t.period_ns, "slack_ns": t.slack_ns} if t else None,
    }


def read_designs(path: Path, device: Device) -> list[Design]:
    """The designs listed in a YAML file; paths of reports are relative to it.

    The file is a list of mappings with `reports` (one or two paths), `array` (ROWSxINPUTS) and `backend`, and
    optionally `parts`, `clock`, and any other key of `AcceleratorConfig`.

    Raises:
        UsageError: the file cannot be read, or see `design_of`.
        DamagedInputError: it is no such list.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"list of designs '{path}' cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise DamagedInputError(f"{path}: not valid YAML; mend it") from error
    if not isinstance(entries, list) or not entries:
        raise DamagedInputError(f"{path}: expected a list of designs, each with 'reports', 'array' and 'backend'")
    return [_listed(path, index, entry, device) for index, entry in enumerate(entries, start=1)]


def _listed(path: Path, index: int, entry: object, device: Device) -> Design:
    where = f"{path}: design {index}"
    if not isinstance(entry, Mapping):
        raise DamagedInputError(f"{where} is no mapping; give it 'reports', 'array' and 'backend'")
    keys = {str(key): value for key, value in entry.items()}
    for key in ("reports", "array", "backend"):
        if key not in keys:
            raise DamagedInputError(f"{where} lacks '{key}'; add it")
    reports, array, parts, clock = (
        keys.pop("reports"),
        keys.pop("array"),
        keys.pop("parts", None),
        keys.pop("clock", None),
    )
    for key, names in (("reports", reports), ("parts", parts or [])):
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DamagedInputError(f"{where}: '{key}' must be a list of texts, not {names!r}")
    if clock is not None and not isinstance(clock, str):
        raise DamagedInputError(f"{where}: 'clock' must be the name of a clock, not {clock!r}")
    try:
        config = design_config(array=parse_array(str(array)), **keys)
    except UsageError as error:
        raise DamagedInputError(f"{where}: {error}") from error
    return design_of([path.parent / report for report in reports], config, device, parts=parts, clock=clock)
