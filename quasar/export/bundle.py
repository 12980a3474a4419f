"""An exported subnet as a folder that says everything about itself, and that is either whole or refused.

    manifest.json       what was exported from what, rows and scales of each layer, accuracies, cost, versions, which
                        forms of the network are in, and size and sha256 of all other files (see `MANIFEST_SCHEMA`)
    config.json         all that the network and its input need: subnet, data, normalization, classes, and the scales
                        that the integer network adds to the subnet's own (`supernet.integer_vit.IntegerRanges`)
    model.safetensors   the integer weight codes, scales, biases and activation scales of `SubnetViT`
    subnet.yaml         the architecture alone, for `quasar hw estimate`
    vectors.npz         golden vectors: `images`, codes of some training images (N, C, H, W), `logits`, codes of theirs
                        (N, classes), and `tensors/<layer>`, what every layer gives for the first image
    cost.json           the predicted cost on the device, layer by layer, and the accelerator
    README.md           a model card

All other files are forms of the network for other programs, see `quasar.export.formats`. docs/bundle.md describes every
file and field. The manifest holds a digest of itself, so that `load_bundle` notices a change of any byte in any file.
`quasar.export.write` writes bundles.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.errors import DamagedInputError, UsageError
from hwmodel.integer_vector import Operation
from quasar.export.manifest import (
    CONFIG,
    COST,
    MANIFEST,
    VECTORS,
    WEIGHTS,
    BundleConfig,
    FileRecord,
    Manifest,
    read_bytes,
    read_config,
    read_json,
    read_manifest,
)
from quasar.export.source import TENSORS
from supernet.integer_vit import IntegerViT
from supernet.standalone import SubnetViT

#: folders of this name hold what the Makefiles of a bundle have made, and are no part of it
BUILD_FOLDER = "build"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A bundle whose files were as its manifest says when it was loaded."""

    folder: Path
    config: BundleConfig
    manifest: Manifest

    def module(self) -> SubnetViT:
        """The network in torch, on the CPU; raises `DamagedInputError`."""
        path = self.folder / WEIGHTS
        try:
            state = safetensors.torch.load_file(path)
        except (SafetensorError, OSError) as error:
            raise DamagedInputError(f"{path}: cannot be read as weights ({error}); export again") from None
        module = SubnetViT(self.config.subnet, layer_scale=self.config.layer_scale)
        module.load(state, source=str(path))
        return module.eval()

    def integer_network(self) -> IntegerViT:
        """The network in the arithmetic of the hardware; raises `DamagedInputError`."""
        return IntegerViT.of(self.module(), self.config.integer)

    def vectors(self) -> tuple[NDArray[np.int8], NDArray[np.int16]]:
        """Golden vectors: codes of images (N, C, H, W) and of their logits (N, classes); raises `DamagedInputError`."""
        arrays = self._vectors()
        return arrays["images"], arrays["logits"]

    def golden_tensors(self) -> dict[str, NDArray[Any]]:
        """What every layer gives for the first golden image; raises `DamagedInputError`.

        `quasar.export.onnx_int.expected_tensors` says by which names.
        """
        arrays = self._vectors()
        return {name.removeprefix(TENSORS): array for name, array in arrays.items() if name.startswith(TENSORS)}

    def _vectors(self) -> dict[str, NDArray[Any]]:
        path = self.folder / VECTORS
        try:
            with np.load(path) as file:
                arrays = dict(file)
            return {"images": arrays.pop("images"), "logits": arrays.pop("logits")} | arrays
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DamagedInputError(f"{path}: cannot be read as golden vectors ({error}); export again") from None

    def accelerator(self) -> tuple[AcceleratorConfig, int]:
        """The accelerator that the subnet was exported for, and its cycles for one image there."""
        content, _ = read_json(self.folder / COST)
        return AcceleratorConfig.from_dict(content["accelerator"]), content["cost"]["cycles"]

    def operations(self) -> dict[str, list[Operation]]:
        """All that the hardware does for the first golden image: of each layer, its operations with their integers.

        Raises:
            DamagedInputError: a file cannot be read, or the logits are not those of the golden vectors.
        """
        images, logits = self.vectors()
        layers: dict[str, list[Operation]] = {}
        computed = self.integer_network()(
            images[:1], lambda name, operation: layers.setdefault(name, []).append(operation)
        )
        if not np.array_equal(computed, logits[:1]):
            raise DamagedInputError(f"{self.folder / VECTORS}: are not the logits of this network; export again")
        return layers


def load_bundle(folder: Path) -> Bundle:
    """Reads and checks a bundle.

    Raises:
        UsageError: there is no such folder.
        DamagedInputError: a file is missing, truncated, changed, of a newer format or not of the bundle; the message
            names it.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such bundle; give a folder that `quasar export` wrote")
    manifest = read_manifest(folder / MANIFEST)
    for name, record in manifest.files.items():
        _check_file(folder / name, record)
    for name in files_of(folder):
        if name != MANIFEST and name not in manifest.files:
            raise DamagedInputError(f"{folder / name}: is not of this bundle; remove it, or export again")
    return Bundle(folder=folder, config=read_config(folder / CONFIG), manifest=manifest)


def files_of(folder: Path) -> dict[str, int]:
    """Bytes of all files of a bundle, by their paths in it, in order; without what its Makefiles have built."""
    found = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != BUILD_FOLDER]
        for name in names:
            path = Path(place, name)
            found[path.relative_to(folder).as_posix()] = path.stat().st_size
    return dict(sorted(found.items()))


def _check_file(path: Path, record: FileRecord) -> None:
    content = read_bytes(path)
    if len(content) != record.bytes:
        raise DamagedInputError(f"{path}: has {len(content)} bytes, the manifest says {record.bytes}; export again")
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise DamagedInputError(f"{path}: was changed after the export; export again")
