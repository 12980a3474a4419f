"""Plain data (YAML, JSON) into frozen dataclasses by pydantic, with errors of one line.

A line names the file, the path of the key in it, what is wrong, and for a misspelt key the nearest valid one.
Classes that forbid unknown keys say so with `__pydantic_config__ = {"extra": "forbid"}`.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from hwmodel.errors import DamagedInputError, QuasarError, UsageError

T = TypeVar("T")


def validate(cls: type[T], data: object, *, source: str, error: type[QuasarError] = UsageError) -> T:
    """An instance of the dataclass `cls` from plain data.

    Args:
        source: what the data came from, first in the message (a file's path, usually).
        error: the class to raise for bad data; damaged files deserve another exit code than a user's typing.
    """
    if not isinstance(data, Mapping):
        raise error(f"{source}: expected keys and values, found {type(data).__name__}")
    try:
        return TypeAdapter(cls).validate_python(dict(data))
    except ValidationError as failure:
        raise error(f"{source}: {_explain(cls, failure)}") from None


def read_yaml(path: Path, *, what: str) -> Any:
    """The document in a YAML or JSON file; raises `UsageError` where there is no file, else `DamagedInputError`."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such {what}") from None
    except IsADirectoryError:
        raise UsageError(f"{path}: is a folder, not a {what}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise DamagedInputError(f"{path}: cannot be read as a {what}: {' '.join(str(error).split())}") from None


def _explain(cls: type[Any], failure: ValidationError) -> str:
    errors = failure.errors(include_url=False)
    # A misspelt key also makes the right one "missing": the misspelling is what the user must see.
    first = next((e for e in errors if e["type"] == "unexpected_keyword_argument"), errors[0])
    where = _key_path(first["loc"])
    if first["type"] == "unexpected_keyword_argument":
        keys = _keys_at(cls, first["loc"][:-1])
        name = str(first["loc"][-1])
        close = difflib.get_close_matches(name, keys, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"valid here: {', '.join(keys)}"
        text = f"unknown key '{where}': {hint}"
    elif first["type"] == "missing":
        text = f"key '{where}' is missing"
    else:
        message = first["msg"].removeprefix("Value error, ")
        shown = repr(first["input"])
        given = f" (given: {shown})" if len(shown) <= 60 and first["type"] != "value_error" else ""
        text = f"{where}: {message}{given}" if where else message
    others = len(errors) - 1
    return text + (f" (and {others} more problem{'s' * (others > 1)})" if others else "")


def _key_path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _keys_at(cls: type[Any], loc: tuple[int | str, ...]) -> list[str]:
    """The field names of the dataclass that sits at `loc` inside `cls`."""
    current: Any = cls
    for part in loc:
        if isinstance(part, str) and dataclasses.is_dataclass(current):
            current = typing.get_type_hints(current).get(part)
        elif isinstance(part, int):
            current = next(iter(typing.get_args(current)), None)
        if typing.get_origin(current) in (types.UnionType, typing.Union):
            current = next((a for a in typing.get_args(current) if dataclasses.is_dataclass(a)), None)
    return [f.name for f in dataclasses.fields(current)] if dataclasses.is_dataclass(current) else []
