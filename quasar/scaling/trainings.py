"""Trainings of single networks, each noted in a journal when it is done, so that none is done twice.

{"digest": "…", "seed": 0, "settings": "…", "validation": {"accuracy": 0.91, "loss": 0.3, "images": 287}, "test": null}
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from hwmodel.errors import DamagedInputError, UsageError
from hwmodel.files import append_line, write_atomic
from supernet.evaluate import Evaluation

#: digest of the network, and the seed of its training
Key = tuple[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What a training came to, on the validation split and, where it was asked for, on the test images."""

    validation: Evaluation
    test: Evaluation | None


class TrainingJournal:
    """What has been trained with the same settings on the same images."""

    def __init__(self, path: Path, *, settings: str) -> None:
        """Reads what there is; what a kill left half written is cut off.

        Args:
            settings: digest of all that a training depends on beside the network and the seed.

        Raises:
            UsageError: the journal is of other settings.
            DamagedInputError: a line that cannot be one of a journal.
        """
        self._path, self._settings = path, settings
        self._known: dict[Key, Trained] = {}
        whole, _, rest = (path.read_text(encoding="utf-8") if path.exists() else "").rpartition("\n")
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                test = None if row["test"] is None else Evaluation(**row["test"])
                found = Trained(validation=Evaluation(**row["validation"]), test=test)
                key, of = (str(row["digest"]), int(row["seed"])), row["settings"]
            except (ValueError, KeyError, TypeError) as error:
                raise DamagedInputError(
                    f"{path}: line {number} is damaged ({error!r}); remove the line, or start over with --overwrite"
                ) from None
            if of != settings:
                raise UsageError(
                    f"{path}: line {number} is of other settings or images than the configuration has; restore them, "
                    "choose another name with name=…, or start over with --overwrite"
                )
            self._known[key] = found
        if rest:
            write_atomic(path, whole + "\n" if whole else "")

    def get(self, key: Key) -> Trained | None:
        """The result of a training that is done."""
        return self._known.get(key)

    def add(self, key: Key, trained: Trained) -> None:
        """Notes a training."""
        row = {"digest": key[0], "seed": key[1], "settings": self._settings, **asdict(trained)}
        append_line(self._path, json.dumps(row))
        self._known[key] = trained
