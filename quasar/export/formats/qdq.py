"""`qdq`: the network in QDQ form for ONNX Runtime, fast, from float images to float logits."""

from __future__ import annotations

from collections.abc import Mapping

from quasar.export.checks import Accuracy, Begin, Inspection, Subject
from quasar.export.onnx_qdq import ONNX_OPERATORS, build_qdq, weight_bytes
from quasar.export.onnx_session import open_session
from quasar.export.optional import require
from quasar.export.source import Source

QDQ_ONNX = "model_qdq.onnx"


class Qdq:
    """See `quasar.export.onnx_qdq`."""

    name = "qdq"
    summary = "for ONNX Runtime, fast: float images to float logits"
    packages = ("onnx",)
    extra = "export"
    needs: tuple[str, ...] = ()
    operators = ONNX_OPERATORS

    @property
    def checks(self) -> Mapping[str, Begin]:
        """Its accuracy is about the subnet's."""
        return {"QDQ top-1": _accuracy}

    def files(self, source: Source) -> dict[str, bytes]:
        """The model."""
        return {QDQ_ONNX: build_qdq(source.module).SerializeToString(deterministic=True)}


def _accuracy(subject: Subject) -> Inspection:
    path = subject.bundle.folder / QDQ_ONNX
    session = open_session(path)
    return Accuracy(
        lambda batch: session.run(["logits"], {"images": batch.images})[0],
        prefix="onnx",
        figures={"onnx_weight_bytes": weight_bytes(require("onnx").load(path))},
    )
