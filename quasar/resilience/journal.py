"""What has been measured, one line each, so that a study that is stopped goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hwmodel.errors import DamagedInputError, UsageError
from hwmodel.files import append_line, write_atomic

#: what has been measured, in the folder of a study
JOURNAL = "measured.jsonl"
#: all that a study writes
FILES = (JOURNAL, "resilience.json", "resilience.png")


class Journal:
    """Results by key in a file of JSON lines, the first of which says what they depend on.

    Raises:
        UsageError: the file is of other settings; the message names the first one that differs.
        DamagedInputError: a line is damaged. A last line without its end, as a kill leaves it, is cut off.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path = path
        self._known: dict[str, Any] = {}
        if not path.exists():
            append_line(path, json.dumps({"settings": settings}))
            return
        number = 0
        try:
            whole, _, rest = path.read_text(encoding="utf-8").rpartition("\n")
            lines = whole.splitlines()
            number = 1
            earlier = dict(json.loads(lines[0])["settings"]) if lines else settings
            for number, line in enumerate(lines[1:], start=2):  # noqa: B007  (named by the error)
                row = json.loads(line)
                self._known[row["key"]] = row["result"]
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedInputError(f"{path}: line {number} is damaged ({error}); remove the line") from None
        if not lines:
            write_atomic(path, json.dumps({"settings": settings}) + "\n")
        elif rest:
            write_atomic(path, whole + "\n")
        for key in sorted(earlier.keys() | settings.keys()):
            if earlier.get(key) != settings.get(key):
                raise UsageError(
                    f"{path}: was measured with {key} {earlier.get(key)}, not {settings.get(key)}; give that again, "
                    "another --out, or --overwrite"
                )

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Any | None:
        """What was measured under this key; None if nothing was."""
        return self._known.get(key)

    def add(self, key: str, result: Any) -> None:
        """Keeps a result, of plain values."""
        append_line(self._path, json.dumps({"key": key, "result": result}))
        self._known[key] = result
