"""Do the exported ONNX model and the integer network classify as the torch model does? All run over a whole split."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from hwmodel.errors import UsageError
from quasar.export.bundle import ONNX, Bundle
from quasar.export.onnx_qdq import weight_bytes
from quasar.export.optional import require
from supernet.config import Progress
from supernet.data.splits import Split
from supernet.functional import resize_images
from supernet.lowering import lower

#: how far the accuracies of the two may lie apart, in points of per cent
TOLERANCE_POINTS = 0.3
#: of the integer network, whose rounding differs on purpose, so many images may differ in any case: on a small split
#: one image is more than the tolerance
TOLERATED_IMAGES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """How the ONNX model and the integer network compare with the torch model on one split.

    Attributes:
        onnx_accuracy, torch_accuracy, integer_accuracy: top-1 as shares in [0, 1].
        recorded_accuracy: what the manifest says of this split, None if it says nothing of it.
        agreement, integer_agreement: share of the images to which ONNX model or integer network, and the torch model
            give the same label.
        max_logit_difference, mean_logit_difference: absolute, over all images and classes.
        weight_bytes: weights of the subnet, each row at its own precision.
        onnx_weight_bytes: the same in the ONNX file, where a row of up to 4 bits takes 4 and any other takes 8.
        file_bytes: size of each file of the bundle.
    """

    images: int
    onnx_accuracy: float
    torch_accuracy: float
    recorded_accuracy: float | None
    agreement: float
    integer_accuracy: float
    integer_agreement: float
    max_logit_difference: float
    mean_logit_difference: float
    weight_bytes: int
    onnx_weight_bytes: int
    file_bytes: dict[str, int]

    @property
    def difference_points(self) -> float:
        """ONNX accuracy less torch accuracy, in points of per cent."""
        return 100 * (self.onnx_accuracy - self.torch_accuracy)

    @property
    def integer_difference_points(self) -> float:
        """Accuracy of the integer network less torch accuracy, in points of per cent."""
        return 100 * (self.integer_accuracy - self.torch_accuracy)

    @property
    def passed(self) -> bool:
        """Whether the accuracies agree within `TOLERANCE_POINTS`, or within `TOLERATED_IMAGES` the integer one."""
        slack = 1e-9  # 3 of 1,000 images are no more than 0.3 points
        integer_tolerance = max(TOLERANCE_POINTS, 100 * TOLERATED_IMAGES / self.images)
        return (
            abs(self.difference_points) <= TOLERANCE_POINTS + slack
            and abs(self.integer_difference_points) <= integer_tolerance + slack
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {
            "difference_points": self.difference_points,
            "integer_difference_points": self.integer_difference_points,
            "passed": self.passed,
        }


@torch.inference_mode()
def verify_bundle(
    bundle: Bundle, split: Split, *, batch_size: int = 256, progress: Progress | None = None
) -> VerifyReport:
    """Runs all three over the whole split, on the CPU; `progress` counts images.

    Raises:
        UsageError: the split does not fit the bundle, or a package is missing.
        DamagedInputError: an image or the weights cannot be read.
    """
    _check_fits(bundle, split)
    subnet, session, module = bundle.config.subnet, bundle.session(), bundle.module()
    network = bundle.integer_network()
    bundle.operations()  # the golden vectors are those of this network
    images = onnx_correct = torch_correct = agreed = integer_correct = integer_agreed = 0
    largest = total = 0.0
    for x_BCHW, y_B in split.batches(batch_size):
        resized = resize_images(x_BCHW, subnet.image_size).contiguous()
        reference = module(resized).numpy()
        (logits,) = session.run(["logits"], {"images": resized.numpy()})
        labels, ours, theirs = y_B.numpy(), logits.argmax(axis=1), reference.argmax(axis=1)
        onnx_correct += int((ours == labels).sum())
        torch_correct += int((theirs == labels).sum())
        agreed += int((ours == theirs).sum())
        integer = network(network.quantize_images(resized)).argmax(axis=1)
        integer_correct += int((integer == labels).sum())
        integer_agreed += int((integer == theirs).sum())
        difference = np.abs(logits.astype(np.float64) - reference)
        largest, total = max(largest, float(difference.max())), total + float(difference.sum())
        images += len(labels)
        if progress is not None:
            progress(images, len(split), f"agreement {agreed / images:.2%}")
    recorded = bundle.manifest.test_accuracy if split.digest == bundle.manifest.data_digests.get("test") else None
    return VerifyReport(
        images=images,
        onnx_accuracy=onnx_correct / images,
        torch_accuracy=torch_correct / images,
        recorded_accuracy=recorded,
        agreement=agreed / images,
        integer_accuracy=integer_correct / images,
        integer_agreement=integer_agreed / images,
        max_logit_difference=largest,
        mean_logit_difference=total / (images * subnet.num_classes),
        weight_bytes=lower(subnet).weight_bytes,
        onnx_weight_bytes=weight_bytes(require("onnx").load(bundle.folder / ONNX)),
        file_bytes={path.name: path.stat().st_size for path in sorted(bundle.folder.iterdir()) if path.is_file()},
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
