"""Hosts as they were measured: the times of operators over their sizes, and the file that holds them.

`quasar hw measure` writes such a device file (`kind: measured`); `hwmodel.measured_cost` estimates networks by it.
Between the points of a grid, time is interpolated linearly in each size. That is exact for a time that is a sum of
products of different sizes, such as

    a + b * tokens * inputs + c * inputs * rows + d * tokens * rows + e * tokens * inputs * rows

which is what launch, memory traffic and arithmetic of a product add up to. Outside the grid the nearest cell goes on.
"""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from hwmodel.errors import DamagedInputError
from hwmodel.files import write_atomic

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

#: the operators that are timed, and the sizes on which each depends; "call" is what a network takes beside them
OPERATORS: Mapping[str, tuple[str, ...]] = {
    "call": (),
    "patch_embed": ("tokens", "inputs", "rows"),
    "linear_up": ("tokens", "inputs", "rows"),  # qkv and fc1
    "linear_down": ("tokens", "inputs", "rows"),  # proj, fc2 and head
    "attention": ("tokens", "heads", "head_dim"),
    "layernorm": ("tokens", "width"),
    "gelu": ("tokens", "width"),
    "residual": ("tokens", "width"),
}

_REMEDY = "measure again with 'quasar hw measure'"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """The machine and the software on which operators were timed."""

    cpu: str
    cores: int
    threads: int
    runtime: str
    versions: Mapping[str, str]

    @staticmethod
    def here(*, runtime: str, threads: int, packages: Sequence[str]) -> Host:
        """This machine, with the versions of these packages, "none" where one is not installed."""
        return Host(
            cpu=_cpu_model(),
            cores=os.cpu_count() or 1,
            threads=threads,
            runtime=runtime,
            versions={package: _version(package) for package in packages},
        )

    def difference(self) -> str | None:
        """What is different here, in one line; None on the same processor with the same versions."""
        here = Host.here(runtime=self.runtime, threads=self.threads, packages=tuple(self.versions))
        found = []
        if (self.cpu, self.cores) != (here.cpu, here.cores):
            found.append(f"on {self.cpu} with {self.cores} cores, and this is {here.cpu} with {here.cores}")
        found += [
            f"with {package} {then}, and here is {here.versions[package]}"
            for package, then in self.versions.items()
            if then != here.versions[package]
        ]
        return " and ".join(found) or None


def _cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    known = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    return known.get("model name") or known.get("Model") or platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OperatorGrid:
    """Times of one operator in microseconds, over the values of its sizes in ascending order.

    `axes` are K arrays of lengths n_1 … n_K, `time_us` is of shape (n_1, …, n_K).
    """

    axes: tuple[FloatArray, ...]
    time_us: FloatArray

    def times(self, sizes: FloatArray) -> FloatArray:
        """Microseconds (L,) for sizes (K, L), none below 0."""
        found = np.zeros(sizes.shape[1])
        ends = [_neighbours(axis, values) for axis, values in zip(self.axes, sizes, strict=True)]
        for corner in product(*ends):
            weight = np.prod([share for _, share in corner], axis=0)
            found += weight * self.time_us[tuple(place for place, _ in corner)]
        return np.maximum(found, 0.0)

    def outside(self, sizes: FloatArray) -> BoolArray:
        """Which of the sizes (K, L) were not measured, by size, (K, L)."""
        limits = np.array([(axis[0], axis[-1]) for axis in self.axes]).reshape(-1, 2)
        return (sizes < limits[:, :1]) | (sizes > limits[:, 1:])


