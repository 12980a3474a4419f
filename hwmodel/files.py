"""Files that are either whole or absent (written beside their place, flushed to disk, renamed), and logs that grow."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from hwmodel.errors import RefusedError

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT


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
            file = os.open(path, _APPEND, 0o666)  # a search does so for each subnet: a file object takes half again
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, _APPEND, 0o666)
        try:
            rest = f"{line}\n".encode()
            while rest:
                rest = rest[os.write(file, rest) :]
        finally:
            os.close(file)
    except OSError as error:
        raise RefusedError(f"{path}: cannot be written: {error.strerror or error}; what it held is kept") from error
