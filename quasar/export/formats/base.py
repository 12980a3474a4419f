"""What a form of an exported network is: files for other programs, and the checks that `quasar verify` makes of them.

A new form is one module in this folder and one line in `quasar.export.formats.registry`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from quasar.export.checks import Begin
from quasar.export.source import Source


class Format(Protocol):
    """One form of an exported network.

    At export, `files` is called if the form was asked for, or by default if all `packages` are installed. When a bundle
    is verified, `checks` are begun for a form that the bundle holds.
    """

    @property
    def name(self) -> str:
        """As `--format` takes it."""
        ...

    @property
    def summary(self) -> str:
        """What it is and for which programs, a few words for the model card."""
        ...

    @property
    def packages(self) -> tuple[str, ...]:
        """Modules that must be importable to write it."""
        ...

    @property
    def extra(self) -> str:
        """The extra of this package that installs them."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Forms whose files its own refer to."""
        ...

    @property
    def operators(self) -> tuple[str, ...]:
        """Operators of blocks that it knows."""
        ...

    @property
    def checks(self) -> Mapping[str, Begin]:
        """What is to be checked, by the names that are shown."""
        ...

    def files(self, source: Source) -> dict[str, bytes]:
        """The files by their paths in the bundle; raises `UsageError` if the subnet has no such form."""
        ...
