"""What `quasar verify` is made of: checks that see the images of a split batch by batch, and their verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import UsageError
from hwmodel.integer import Int8Array
from quasar.export.bundle import Bundle
from supernet.integer_vit import IntegerViT
from supernet.lowering import lower
from supernet.standalone import SubnetViT

#: how far the accuracies of two forms of a network may lie apart, in points of per cent
TOLERANCE_POINTS = 0.3
#: where the rounding differs on purpose, so many images may differ in any case: on a small split one image is more than
#: the tolerance
TOLERATED_IMAGES = 3
#: multiply-accumulates that a slow form may spend on a split: the whole of a small one for small networks, 32 images of
#: 224 pixels for DeiT-tiny
SLOW_MACS = 4e10

Figures = Mapping[str, float | int | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What came of a check; `detail` says what was compared, what differs, or what is missing for it.

    `figures` are for scripts. Names of different checks differ.
    """

    status: Literal["passed", "FAILED", "not checked"]
    detail: str
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Images of a split and what the network makes of them.

    Attributes:
        images: normalised and of the subnet's size, float32 (N, C, S, S).
        labels: (N,).
        outputs: logits of the extracted subnet, float64 (N, classes).
        codes: of the images, int8 (N, C, S, S).
        logits: of the integer network, int16 codes (N, classes).
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    outputs: NDArray[np.float64]
    codes: Int8Array
    logits: NDArray[np.int16]

    def first(self, limit: int | None, *, seen: int) -> Batch:
        """What is within the first `limit` images of the split, of which `seen` came before."""
        if limit is None:
            return self
        kept = slice(max(limit - seen, 0))
        return Batch(**{field.name: getattr(self, field.name)[kept] for field in fields(self)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A bundle under verification.

    Attributes:
        module: the extracted subnet.
        network: the integers that all exact checks compare with.
        tensors: what its layers give for the first golden image, see `quasar.export.onnx_int.expected_tensors`.
        simulate: whether checks by simulation of the RTL were asked for: they take minutes.
    """

    bundle: Bundle
    module: SubnetViT
    network: IntegerViT
    tensors: Mapping[str, NDArray[Any]]
    simulate: bool

    @property
    def few_images(self) -> int:
        """How many images a slow form is run on."""
        return max(1, int(SLOW_MACS / lower(self.bundle.config.subnet).macs))

    @property
    def golden_images(self) -> Int8Array:
        """Codes of the golden images (N, C, S, S)."""
        return self.bundle.vectors()[0]


class Inspection(Protocol):
    """A check under way: `see` gets every batch of the split in turn, then `verdict` ends it."""

    def see(self, batch: Batch) -> None:
        """Takes a batch in."""
        ...

    def verdict(self) -> Verdict:
        """What came of it all."""
        ...


#: begins a check, or ends it at once if it needs no images; raises `UsageError` with what helps if a tool is missing
Begin = Callable[[Subject], Inspection | Verdict]


@dataclass(kw_only=True, slots=True)
class Tally:
    """Of some images: right labels, labels and logits that are those of a reference, and how far logits are from it."""

    images: int = 0
    correct: int = 0
    agreed: int = 0
    equal: int = 0
    largest: float = 0.0
    mean: float = 0.0

    def add(self, logits: NDArray[Any], labels: NDArray[Any], reference: NDArray[Any]) -> None:
        """A batch: logits (N, classes), its labels (N,), and the logits to compare with."""
        difference = np.abs(logits.astype(np.float64) - reference)
        before = self.images
        self.images += len(labels)
        self.correct += int((logits.argmax(axis=1) == labels).sum())
        self.agreed += int((logits.argmax(axis=1) == reference.argmax(axis=1)).sum())
        self.equal += int((difference == 0).all(axis=1).sum())
        self.largest = max(self.largest, float(difference.max()))
        self.mean += (float(difference.mean()) - self.mean) * (self.images - before) / self.images

    @property
    def accuracy(self) -> float:
        """Share of the images with the right label."""
        return self.correct / self.images

    @property
    def agreement(self) -> float:
        """Share of the images with the label of the reference."""
        return self.agreed / self.images


class Accuracy:
    """Inspection of a form whose rounding is not the subnet's: its accuracy over the split may differ by little.

    Args:
        run: logits as values (N, classes) of a batch.
        images: so many images may differ in any case.
        prefix: of the names of its figures.
        limit: only the first so many images of the split.
        figures: more of them.
    """

    def __init__(
        self,
        run: Callable[[Batch], NDArray[Any]],
        *,
        images: int = 0,
        prefix: str,
        limit: int | None = None,
        figures: Figures = MappingProxyType({}),
    ) -> None:
        self._run, self._images, self._prefix, self._limit, self._figures = run, images, prefix, limit, figures
        self._own, self._subnet = Tally(), Tally()

    def see(self, batch: Batch) -> None:
        """Runs the form."""
        batch = batch.first(self._limit, seen=self._own.images)
        if not len(batch.labels):
            return
        self._own.add(self._run(batch), batch.labels, batch.outputs)
        self._subnet.add(batch.outputs, batch.labels, batch.outputs)

    def verdict(self) -> Verdict:
        """Whether the difference is tolerated."""
        own = self._own
        points = 100 * (own.accuracy - self._subnet.accuracy)
        tolerance = max(TOLERANCE_POINTS, 100 * self._images / own.images)
        slack = 1e-9  # 3 of 1,000 images are no more than 0.3 points
        figures = {
            "accuracy": own.accuracy,
            "difference_points": points,
            "agreement": own.agreement,
            "max_logit_difference": own.largest,
            "mean_logit_difference": own.mean,
        }
        return Verdict(
            status="passed" if abs(points) <= tolerance + slack else "FAILED",
            detail=f"{own.accuracy:.2%} of {own.images:,} images, {points:+.2f} points from the extracted subnet "
            f"({tolerance:.2f} tolerated)",
            figures={f"{self._prefix}_{name}": value for name, value in figures.items()} | dict(self._figures),
        )


def begun(begin: Begin, subject: Subject) -> Inspection | Verdict:
    """The check, or the verdict that something is missing for it."""
    try:
        return begin(subject)
    except UsageError as error:
        return Verdict(status="not checked", detail=str(error))
