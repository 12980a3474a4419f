"""Which runtime times operators on this host; each is loaded only if it is wanted."""

from __future__ import annotations

from hwmodel.errors import UsageError
from quasar.measuring.runtime import HostRuntime


def open_runtime(name: str, *, threads: int) -> HostRuntime:
    """The runtime called "onnxruntime" or "torch"; raises `UsageError` for another name or a missing package."""
    if name == "onnxruntime":
        from quasar.measuring.on_onnxruntime import OnnxRuntime

        return OnnxRuntime(threads)
    if name == "torch":
        from quasar.measuring.on_torch import TorchRuntime

        return TorchRuntime(threads)
    raise UsageError(f"--runtime must be onnxruntime or torch, not '{name}'")
