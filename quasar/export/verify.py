"""Is a bundle what it says? Its files against each other, and its models in other runtimes against the subnet.

What can be exact is: the packed weights and the golden vectors are those of the integer network, and every tensor of
the integer ONNX models is the same in NumPy, in ONNX Runtime and in onnx.reference. The accuracies of the fast ONNX
model and of the integer network, whose roundings differ from the subnet's, have a tolerance. A check whose tool is
missing is named as not checked, and never as passed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.resources import files
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from hwmodel.errors import DamagedInputError, UsageError
from quasar.export.bundle import (
    COST,
    FILES,
    INTEGER_ONNX,
    INTEGER_ONNX_INT8,
    MANIFEST,
    MANIFEST_SCHEMA,
    ONNX,
    PACKED,
    VECTORS,
    Bundle,
)
from quasar.export.onnx_int import expected_tensors, watched
from quasar.export.onnx_qdq import weight_bytes
from quasar.export.optional import require
from quasar.export.weights_file import first_difference
from quasar.rtl_check import check_layers
from supernet.config import Progress
from supernet.data.splits import Split
from supernet.functional import resize_images
from supernet.integer_vit import IntegerViT
from supernet.lowering import lower

#: how far the accuracies of the two may lie apart, in points of per cent
TOLERANCE_POINTS = 0.3
#: of the integer network, whose rounding differs on purpose, so many images may differ in any case: on a small split
#: one image is more than the tolerance
TOLERATED_IMAGES = 3
#: of the split, for onnx.reference, which is slow
REFERENCE_IMAGES = 64

T = TypeVar("T")
#: gives the outputs of an integer ONNX model for codes of images
Runner = Callable[[NDArray[np.int8]], list[NDArray[Any]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What came of one check; `detail` says what was compared, what differs, or what is missing for it."""

    name: str
    status: Literal["passed", "FAILED", "not checked"]
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """How the models of a bundle compare on one split. What was not checked is None.

    Attributes:
        torch_accuracy, onnx_accuracy, integer_accuracy, integer_onnx_accuracy: top-1 as shares in [0, 1] of the
            extracted subnet, of the fast ONNX model, and of the integer network in NumPy and in ONNX Runtime.
        reference_accuracy: the last one in onnx.reference, over `reference_images`.
        recorded_accuracy: what the manifest says of this split, None if it says nothing of it.
        agreement, integer_agreement: share of the images to which ONNX model or integer network, and the torch model
            give the same label.
        max_logit_difference, mean_logit_difference: absolute, of ONNX and torch model, over all images and classes.
        max_integer_logit_difference, mean_integer_logit_difference: the same of integer network and torch model.
        weight_bytes: weights of the subnet, each row at its own precision.
        onnx_weight_bytes: the same in the ONNX file, where a row of up to 4 bits takes 4 and any other takes 8.
        file_bytes: size of each file of the bundle.
        exact: the checks that have no tolerance.
        missing: why ONNX Runtime was not used, if it was not.
    """

    images: int
    torch_accuracy: float
    onnx_accuracy: float | None
    integer_accuracy: float
    integer_onnx_accuracy: float | None
    reference_accuracy: float | None
    reference_images: int
    recorded_accuracy: float | None
    agreement: float | None
    integer_agreement: float
    max_logit_difference: float | None
    mean_logit_difference: float | None
    max_integer_logit_difference: float
    mean_integer_logit_difference: float
    weight_bytes: int
    onnx_weight_bytes: int | None
    file_bytes: dict[str, int]
    exact: tuple[Check, ...]
    missing: str

    @property
    def difference_points(self) -> float | None:
        """ONNX accuracy less torch accuracy, in points of per cent."""
        return None if self.onnx_accuracy is None else 100 * (self.onnx_accuracy - self.torch_accuracy)

    @property
    def integer_difference_points(self) -> float:
        """Accuracy of the integer network less torch accuracy, in points of per cent."""
        return 100 * (self.integer_accuracy - self.torch_accuracy)

    @property
    def checks(self) -> tuple[Check, ...]:
        """All checks, in their order."""
        tolerance = max(TOLERANCE_POINTS, 100 * TOLERATED_IMAGES / self.images)
        of_integers = self._judge("integer top-1", self.integer_accuracy, self.integer_difference_points, tolerance)
        if self.onnx_accuracy is None or self.difference_points is None:
            return (*self.exact, of_integers, Check(name="QDQ top-1", status="not checked", detail=self.missing))
        of_onnx = self._judge("QDQ top-1", self.onnx_accuracy, self.difference_points, TOLERANCE_POINTS)
        return (*self.exact, of_integers, of_onnx)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.status != "FAILED" for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        content = asdict(self)
        del content["exact"], content["missing"]
        return content | {
            "difference_points": self.difference_points,
            "integer_difference_points": self.integer_difference_points,
            "passed": self.passed,
            "not_checked": sum(check.status == "not checked" for check in self.checks),
            "checks": [asdict(check) for check in self.checks],
        }

    def _judge(self, name: str, accuracy: float, points: float, tolerance: float) -> Check:
        slack = 1e-9  # 3 of 1,000 images are no more than 0.3 points
        return Check(
            name=name,
            status="passed" if abs(points) <= tolerance + slack else "FAILED",
            detail=f"{accuracy:.2%} of {self.images:,} images, {points:+.2f} points from the extracted subnet "
            f"({tolerance:.2f} tolerated)",
        )


