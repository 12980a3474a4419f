"""`qonnx`: the network with its quantizers as QONNX nodes, for FINN, hls4ml and their kin."""

from __future__ import annotations

from collections.abc import Mapping

from quasar.export.checks import Accuracy, Begin, Inspection, Subject
from quasar.export.onnx_qdq import ONNX_OPERATORS
from quasar.export.optional import require
from quasar.export.qonnx_model import build_qonnx, run_qonnx
from quasar.export.source import Source

QONNX = "model_qonnx.onnx"


class Qonnx:
    """See `quasar.export.qonnx_model`."""

    name = "qonnx"
    summary = "its quantizers as QONNX nodes, for tools that read that dialect: float images to float logits"
    # Written where it can be verified, too: for a network of DeiT-tiny's size it takes 23 MB, half of a bundle.
    packages = ("onnx", "qonnx")
    extra = "qonnx"
    needs: tuple[str, ...] = ()
    operators = ONNX_OPERATORS

    @property
    def checks(self) -> Mapping[str, Begin]:
        """Its accuracy in qonnx is about the subnet's."""
        return {"QONNX top-1": _accuracy}

    def files(self, source: Source) -> dict[str, bytes]:
        """The model."""
        return {QONNX: build_qonnx(source.module).SerializeToString(deterministic=True)}


def _accuracy(subject: Subject) -> Inspection:
    require("qonnx.core.onnx_exec", extra="qonnx")
    model = require("onnx").load(subject.bundle.folder / QONNX)
    return Accuracy(lambda batch: run_qonnx(model, batch.images), images=1, prefix="qonnx", limit=subject.few_images)
