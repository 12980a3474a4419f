"""Checkpoints: one safetensors file with the weights, the optimizer's state, and what they belong to as metadata.

The metadata key `quasar` holds JSON: the format version, the space, supernet settings, the epochs and steps done, and
the digest of the training data. A file is written whole or not at all. Format 2 added a moving average of the weights
and rollbacks; files of format 1 have neither, and load.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hwmodel.errors import DamagedInputError, UsageError
from hwmodel.files import write_atomic
from supernet.config import SupernetConfig
from supernet.space import SearchSpace
from supernet.validation import validate
from supernet.vit import SupernetViT

FORMAT = 2
READABLE = (1, 2)
_MODEL, _TRAINED, _OPTIMIZER = "model.", "trained.", "optimizer."


@dataclass(frozen=True, kw_only=True, slots=True)
class _Metadata:
    """What a checkpoint says beside its tensors; see `Checkpoint`."""

    __pydantic_config__ = {"extra": "forbid"}

    space: SearchSpace
    supernet: SupernetConfig
    epoch: int
    step: int
    best_accuracy: float
    train_digest: str
    settings: dict[str, Any]
    rollbacks: int = 0
    loss_level: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The state of a training run after `epoch` epochs.

    Attributes:
        model: the weights to use: those in training, or their moving average where there is one.
        trained: the weights in training, where `model` is their moving average; else empty.
        optimizer: maps "parameter index.name" to the tensors of torch's optimizer state.
        rollbacks: how often training went back to an earlier checkpoint.
        loss_level: the smoothed loss against which spikes are seen.
    """

    space: SearchSpace
    supernet: SupernetConfig
    model: dict[str, Tensor]
    trained: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    epoch: int
    step: int
    best_accuracy: float
    train_digest: str
    settings: dict[str, Any]  # of the training, so that a resumed run can refuse other ones
    rollbacks: int = 0
    loss_level: float | None = None

    def save(self, path: Path) -> None:
        """Writes the checkpoint; raises `QuasarError` if the disk refuses, and keeps the file that was there."""
        tensors = {_MODEL + name: tensor for name, tensor in self.model.items()}
        tensors |= {_TRAINED + name: tensor for name, tensor in self.trained.items()}
        tensors |= {_OPTIMIZER + name: tensor for name, tensor in self.optimizer.items()}
        about = {
            "format": FORMAT,
            "space": self.space.to_dict(),
            "supernet": asdict(self.supernet),
            "epoch": self.epoch,
            "step": self.step,
            "best_accuracy": self.best_accuracy,
            "train_digest": self.train_digest,
            "settings": self.settings,
            "rollbacks": self.rollbacks,
            "loss_level": self.loss_level,
        }
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_atomic(path, safetensors.torch.save(contiguous, metadata={"quasar": json.dumps(about)}))

    @staticmethod
    def load(path: Path) -> Checkpoint:
        """Reads a checkpoint to the CPU.

        Raises:
            UsageError: there is no such file.
            DamagedInputError: it is truncated, of another program, or of a newer format.
        """
        if not path.is_file():
            raise UsageError(f"{path}: no such checkpoint; train first with `quasar train`")
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("quasar", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        except (SafetensorError, OSError, ValueError) as error:
            raise DamagedInputError(
                f"{path}: is not a whole safetensors file ({error}); use another checkpoint or train again"
            ) from None
        if not isinstance(about, dict) or "format" not in about:
            raise DamagedInputError(f"{path}: is not a checkpoint of a Quasar supernet (no 'quasar' metadata)")
        if about["format"] not in READABLE:
            raise DamagedInputError(
                f"{path}: has checkpoint format {about['format']}, this version reads "
                f"{', '.join(map(str, READABLE))}; use the version of Quasar that wrote it"
            )
        about = {key: value for key, value in about.items() if key != "format"}
        known = validate(_Metadata, about, source=f"{path} (metadata)", error=DamagedInputError)
        model, trained, optimizer = (
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            for prefix in (_MODEL, _TRAINED, _OPTIMIZER)
        )
        return Checkpoint(
            space=known.space,
            supernet=known.supernet,
            model=model,
            trained=trained,
            optimizer=optimizer,
            epoch=known.epoch,
            step=known.step,
            best_accuracy=known.best_accuracy,
            train_digest=known.train_digest,
            settings=known.settings,
            rollbacks=known.rollbacks,
            loss_level=known.loss_level,
        )

    @property
    def digest(self) -> str:
        """Sixteen hex digits over the weights: equal for equal supernets."""
        content = hashlib.sha256()
        for name in sorted(self.model):
            content.update(name.encode())
            content.update(self.model[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return content.hexdigest()[:16]

    def build(self, *, source: str, to_train: bool = False) -> SupernetViT:
        """The supernet with these weights; `source` names the file in errors.

        Args:
            to_train: with the weights in training, even where `model` is their moving average.
        """
        model = SupernetViT(self.space, layer_scale=self.supernet.layer_scale)
        if self.supernet.scales == "learned":
            model.learn_scales()
        try:
            model.load_state_dict((self.trained or self.model) if to_train else self.model)
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise DamagedInputError(f"{source}: the weights do not fit the space they claim: {first}") from None
        return model
