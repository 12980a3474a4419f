"""Reading device files: YAML in which every figure is `{value: ..., source: ...}`, checked against a dataclass.

The dataclass says what a file holds. A field of type `str` is a text; one of type `int` or `float` a figure, which must
be finite and above 0; one of type `float | None` a figure that may be left out; a dataclass a section with fields of
its own. The metadata of a field may say `SHARE` (at most 1) or `MAY_BE_ZERO`. Fields of other types are not read here.

This module imports no NumPy, so that a command line can list devices at once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from hwmodel.errors import DamagedInputError
from hwmodel.registry import unknown_name

SHARE: Mapping[str, bool] = MappingProxyType({"share": True})
MAY_BE_ZERO: Mapping[str, bool] = MappingProxyType({"zero": True})

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast


def read_mapping(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file; raises OSError, or `DamagedInputError` for anything else."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
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


def overlaid(base: Mapping[Any, Any], own: Mapping[Any, Any], cls: type) -> dict[Any, Any]:
    """The figures of `base`, replaced by those of an overlay, section by section of `cls`."""
    merged = {**base, **own}
    for name, kind in _fields(cls).items():
        if dataclasses.is_dataclass(kind) and isinstance(own.get(name), dict):
            merged[name] = {**base[name], **own[name]}
    return merged


def read_fields(path: Path, cls: type, document: Mapping[Any, Any]) -> dict[str, Any]:
    """The field values of `cls` in a document, and under `sources` where each figure comes from.

    Raises:
        DamagedInputError: a key is unknown, or a text or figure missing or impossible; the message names it.
    """
    sources: dict[str, str] = {}
    values = _section(path, "", cls, document, sources)
    return values | {"sources": sources}


@functools.cache
def _fields(cls: type) -> dict[str, Any]:
    """The types of the fields that a file holds, by name."""
    hints = typing.get_type_hints(cls)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    return {
        name: kind
        for name, kind in fields.items()
        if kind in (str, int, float, float | None) or dataclasses.is_dataclass(kind)
    }


def _section(path: Path, prefix: str, cls: type, section: Mapping[Any, Any], sources: dict[str, str]) -> dict[str, Any]:
    kinds = _fields(cls)
    for key in section:
        if key not in kinds:
            raise DamagedInputError(f"{path}: {unknown_name('key', f'{prefix}{key}', (prefix + k for k in kinds))}")
    rules = {field.name: field.metadata for field in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for name, kind in kinds.items():
        key = f"{prefix}{name}"
        entry = section.get(name)
        if kind is str:
            if not isinstance(entry, str) or not entry:
                raise DamagedInputError(f"{path}: '{key}' must be a text; add '{key}: ...'")
            values[name] = entry
        elif dataclasses.is_dataclass(kind):
            if not isinstance(entry, dict):
                raise DamagedInputError(f"{path}: '{key}' must be a mapping of figures; add it")
            values[name] = typing.cast(type, kind)(**_section(path, f"{key}.", typing.cast(type, kind), entry, sources))
        elif entry is None and kind not in (int, float):
            values[name] = None
        else:
            values[name], sources[key] = _figure(path, key, entry, whole=kind is int, rules=rules[name])
    return values


def _figure(path: Path, key: str, entry: object, *, whole: bool, rules: Mapping[Any, Any]) -> tuple[float, str]:
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
    if not math.isfinite(value) or value < 0 or (value == 0 and "zero" not in rules):
        bound = "at least 0" if "zero" in rules else "above 0"
        raise DamagedInputError(f"{path}: figure '{key}' must be {bound}, not {value!r}; correct it")
    if "share" in rules and value > 1:
        raise DamagedInputError(f"{path}: figure '{key}' is a share, at most 1, not {value!r}; correct it")
    return (value if whole else float(value)), source
