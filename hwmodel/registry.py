"""A registry of named plug-ins: duplicates raise, unknown names suggest the nearest, broken entry points are loud."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from hwmodel.errors import UsageError

T = TypeVar("T")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not in `known`: it suggests the nearest one, and lists all if they are few."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hints = [f"did you mean '{close[0]}'?"] if close else []
    if len(names) <= 20:
        hints.append(f"known: {', '.join(names) or 'none'}")
    return UsageError(f"unknown {kind} '{name}'" + (f": {' '.join(hints)}" if hints else ""))


class Registry(Generic[T]):
    """Named objects of one kind, from this program and from the entry points of installed packages.

    Args:
        kind: what the objects are, for messages ("device", "data set").
        group: entry-point group that other packages may use, for example "quasar.algorithms". It is read on the
            first look-up, so that importing the registry stays cheap. An entry point that cannot be loaded raises
            a `UsageError` that names it.
    """

    def __init__(self, kind: str, *, group: str) -> None:
        self.kind = kind
        self.group = group
        self._entries: dict[str, T] = {}
        self._plugins_loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that adds an object under `name`; raises ValueError if the name is taken."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> T:
        """The object called `name`; raises `UsageError` with the nearest name if there is none."""
        self._load_plugins()
        try:
            return self._entries[name]
        except KeyError:
            raise unknown_name(self.kind, name, self._entries) from None

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load_plugins()
        return sorted(self._entries)

    def _load_plugins(self) -> None:
        if self._plugins_loaded:
            return
        found: dict[str, T] = {}
        for point in entry_points(group=self.group):
            where = f"plug-in '{point.name}' ({point.value}) of group {self.group}"
            if point.name in self._entries or point.name in found:
                raise UsageError(f"{where}: a {self.kind} of that name exists already; rename or uninstall it")
            try:
                found[point.name] = point.load()
            except Exception as error:
                raise UsageError(
                    f"{where} cannot be loaded: {type(error).__name__}: {error}; mend or uninstall it"
                ) from error
        self._entries |= found
        self._plugins_loaded = True
