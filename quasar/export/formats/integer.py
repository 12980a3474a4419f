"""`integer`: the network in the integers of the hardware, as ONNX that is exact in any runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.integer import Int8Array
from quasar.export.checks import Batch, Begin, Subject, Tally, Verdict
from quasar.export.onnx_int import INTEGER_OPERATORS, build_integer, watched
from quasar.export.onnx_session import open_session
from quasar.export.optional import require
from quasar.export.source import Source

INTEGER_ONNX, INTEGER_ONNX_INT8 = "model_int.onnx", "model_int8.onnx"
#: of the split, for onnx.reference, which is slow
REFERENCE_IMAGES = 64

#: gives the outputs of a model for codes of images
Runner = Callable[[Int8Array], list[NDArray[Any]]]


class Integer:
    """See `quasar.export.onnx_int`."""

    name = "integer"
    summary = "the integers of the hardware, exact, for any ONNX runtime: int8 codes to int16 codes"
    packages = ("onnx",)
    extra = "export"
    needs: tuple[str, ...] = ()
    operators = INTEGER_OPERATORS

    @property
    def checks(self) -> Mapping[str, Begin]:
        """Every tensor, and the logits of many images, are the same in two runtimes."""
        return {
            "integers in ONNX Runtime": partial(Runtime, start=_onnx_runtime, prefix="integer_onnx"),
            "integers in onnx.reference": partial(
                Runtime, start=_reference, prefix="reference", limit=REFERENCE_IMAGES
            ),
        }

    def files(self, source: Source) -> dict[str, bytes]:
        """The model with INT4, and one without for runtimes that do not know that type."""
        return {
            name: build_integer(source.network, int4=int4).SerializeToString(deterministic=True)
            for name, int4 in ((INTEGER_ONNX, True), (INTEGER_ONNX_INT8, False))
        }


class Runtime:
    """Inspection: whether both models give the network's integers in a runtime.

    Args:
        start: a runner of the model of this file, for the tensors of some names or else the logits.
        prefix: of the names of its figures.
        limit: only the first so many images of the split.
    """

    def __init__(
        self,
        subject: Subject,
        *,
        start: Callable[[Subject, str, list[str] | None], Runner],
        prefix: str,
        limit: int | None = None,
    ) -> None:
        self._subject, self._start, self._prefix, self._limit = subject, start, prefix, limit
        self._run = start(subject, INTEGER_ONNX, None)
        self._tally = Tally()

    def see(self, batch: Batch) -> None:
        """Runs the model with INT4."""
        batch = batch.first(self._limit, seen=self._tally.images)
        if len(batch.codes):
            self._tally.add(self._run(batch.codes)[0], batch.labels, batch.logits)

    def verdict(self) -> Verdict:
        """Compares all tensors of the golden image too, of both models."""
        tally, expected = self._tally, self._subject.tensors
        wrong = []
        for file in (INTEGER_ONNX, INTEGER_ONNX_INT8):
            found = self._start(self._subject, file, list(expected))(self._subject.golden_images[:1])
            wrong += [
                f"{tensor} of {file}"
                for (tensor, wanted), array in zip(expected.items(), found, strict=True)
                if array.dtype != wanted.dtype or not np.array_equal(array.reshape(-1), wanted.reshape(-1))
            ]
        figures = {f"{self._prefix}_accuracy": tally.accuracy, f"{self._prefix}_images": tally.images}
        if wrong or tally.equal < tally.images:
            tensors = f"{len(wrong)} tensors, the first is {wrong[0]}" if wrong else "no tensor of the golden image"
            detail = f"not NumPy's: {tensors}; logits of {tally.images - tally.equal:,} of {tally.images:,} images"
            return Verdict(status="FAILED", detail=detail, figures=figures)
        return Verdict(
            status="passed",
            detail=f"{len(expected)} tensors of both files and the logits of {tally.images:,} images are NumPy's; "
            f"top-1 {tally.accuracy:.2%}",
            figures=figures,
        )


def _onnx_runtime(subject: Subject, file: str, names: list[str] | None) -> Runner:
    require("onnx")  # nobody can look into a model without it
    path = subject.bundle.folder / file
    session = open_session(path) if names is None else open_session(path, lambda model: watched(model, names))
    return lambda codes: session.run(None, {"images": codes})


def _reference(subject: Subject, file: str, names: list[str] | None) -> Runner:
    model = require("onnx").load(subject.bundle.folder / file)
    evaluator = require("onnx.reference").ReferenceEvaluator(model if names is None else watched(model, names))
    return lambda codes: evaluator.run(None, {"images": codes})
