"""ONNX Runtime on the CPU, set so that products of 8-bit numbers are exact."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hwmodel.errors import QuasarError
from quasar.export.optional import require


def open_session(path: Path, change: Callable[[Any], Any] | None = None) -> Any:
    """An `onnxruntime.InferenceSession` of a model file of a bundle, from "images" to "logits".

    Args:
        change: gives the `onnx.ModelProto` to load in place of the model's.

    Raises:
        UsageError: onnxruntime, or for a change onnx, is missing.
        QuasarError: it refuses the model.
    """
    ort, options = require("onnxruntime"), session_options()
    source: Any = path
    if change is not None:
        source = change(require("onnx").load(path)).SerializeToString()
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the classes of onnxruntime share no other base
        raise QuasarError(
            f"{path}: onnxruntime {ort.__version__} cannot load it ({' '.join(str(error).split())}); "
            "try: pip install -U 'quasar-nas[export]'"
        ) from error


def session_options() -> Any:
    """Options of a session whose products of 8-bit numbers are exact; raises `UsageError` if onnxruntime is missing."""
    options = require("onnxruntime").SessionOptions()
    if not _has_exact_int8_products():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _has_exact_int8_products() -> bool:
    """Whether the CPU is known to add products of 8-bit numbers without saturating, as x86 without VNNI does.

    Where it saturates, `session.x64quantprecision` makes ONNX Runtime choose other kernels, half as fast.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