def _neighbours(axis: FloatArray, values: FloatArray) -> list[tuple[IntArray, FloatArray]]:
    """The places on an axis between which values (L,) lie, each with the share that it has in them."""
    if len(axis) == 1:
        return [(np.zeros(len(values), dtype=np.int64), np.ones(len(values)))]
    lower = np.clip(np.searchsorted(axis, values, side="right") - 1, 0, len(axis) - 2)
    upper_share = (values - axis[lower]) / (axis[lower + 1] - axis[lower])
    return [(lower, 1 - upper_share), (lower + 1, upper_share)]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class InNetwork:
    """What a layer takes longer in a network than its operators by themselves, fitted to whole networks.

    `layer_us` for each layer (the runtime goes from one to the next, memory is taken anew), and `weight_ns` for each
    weight of a product (the rest of the network has driven it out of the fast caches).
    """

    layer_us: float
    weight_ns: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CheckedNetwork:
    """A network that the table was checked with: its latency as measured and as predicted."""

    digest: str
    measured_ms: float
    predicted_ms: float

    @property
    def error(self) -> float:
        """The magnitude of the relative error."""
        return abs(self.predicted_ms / self.measured_ms - 1)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredHost:
    """A host as it was measured.

    `layers` has, for each kind of layer, how many operators of each name it consists of, all of equal size; what it
    shares with another kind is counted there. `form` says in words what was run, `clock` by what it was timed.
    `power_w` is None if it is not known. `noise` is the median over everything timed of how much the median of its
    repetitions exceeds the fastest one. `check` are networks that went neither into the table nor into `in_network`.
    """

    name: str
    title: str
    form: str
    clock: str
    host: Host
    power_w: float | None
    noise: float
    layers: Mapping[str, Mapping[str, int]]
    operators: Mapping[str, OperatorGrid]
    in_network: InNetwork
    check: tuple[CheckedNetwork, ...]

    @property
    def median_error(self) -> float | None:
        """The median of the relative errors of the checked networks; None without any."""
        return float(np.median([network.error for network in self.check])) if self.check else None

    def save(self, path: Path) -> None:
        """Writes the device file; raises `RefusedError` if the system refuses."""
        document = {
            "kind": "measured",
            **{key: getattr(self, key) for key in ("name", "title", "form", "clock")},
            "host": dataclasses.asdict(self.host),
            "power_w": self.power_w,
            "noise": round(self.noise, 4),
            "layers": {kind: dict(rule) for kind, rule in self.layers.items()},
            "operators": {
                name: {
                    "axes": {
                        size: [int(value) for value in axis]
                        for size, axis in zip(OPERATORS[name], grid.axes, strict=True)
                    },
                    "time_us": np.round(grid.time_us, 3).tolist(),
                }
                for name, grid in self.operators.items()
            },
            "in_network": dataclasses.asdict(self.in_network),
            "check": [dataclasses.asdict(network) for network in self.check],
        }
        head = "# Times of operators on one host, by 'quasar hw measure'. It holds for that host and these versions.\n"
        write_atomic(path, head + yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=120))

    @staticmethod
    def from_document(path: Path, document: Mapping[Any, Any]) -> MeasuredHost:
        """What stands in a device file; raises `DamagedInputError` naming the key that is missing or impossible."""
        read = _Reader(path, document)
        host = _Reader(path, read.mapping("host"), "host.")
        operators = _Reader(path, read.mapping("operators"), "operators.")
        layers = _Reader(path, read.mapping("layers"), "layers.")
        in_network = _Reader(path, read.mapping("in_network"), "in_network.")
        grids = {name: _grid(operators, name) for name in OPERATORS}
        return MeasuredHost(
            **{key: read.text(key) for key in ("name", "title", "form", "clock")},
            host=Host(
                cpu=host.text("cpu"),
                cores=int(host.number("cores")),
                threads=int(host.number("threads")),
                runtime=host.text("runtime"),
                versions={str(key): str(value) for key, value in host.mapping("versions").items()},
            ),
            power_w=None if document.get("power_w") is None else read.number("power_w"),
            noise=read.number("noise"),
            layers={str(kind): _rule(layers, str(kind)) for kind in layers.values},
            operators=grids,
            in_network=InNetwork(layer_us=in_network.number("layer_us"), weight_ns=in_network.number("weight_ns")),
            check=_networks(read),
        )


class _Reader:
    """Values of a mapping in a file, each of the kind that is asked for."""

    def __init__(self, path: Path, values: Mapping[Any, Any], prefix: str = "") -> None:
        self.path, self.values, self.prefix = path, values, prefix

    def wrong(self, key: str, what: str) -> DamagedInputError:
        return DamagedInputError(f"{self.path}: '{self.prefix}{key}' must be {what}; {_REMEDY}")

    def mapping(self, key: str) -> Mapping[Any, Any]:
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.wrong(key, "a mapping")
        return value

    def text(self, key: str) -> str:
        value = self.values.get(key)
        if not isinstance(value, str) or not value:
            raise self.wrong(key, "a text")
        return value

    def number(self, key: str) -> float:
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < np.inf:
            raise self.wrong(key, "a number of at least 0")
        return float(value)

    def numbers(self, key: str) -> FloatArray:
        """An array of any shape of numbers of at least 0."""
        try:
            array = np.array(self.values.get(key), dtype=np.float64)
        except (TypeError, ValueError):
            array = np.array(np.nan)
        if not (np.isfinite(array) & (array >= 0)).all():
            raise self.wrong(key, "numbers of at least 0")
        return array


def _grid(operators: _Reader, name: str) -> OperatorGrid:
    entry = _Reader(operators.path, operators.mapping(name), f"operators.{name}.")
    axes = _Reader(operators.path, entry.mapping("axes"), f"operators.{name}.axes.")
    values = tuple(axes.numbers(size) for size in OPERATORS[name])
    for size, axis in zip(OPERATORS[name], values, strict=True):
        if axis.ndim != 1 or not len(axis) or not (np.diff(axis) > 0).all():
            raise axes.wrong(size, "a list of ascending sizes")
    time_us = entry.numbers("time_us")
    shape = tuple(len(axis) for axis in values)
    if time_us.shape != shape:
        raise entry.wrong("time_us", f"times of shape {shape}, one for each point of the axes")
    return OperatorGrid(axes=values, time_us=time_us)


def _rule(layers: _Reader, kind: str) -> dict[str, int]:
    rule = layers.mapping(kind)
    if not all(name in OPERATORS and isinstance(count, int) and count > 0 for name, count in rule.items()):
        raise layers.wrong(kind, f"a number for each of some operators ({', '.join(OPERATORS)})")
    return dict(rule)


def _networks(read: _Reader) -> tuple[CheckedNetwork, ...]:
    entries = read.values.get("check")
    keys = {field.name for field in dataclasses.fields(CheckedNetwork)}
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and set(entry) == keys for entry in entries):
        raise read.wrong("check", f"a list of networks with {', '.join(sorted(keys))}")
    readers = [_Reader(read.path, entry, f"check[{index}].") for index, entry in enumerate(entries)]
    return tuple(
        CheckedNetwork(
            digest=entry.text("digest"),
            measured_ms=entry.number("measured_ms"),
            predicted_ms=entry.number("predicted_ms"),
        )
        for entry in readers
    )
