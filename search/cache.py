"""Evaluations that outlast a search, in a file of JSON lines: later searches of the same run measure nothing again.

An evaluation belongs to a subnet, the weights of the supernet, the images and the size of their batches, on which the
last digits of a loss depend. Lines of others stay in the file and match nothing. What has been measured on more images
replaces what has been measured on fewer. A search reads from here only what it would measure, so its result does not
depend on what the file holds.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwmodel.errors import DamagedInputError
from hwmodel.files import append_line, write_atomic
from search.racing import Bits
from supernet.evaluate import Evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What a subnet does on the first n images of the validation split, or on all of them if it is `complete`.

    Attributes:
        correct: (n,) the images that it gets right.
        looks: (images, cross-entropy summed over them) after 1, 2, 4, … batches, and at last after all n images.
    """

    correct: Bits
    looks: tuple[tuple[int, float], ...]
    complete: bool

    def __post_init__(self) -> None:
        images = [count for count, _ in self.looks]
        if not images or images != sorted(images) or not 0 < images[-1] == len(self.correct):
            raise ValueError(f"looks after {images} images do not fit {len(self.correct)} images")

    @property
    def evaluation(self) -> Evaluation:
        """Accuracy and loss on the n images."""
        images, loss = self.looks[-1]
        return Evaluation(accuracy=int(self.correct.sum()) / images, loss=loss / images, images=images)

    def until(self, look: int) -> Record:
        """What was known after so many looks, 1 or more."""
        if look == len(self.looks):
            return self
        return Record(correct=self.correct[: self.looks[look - 1][0]], looks=self.looks[:look], complete=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` gives an equal record back."""
        return {
            "images": len(self.correct),
            "complete": self.complete,
            "correct": base64.b64encode(np.packbits(self.correct).tobytes()).decode(),
            "looks": self.looks,
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Record:
        """Raises `KeyError`, `TypeError` or `ValueError` for anything that is no record."""
        packed = np.frombuffer(base64.b64decode(data["correct"], validate=True), dtype=np.uint8)
        images = int(data["images"])
        if len(packed) != -(-images // 8):
            raise ValueError(f"{len(packed)} bytes do not hold {images} images")
        return Record(
            correct=np.unpackbits(packed, count=images).astype(np.bool_),
            looks=tuple((int(count), float(loss)) for count, loss in data["looks"]),
            complete=bool(data["complete"]),
        )


class EvaluationCache:
    """The records of one supernet on one validation split, by digest of the subnet.

    Args:
        path: the file; it is made by the first record.
        checkpoint: digest of the weights.
        data: digest of the validation split.
        batch_size: of the batches.

    Raises:
        DamagedInputError: a line of the file is no evaluation. The last one may lack its end, as a kill leaves it, and
            is then cut off.
    """

    def __init__(self, path: Path, *, checkpoint: str, data: str, batch_size: int) -> None:
        self._path = path
        self._key = {"checkpoint": checkpoint, "data": data, "batch_size": batch_size}
        self._records: dict[str, Record] = {}
        for number, line in enumerate(whole_lines(path), start=1):
            try:
                row = json.loads(line)
                record, subnet = Record.from_dict(row), str(row["subnet"])
                matches = all(row[name] == value for name, value in self._key.items())
            except (ValueError, KeyError, TypeError) as error:
                raise DamagedInputError(
                    f"{path}:{number}: is not an evaluation ({type(error).__name__}: {error}); remove the line, or the "
                    "file to measure anew"
                ) from None
            if matches:
                self._records[subnet] = record

    def get(self, subnet: str) -> Record | None:
        """What is known of the subnet with this digest."""
        return self._records.get(subnet)

    def put(self, subnet: str, record: Record) -> None:
        """Keeps a record and writes it down, unless as much is known already."""
        known = self._records.get(subnet)
        if known is None or len(known.looks) < len(record.looks):
            self._records[subnet] = record
            append_line(self._path, json.dumps({"subnet": subnet} | self._key | record.to_dict()))


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that grows; a last one without its end, as a kill leaves it, is cut off. None without a file.

    Raises:
        DamagedInputError: it is not text.
    """
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DamagedInputError(f"{path}: cannot be read as text ({error}); remove it to search anew") from None
    whole, _, rest = text.rpartition("\n")
    if rest:
        write_atomic(path, whole + "\n" if whole else "")
    return whole.splitlines()
