"""What has been measured of one subnet, image by image: what races compare and `search.cache` keeps."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supernet.evaluate import Evaluation

Bits = NDArray[np.bool_]
Floats = NDArray[np.float32]

#: of a divergence in a file, whatever the machine
_FLOAT32 = np.dtype("<f4")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What a subnet does on the first n images of the validation split, or on all of them if it is `complete`.

    Attributes:
        correct: (n,) the images that it gets right.
        looks: (images, cross-entropy summed over them) after 1, 2, 4, … batches, and at last after all n images.
        divergence: (n,) Kullback-Leibler divergence in nats of its shares of the classes from those of the float
            reference (`search.measurer`), where that was measured.
    """

    correct: Bits
    looks: tuple[tuple[int, float], ...]
    complete: bool
    divergence: Floats | None = None

    def __post_init__(self) -> None:
        images = [count for count, _ in self.looks]
        if not images or images != sorted(images) or not 0 < images[-1] == len(self.correct):
            raise ValueError(f"looks after {images} images do not fit {len(self.correct)} images")
        if self.divergence is not None and len(self.divergence) != len(self.correct):
            raise ValueError(f"divergences of {len(self.divergence)} images do not fit {len(self.correct)} images")

    @property
    def evaluation(self) -> Evaluation:
        """Accuracy and loss on the n images."""
        images, loss = self.looks[-1]
        return Evaluation(accuracy=int(self.correct.sum()) / images, loss=loss / images, images=images)

    @property
    def kl(self) -> float | None:
        """The mean divergence over the n images in nats."""
        return None if self.divergence is None else float(self.divergence.mean(dtype=np.float64))

    def until(self, look: int) -> Record:
        """What was known after so many looks, 1 or more."""
        if look == len(self.looks):
            return self
        images = self.looks[look - 1][0]
        return Record(
            correct=self.correct[:images],
            looks=self.looks[:look],
            complete=False,
            divergence=None if self.divergence is None else self.divergence[:images],
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` gives an equal record back."""
        data = {
            "images": len(self.correct),
            "complete": self.complete,
            "correct": base64.b64encode(np.packbits(self.correct).tobytes()).decode(),
            "looks": self.looks,
        }
        if self.divergence is None:
            return data
        return data | {"divergence": base64.b64encode(self.divergence.astype(_FLOAT32).tobytes()).decode()}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Record:
        """Raises `KeyError`, `TypeError` or `ValueError` for anything that is no record."""
        packed = np.frombuffer(base64.b64decode(data["correct"], validate=True), dtype=np.uint8)
        images = int(data["images"])
        if len(packed) != -(-images // 8):
            raise ValueError(f"{len(packed)} bytes do not hold {images} images")
        divergence = None
        if "divergence" in data:
            read = np.frombuffer(base64.b64decode(data["divergence"], validate=True), dtype=_FLOAT32)
            divergence = read.astype(np.float32)
        return Record(
            correct=np.unpackbits(packed, count=images).astype(np.bool_),
            looks=tuple((int(count), float(loss)) for count, loss in data["looks"]),
            complete=bool(data["complete"]),
            divergence=divergence,
        )
