"""All forms that an exported network can have, and which of them an export writes."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from hwmodel.errors import UsageError
from hwmodel.registry import unknown_name
from quasar.export.formats.base import Format
from quasar.export.formats.hls import Hls
from quasar.export.formats.integer import Integer
from quasar.export.formats.packed import Packed
from quasar.export.formats.qdq import Qdq
from quasar.export.formats.qonnx import Qonnx
from quasar.export.formats.rtl import Rtl
from supernet.subnet import Subnet

FORMATS: dict[str, Format] = {form.name: form for form in (Qdq(), Qonnx(), Integer(), Packed(), Hls(), Rtl())}


def choose_formats(names: Sequence[str] | None = None) -> tuple[Format, ...]:
    """The forms of these names and those that they need, in the order of the registry.

    Args:
        names: None for all whose packages are installed.

    Raises:
        UsageError: an unknown name, or a package of a form is missing; the message has the pip command.
    """
    if names is None:
        return tuple(form for form in FORMATS.values() if not _missing(form))
    chosen, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name not in FORMATS:
            raise unknown_name("format", name, FORMATS)
        form = FORMATS[name]
        missing = _missing(form)
        if missing:
            raise UsageError(
                f"format '{name}' needs the package '{missing[0]}', which is not installed; "
                f"install it with: {_install(form)}"
            )
        chosen.add(name)
        waiting += form.needs
    return tuple(form for name, form in FORMATS.items() if name in chosen)


def unknown_operator(form: Format, subnet: Subnet) -> str | None:
    """Why a form cannot hold a subnet, in a sentence; None if it can."""
    for block in subnet.blocks:
        if block.operator not in form.operators:
            return f"not available for the operator '{block.operator}', only for {', '.join(form.operators)}"
    return None


def left_out() -> dict[str, str]:
    """The forms that an export leaves out by default, and what would install their packages."""
    return {name: _install(form) for name, form in FORMATS.items() if _missing(form)}


def _install(form: Format) -> str:
    return f"pip install 'quasar-nas[{form.extra}]'"


def _missing(form: Format) -> list[str]:
    return [package for package in form.packages if importlib.util.find_spec(package) is None]
