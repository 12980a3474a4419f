"""Compiles the kernel of a bundle by g++ and runs it on images.

The program is kept under `$XDG_CACHE_HOME/quasar/hls` (or `~/.cache`), named by a hash of all that it is made of.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import QuasarError
from hwmodel.integer import Int8Array
from hwmodel.rtl_build import run, tool
from quasar.export.hls_kernel import PROGRAM
from supernet.integer_vit import Int16Array

#: pragmas are for Vitis
FLAGS = ("-std=c++17", "-O2", "-Wno-unknown-pragmas")
#: requantization factors of tokens, mantissa and shift
_FACTOR = "factor"


@dataclass(frozen=True, kw_only=True, slots=True)
class HlsKernel:
    """A compiled kernel and the weights.bin that it reads."""

    program: Path
    weights: Path

    def logits(self, codes: Int8Array) -> Int16Array:
        """Codes of the logits (B, classes) of images (B, C, S, S); raises `QuasarError` if the program fails."""
        return self._run(codes)[0]

    def tensors(self, codes: Int8Array) -> dict[str, NDArray[Any]]:
        """What every layer gives for the first of these images, as `quasar.export.onnx_int.expected_tensors`.

        Raises:
            QuasarError: the program fails.
        """
        logits, data = self._run(codes[:1])
        parts: dict[str, list[NDArray[Any]]] = {}
        at = 0
        while at < len(data):
            end = data.index(b"\n", at)
            name, kind, rows, columns = data[at:end].decode().split()
            values = np.frombuffer(data, dtype="<i4", count=int(rows) * int(columns), offset=end + 1)
            at = end + 1 + values.nbytes
            values = values.reshape(int(rows), int(columns))
            own = np.ldexp(values[:, 0].astype(np.float64), -values[:, 1]) if kind == _FACTOR else values.astype(kind)
            parts.setdefault(name, []).append(own)
        return {name: np.concatenate(own) for name, own in parts.items()} | {"logits": logits}

    def _run(self, codes: Int8Array) -> tuple[Int16Array, bytes]:
        """Logits of all images, and the tensors of the first one as the program writes them."""
        with tempfile.TemporaryDirectory(prefix="quasar-") as folder:
            images, logits, tensors = (Path(folder, name) for name in ("images", "logits", "tensors"))
            images.write_bytes(codes.astype("<i1").tobytes())
            paths = (self.weights, images, logits, tensors)
            run([str(self.program), "write", *map(str, paths)], what="the HLS kernel")
            found = np.fromfile(logits, dtype="<i2").astype(np.int16)
            return found.reshape(len(codes), -1), tensors.read_bytes()


def build_hls(folder: Path) -> HlsKernel:
    """The kernel in a bundle's folder `hls`, compiled now or before; its weights are `weights.bin` beside the folder.

    Raises:
        UsageError: g++ is missing; the message says how to install it.
        QuasarError: it refuses the sources, or the cache cannot be written.
    """
    compiler = tool("g++", package="g++")
    digest = hashlib.sha256(" ".join((*FLAGS, run([compiler, "--version"], what="g++"))).encode())
    for source in sorted((*folder.glob("*.h"), *folder.glob("*.cpp"))):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quasar" / "hls"
    program = cache / digest.hexdigest()[:24]
    if not program.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix=".build-") as part:
                built = Path(part, "bench")
                sources = [str(folder / name) for name in PROGRAM]
                run([compiler, *FLAGS, "-o", str(built), *sources], what="the build of the HLS kernel")
                built.rename(program)
        except OSError as error:
            raise QuasarError(f"{cache}: cannot be written: {error.strerror or error}; set XDG_CACHE_HOME") from error
    return HlsKernel(program=program, weights=folder.parent / "weights.bin")