@torch.inference_mode()
def verify_bundle(
    bundle: Bundle, split: Split, *, batch_size: int = 256, rtl: bool = False, progress: Progress | None = None
) -> VerifyReport:
    """All checks, on the CPU: the models over the whole split, the tensors of layers on golden images.

    Args:
        rtl: also simulate the RTL of the bundle's accelerator on all operations of one image.
        progress: counts images of the split.

    Raises:
        UsageError: the split does not fit the bundle.
        DamagedInputError: an image cannot be read, or a file is not what it should be; the message names it.
        QuasarError: a runtime refuses a model, or a simulation breaks off.
    """
    _check_fits(bundle, split)
    subnet, module, network = bundle.config.subnet, bundle.module(), bundle.integer_network()
    exact = [
        Check(name="files", status="passed", detail=f"{len(FILES)} files are as {MANIFEST} says"),
        _check_schema(bundle),
        _check_packed(bundle, network),
    ]
    expected = _golden(bundle, network)
    exact.append(
        Check(name="golden vectors", status="passed", detail=f"{len(expected)} tensors in {VECTORS} are NumPy's")
    )
    session, missing = _optional(bundle.session)
    runners = {name: _optional(partial(start, bundle, INTEGER_ONNX)) for name, start in _RUNTIMES.items()}
    extracted, fast, integer = _Tally(), _Tally(), _Tally()
    tallies = {name: _Tally() for name in runners}
    for x_BCHW, y_B in split.batches(batch_size):
        resized, labels = resize_images(x_BCHW, subnet.image_size).contiguous(), y_B.numpy()
        reference = module(resized).numpy().astype(np.float64)
        extracted.add(reference, labels, reference)
        codes = network.quantize_images(resized)
        logits = network(codes)
        integer.add(logits * network.logit_scale, labels, reference)
        if session is not None:
            fast.add(session.run(["logits"], {"images": resized.numpy()})[0], labels, reference)
        for name, (run, _) in runners.items():
            own = slice(REFERENCE_IMAGES - tallies[name].images if name == REFERENCE else len(codes))
            if run is not None and own.stop > 0:
                tallies[name].add(run(codes[own])[0], labels[own], logits[own])
        if progress is not None:
            progress(extracted.images, len(split), f"integer agreement {integer.share(integer.agreed):.2%}")
    for name, (_, reason) in runners.items():
        exact.append(_check_runtime(bundle, name, expected, tallies[name], missing=reason))
    if rtl:
        exact.append(_check_rtl(bundle))
    onnx, _ = _optional(partial(require, "onnx"))
    ran, referred = tallies[ONNX_RUNTIME], tallies[REFERENCE]
    return VerifyReport(
        images=extracted.images,
        torch_accuracy=extracted.share(extracted.correct),
        onnx_accuracy=fast.share(fast.correct) if session else None,
        integer_accuracy=integer.share(integer.correct),
        integer_onnx_accuracy=ran.share(ran.correct) if ran.images else None,
        reference_accuracy=referred.share(referred.correct) if referred.images else None,
        reference_images=referred.images,
        recorded_accuracy=(
            bundle.manifest.test_accuracy if split.digest == bundle.manifest.data_digests.get("test") else None
        ),
        agreement=fast.share(fast.agreed) if session else None,
        integer_agreement=integer.share(integer.agreed),
        max_logit_difference=fast.largest if session else None,
        mean_logit_difference=fast.share(fast.total) / subnet.num_classes if session else None,
        max_integer_logit_difference=integer.largest,
        mean_integer_logit_difference=integer.share(integer.total) / subnet.num_classes,
        weight_bytes=lower(subnet).weight_bytes,
        onnx_weight_bytes=weight_bytes(onnx.load(bundle.folder / ONNX)) if onnx else None,
        file_bytes={path.name: path.stat().st_size for path in sorted(bundle.folder.iterdir()) if path.is_file()},
        exact=tuple(exact),
        missing=missing,
    )


