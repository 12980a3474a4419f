"""Evaluations that outlast a search, in a file of JSON lines: later searches of the same run measure nothing again.

An evaluation belongs to a subnet, the weights of the supernet, the images, the size of their batches, on which the last
digits of a loss depend, and the precision of its products, which is float32 where a line has none. Lines of others stay
in the file and match nothing. What has been measured on more images replaces what has been measured on fewer. A search
reads from here only what it would measure, so its result does not depend on what the file holds. One that ranks by
divergence finds only the records that hold divergences; these answer for accuracies, too.
"""

from __future__ import annotations

import json
from pathlib import Path

from hwmodel.errors import DamagedInputError
from hwmodel.files import append_line, write_atomic
from search.config import Signal
from search.record import Record
from supernet.stores import Precision


class EvaluationCache:
    """The records of one supernet on one validation split, by digest of the subnet.

    Args:
        path: the file; it is made by the first record.
        checkpoint: digest of the weights.
        data: digest of the validation split.
        batch_size: of the batches.
        precision: of the products; see `supernet.stores`.
        signal: what records must tell.

    Raises:
        DamagedInputError: a line of the file is no evaluation. The last one may lack its end, as a kill leaves it, and
            is then cut off.
    """

    def __init__(
        self,
        path: Path,
        *,
        checkpoint: str,
        data: str,
        batch_size: int,
        precision: Precision = "float32",
        signal: Signal = "accuracy",
    ) -> None:
        self._path = path
        self._key = {"checkpoint": checkpoint, "data": data, "batch_size": batch_size, "precision": precision}
        self._records: dict[str, Record] = {}
        for number, line in enumerate(whole_lines(path), start=1):
            try:
                row = {"precision": "float32"} | json.loads(line)
                record, subnet = Record.from_dict(row), str(row["subnet"])
                matches = all(row[name] == value for name, value in self._key.items())
            except (ValueError, KeyError, TypeError) as error:
                raise DamagedInputError(
                    f"{path}:{number}: is not an evaluation ({type(error).__name__}: {error}); remove the line, or the "
                    "file to measure anew"
                ) from None
            if matches and (signal == "accuracy" or record.divergence is not None) and self._adds(subnet, record):
                self._records[subnet] = record

    def get(self, subnet: str) -> Record | None:
        """What is known of the subnet with this digest."""
        return self._records.get(subnet)

    def put(self, subnet: str, record: Record) -> None:
        """Keeps a record and writes it down, unless as much is known already."""
        if self._adds(subnet, record):
            self._records[subnet] = record
            append_line(self._path, json.dumps({"subnet": subnet} | self._key | record.to_dict()))

    def _adds(self, subnet: str, record: Record) -> bool:
        known = self._records.get(subnet)
        return known is None or len(known.looks) < len(record.looks)


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
