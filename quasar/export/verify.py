"""Is a bundle what it says? Its files against each other, and its forms in other programs against the subnet.

What can be exact is: all integers are those of the integer network in NumPy. The accuracies of forms whose roundings
differ from the subnet's have a tolerance. A check whose tool is missing is named as not checked, and never as passed;
so is a form that the bundle does not hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray

from hwmodel.errors import DamagedInputError, UsageError
from quasar.export.bundle import Bundle, files_of
from quasar.export.checks import TOLERATED_IMAGES, Accuracy, Batch, Begin, Inspection, Subject, Tally, Verdict, begun
from quasar.export.formats.registry import FORMATS, unknown_operator
from quasar.export.manifest import MANIFEST, MANIFEST_SCHEMA, VECTORS
from quasar.export.onnx_int import expected_tensors
from quasar.export.optional import require
from supernet.config import Progress
from supernet.data.splits import Split
from supernet.functional import resize_images
from supernet.integer_vit import IntegerViT
from supernet.lowering import lower


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """How the forms of a bundle compare on one split.

    Attributes:
        torch_accuracy: top-1 of the extracted subnet as a share in [0, 1].
        recorded_accuracy: what the manifest says of this split, None if it says nothing of it.
        weight_bytes: weights of the subnet, each row at its own precision.
        file_bytes: size of each file of the bundle.
        checks: what came of them, by name and in their order.
    """

    images: int
    torch_accuracy: float
    recorded_accuracy: float | None
    weight_bytes: int
    file_bytes: dict[str, int]
    checks: Mapping[str, Verdict]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.status != "FAILED" for check in self.checks.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the figures of all checks among them."""
        content = {key: value for key, value in asdict(self).items() if key != "checks"}
        for check in self.checks.values():
            content |= check.figures
        return content | {
            "passed": self.passed,
            "not_checked": sum(check.status == "not checked" for check in self.checks.values()),
            "checks": [
                {"name": name, "status": check.status, "detail": check.detail} for name, check in self.checks.items()
            ],
        }


@torch.inference_mode()
def verify_bundle(
    bundle: Bundle, split: Split, *, batch_size: int = 256, simulate: bool = False, progress: Progress | None = None
) -> VerifyReport:
    """All checks, on the CPU: accuracies over the whole split, the tensors of layers on golden images.

    Args:
        simulate: also simulate the RTL on all operations of one image, which takes minutes.
        progress: counts images of the split.

    Raises:
        UsageError: the split does not fit the bundle.
        DamagedInputError: an image cannot be read, or a file is not what it should be; the message names it.
        QuasarError: a runtime refuses a model, or a simulation breaks off.
    """
    _check_fits(bundle, split)
    subnet, module, network = bundle.config.subnet, bundle.module(), bundle.integer_network()
    subject = Subject(
        bundle=bundle,
        module=module,
        network=network,
        tensors=_golden(bundle, network),
        simulate=simulate,
    )
    checks: dict[str, Inspection | Verdict] = {}
    for name, begin in _all_checks(bundle).items():
        if progress is not None:
            progress(0, len(split), name)
        checks[name] = begun(begin, subject)
    extracted = Tally()
    for x_BCHW, y_B in split.batches(batch_size):
        resized = resize_images(x_BCHW, subnet.image_size).contiguous()
        codes = network.quantize_images(resized)
        batch = Batch(
            images=resized.numpy(),
            labels=y_B.numpy(),
            outputs=module(resized).numpy().astype(np.float64),
            codes=codes,
            logits=network(codes),
        )
        extracted.add(batch.outputs, batch.labels, batch.outputs)
        for check in checks.values():
            if not isinstance(check, Verdict):
                check.see(batch)
        if progress is not None:
            progress(extracted.images, len(split), "")
    return VerifyReport(
        images=extracted.images,
        torch_accuracy=extracted.accuracy,
        recorded_accuracy=(
            bundle.manifest.test_accuracy if split.digest == bundle.manifest.data_digests.get("test") else None
        ),
        weight_bytes=lower(subnet).weight_bytes,
        file_bytes=files_of(bundle.folder),
        checks={name: check if isinstance(check, Verdict) else check.verdict() for name, check in checks.items()},
    )


def _all_checks(bundle: Bundle) -> dict[str, Begin]:
    """Those of every bundle, then those of each form; of a form that is not in this one, what would add it."""
    checks: dict[str, Begin] = {
        "files": _check_files,
        "schema": _check_schema,
        "golden vectors": _check_vectors,
        "integer top-1": _integer_accuracy,
        "timm module": _TimmModule,
    }
    for name, form in FORMATS.items():
        absent = partial(_absent, name)
        held = name in bundle.manifest.formats
        checks |= {check: begin if held else absent for check, begin in form.checks.items()}
    return checks


def _absent(name: str, subject: Subject) -> Verdict:
    reason = unknown_operator(FORMATS[name], subject.bundle.config.subnet)
    remedy = f"not in this bundle; to have it: quasar export RUN --format {name}"
    return Verdict(status="not checked", detail=reason or remedy)


def _check_files(subject: Subject) -> Verdict:
    """`load_bundle` has done it."""
    number = len(subject.bundle.manifest.files)
    return Verdict(status="passed", detail=f"{number} files are as {MANIFEST} says")


def _check_schema(subject: Subject) -> Verdict:
    jsonschema, manifest = require("jsonschema"), subject.bundle.manifest
    schema = json.loads(files("quasar.export").joinpath(MANIFEST_SCHEMA).read_text(encoding="utf-8"))
    document = json.loads(manifest.to_text())
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(document))
    if error is not None:
        path = subject.bundle.folder / MANIFEST
        raise DamagedInputError(f"{path}: {error.json_path}: {error.message}; export again")
    return Verdict(status="passed", detail=f"{MANIFEST} is as {MANIFEST_SCHEMA} demands")


def _check_vectors(subject: Subject) -> Verdict:
    """`_golden` has done it."""
    return Verdict(status="passed", detail=f"{len(subject.tensors)} tensors in {VECTORS} are NumPy's")


def _integer_accuracy(subject: Subject) -> Inspection:
    scale = subject.network.logit_scale
    return Accuracy(lambda batch: batch.logits * scale, images=TOLERATED_IMAGES, prefix="integer")


class _TimmModule:
    """Inspection: whether timm makes the extracted subnet of the folder, bit for bit."""

    def __init__(self, subject: Subject) -> None:
        import quasar.timm_model  # noqa: F401  (registers it)

        self._module = timm.create_model(f"local-dir:{subject.bundle.folder}")
        self._tally = Tally()

    def see(self, batch: Batch) -> None:
        """Runs it."""
        logits = self._module(torch.from_numpy(batch.images)).numpy()
        self._tally.add(logits, batch.labels, batch.outputs)

    def verdict(self) -> Verdict:
        """Whether all logits are equal."""
        tally = self._tally
        return Verdict(
            status="passed" if tally.equal == tally.images else "FAILED",
            detail=f"timm.create_model gives the logits of the extracted subnet for {tally.equal:,} of "
            f"{tally.images:,} images; top-1 {tally.accuracy:.2%}",
            figures={"timm_accuracy": tally.accuracy},
        )


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


def _check_fits(bundle: Bundle, split: Split) -> None:
    config = bundle.config
    for what, found, wanted in (
        ("channels", split.in_chans, config.subnet.in_chans),
        ("classes", split.num_classes, config.subnet.num_classes),
        ("normalization", tuple(split.normalization), (config.mean, config.std)),
    ):
        if found != wanted:
            raise UsageError(f"{bundle.folder}: is for data with {what} {wanted}, the data set given has {found}")