@dataclass(kw_only=True, slots=True)
class _Tally:
    """Of some images: right labels, labels and logits that are those of a reference, and how far logits are from it."""

    images: int = 0
    correct: int = 0
    agreed: int = 0
    equal: int = 0
    largest: float = 0.0
    total: float = 0.0

    def add(self, logits: NDArray[Any], labels: NDArray[Any], reference: NDArray[Any]) -> None:
        """A batch: logits (N, classes), its labels (N,), and the logits to compare with."""
        difference = np.abs(logits.astype(np.float64) - reference)
        self.images += len(labels)
        self.correct += int((logits.argmax(axis=1) == labels).sum())
        self.agreed += int((logits.argmax(axis=1) == reference.argmax(axis=1)).sum())
        self.equal += int((difference == 0).all(axis=1).sum())
        self.largest = max(self.largest, float(difference.max()))
        self.total += float(difference.sum())

    def share(self, number: float) -> float:
        """Of the images."""
        return number / self.images


def _optional(make: Callable[[], T]) -> tuple[T | None, str]:
    """What `make` gives; or None and what is missing for it, with the command that installs it."""
    try:
        return make(), ""
    except UsageError as error:
        return None, str(error)


def _check_schema(bundle: Bundle) -> Check:
    jsonschema, missing = _optional(partial(require, "jsonschema"))
    if jsonschema is None:
        return Check(name="schema", status="not checked", detail=missing)
    schema = json.loads(files("quasar.export").joinpath(MANIFEST_SCHEMA).read_text(encoding="utf-8"))
    document = json.loads(bundle.manifest.to_text())
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(document))
    if error is not None:
        raise DamagedInputError(f"{bundle.folder / MANIFEST}: {error.json_path}: {error.message}; export again")
    return Check(name="schema", status="passed", detail=f"{MANIFEST} is as {MANIFEST_SCHEMA} demands")


def _check_packed(bundle: Bundle, network: IntegerViT) -> Check:
    difference = first_difference(network, bundle.packed_network(), name="network")
    if difference is not None:
        raise DamagedInputError(f"{bundle.folder / PACKED}: holds other integers in {difference}; export again")
    return Check(name=PACKED, status="passed", detail="all its integers are those of the integer network")


def _golden(bundle: Bundle, network: IntegerViT) -> dict[str, NDArray[Any]]:
    """The tensors of all layers for the first golden image, which are those that the bundle holds."""
    images, logits = bundle.vectors()
    expected, held = expected_tensors(network, images[:1]), bundle.golden_tensors()
    wrong = [name for name, array in expected.items() if name not in held or not np.array_equal(array, held[name])]
    if wrong or not np.array_equal(network(images), logits):
        raise DamagedInputError(
            f"{bundle.folder / VECTORS}: {wrong[0] if wrong else 'logits'} is not that of this network; export again"
        )
    return expected


