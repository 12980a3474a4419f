"""Files that are either whole or absent (written beside their place, flushed to disk, renamed), and logs that grow."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from hwmodel.errors import RefusedError


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes `path` so that a kill or a full disk leaves the old file or the new one, never a part.

    Raises:
        RefusedError: the system refused (no space, no permission); the old file is untouched.
    """
    content = data.encode() if isinstance(data, str) else data
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise RefusedError(
            f"{path}: cannot be written: {error.strerror or error}; what was there before is untouched"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def append_line(path: Path, line: str) -> None:
    """Adds a line to a text file, which is made if there is none; a kill or a full disk may leave a part of the line.

    Raises:
        RefusedError: the system refused (no space, no permission).
    """
    try:
        try:
            file = path.open("a", encoding="utf-8")
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a", encoding="utf-8")
        with file:
            file.write(line + "\n")
    except OSError as error:
        raise RefusedError(f"{path}: cannot be written: {error.strerror or error}; what it held is kept") from error
