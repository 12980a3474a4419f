"""Packages that only an export needs: imported where they are used, with the command that installs them."""

from __future__ import annotations

import importlib
from typing import Any

from hwmodel.errors import UsageError


def require(name: str, *, extra: str = "export") -> Any:
    """The module `name`; raises `UsageError` with the pip command, for that extra, if it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"the package '{name}' cannot be imported ({error}); install it with: pip install 'quasar-nas[{extra}]'"
        ) from None