def _check_runtime(
    bundle: Bundle, name: str, expected: Mapping[str, NDArray[Any]], tally: _Tally, *, missing: str
) -> Check:
    """Whether the integer models give the same integers in a runtime: all tensors of a golden image, and all logits."""
    label = f"integers in {name}"
    if missing:
        return Check(name=label, status="not checked", detail=missing)
    wrong = []
    for file in (INTEGER_ONNX, INTEGER_ONNX_INT8):
        found = _RUNTIMES[name](bundle, file, list(expected))(bundle.vectors()[0][:1])
        wrong += [
            f"{tensor} of {file}"
            for (tensor, wanted), array in zip(expected.items(), found, strict=True)
            if array.dtype != wanted.dtype or not np.array_equal(array.reshape(-1), wanted.reshape(-1))
        ]
    if wrong or tally.equal < tally.images:
        tensors = f"{len(wrong)} tensors, the first is {wrong[0]}" if wrong else "no tensor of the golden image"
        detail = f"not NumPy's: {tensors}; logits of {tally.images - tally.equal:,} of {tally.images:,} images"
        return Check(name=label, status="FAILED", detail=detail)
    return Check(
        name=label,
        status="passed",
        detail=f"{len(expected)} tensors of both files and the logits of {tally.images:,} images are NumPy's; top-1 "
        f"{tally.share(tally.correct):.2%}",
    )


def _onnx_runtime(bundle: Bundle, file: str, names: list[str] | None = None) -> Runner:
    """Runs a model in ONNX Runtime, for the tensors of these names or the logits; raises `UsageError` without it."""
    require("onnx")  # nobody can look into a model without it
    session = bundle.session(file) if names is None else bundle.session(file, lambda model: watched(model, names))
    return lambda codes: session.run(None, {"images": codes})


def _reference(bundle: Bundle, file: str, names: list[str] | None = None) -> Runner:
    """The same in onnx.reference."""
    model = require("onnx").load(bundle.folder / file)
    evaluator = require("onnx.reference").ReferenceEvaluator(model if names is None else watched(model, names))
    return lambda codes: evaluator.run(None, {"images": codes})


ONNX_RUNTIME, REFERENCE = "ONNX Runtime", "onnx.reference"
_RUNTIMES = {ONNX_RUNTIME: _onnx_runtime, REFERENCE: _reference}


def _check_rtl(bundle: Bundle) -> Check:
    """Whether the RTL computes all operations of a golden image, in the cycles that the cost says."""
    config, cycles = bundle.accelerator()
    layers, missing = _optional(partial(check_layers, bundle.operations(), config, stall=0, seed=0, simulator="auto"))
    if layers is None:
        return Check(name="RTL", status="not checked", detail=missing)
    wrong = [name for name, layer in layers.items() if layer.mismatching_outputs]
    simulated = sum(layer.simulated_cycles for layer in layers.values())
    outputs = sum(layer.outputs for layer in layers.values())
    return Check(
        name="RTL",
        status="FAILED" if wrong or simulated != cycles else "passed",
        detail=f"{outputs:,} outputs of {len(layers)} layers, wrong in {', '.join(wrong) or 'none'}; "
        f"{simulated:,} cycles, {COST} says {cycles:,}",
    )


def _check_fits(bundle: Bundle, split: Split) -> None:
    config = bundle.config
    for what, found, wanted in (
        ("channels", split.in_chans, config.subnet.in_chans),
        ("classes", split.num_classes, config.subnet.num_classes),
        ("normalization", tuple(split.normalization), (config.mean, config.std)),
    ):
        if found != wanted:
            raise UsageError(f"{bundle.folder}: is for data with {what} {wanted}, the data set given has {found}")
