"""Writes bundles: everything is made first, written beside its place, and renamed when it is complete.

So a killed export leaves no bundle, at most a folder whose name starts with a dot, which can be deleted.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import cast

import safetensors.torch
import yaml
from torch import Tensor

from hwmodel.errors import QuasarError, UsageError
from quasar.export.card import model_card
from quasar.export.formats.base import Format
from quasar.export.formats.packed import PACKED
from quasar.export.formats.registry import choose_formats, unknown_operator
from quasar.export.manifest import (
    CARD,
    CONFIG,
    COST,
    FORMAT_VERSION,
    MANIFEST,
    SUBNET,
    VECTORS,
    WEIGHTS,
    BundleConfig,
    CodeRecord,
    FileRecord,
    LayerRecord,
    Manifest,
    TimmConfig,
    json_text,
)
from quasar.export.source import BundleInfo, Source
from quasar.export.timm_config import ARCHITECTURE, timm_config
from supernet.integer_vit import IntegerRanges
from supernet.lowering import lower
from supernet.standalone import SubnetBlock, SubnetViT
from supernet.subnet import Subnet
from supernet.validation import validate

#: figures of the cost that the manifest repeats
_COST_KEYS = ("latency_ms", "fps", "cycles", "dsp", "bram18", "lut", "ff", "energy_mj")
_PACKAGES = ("quasar-nas", "torch", "numpy")


def write_bundle(
    module: SubnetViT,
    folder: Path,
    *,
    info: BundleInfo,
    images: Tensor,
    formats: Sequence[Format] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the bundle of an extracted subnet and gives its folder.

    Args:
        images: normalised training images (N, C, H, W), from which the scales of the integer network come. The first
            ones become golden vectors.
        formats: the forms of the network to write, see `choose_formats`; by default all those of its default that know
            the subnet's operators.
        overwrite: replace the bundle that `folder` holds, once the new one is complete.

    Raises:
        UsageError: `folder` exists and is not to be, or must not be, overwritten; the subnet cannot be exported, or not
            in one of `formats`.
        QuasarError: the disk refused, or weights are not what they must be. Nothing is left behind, and an old bundle
            stays.
    """
    folder = folder.absolute()
    if folder.exists():
        if not overwrite:
            raise UsageError(f"{folder}: exists already; replace it with --overwrite, or choose another folder")
        if not (folder / MANIFEST).is_file():
            raise UsageError(f"{folder}: is no bundle (it has no {MANIFEST}), so it is not overwritten")
    contents = _contents(Source.of(module, info, images), _fitting(formats, module.subnet))
    part, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{suffix}") for suffix in ("part", "old"))
    shutil.rmtree(part, ignore_errors=True)  # of a killed process that had the same number
    try:
        for name, content in contents.items():
            path = part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        part.rename(folder)
    except BaseException as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        if isinstance(error, OSError):
            raise QuasarError(
                f"{folder}: cannot be written: {error.strerror or error}; nothing was left behind"
            ) from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def _fitting(formats: Sequence[Format] | None, subnet: Subnet) -> Sequence[Format]:
    """The forms to write; raises `UsageError` if one of `formats` does not know an operator of the subnet."""
    if formats is None:
        return [form for form in choose_formats() if unknown_operator(form, subnet) is None]
    for form in formats:
        if reason := unknown_operator(form, subnet):
            raise UsageError(f"format '{form.name}' is {reason}; leave it out")
    return formats


def _contents(source: Source, formats: Sequence[Format]) -> dict[str, bytes]:
    """All files of a bundle by their paths, the manifest last: made before anything is written."""
    info, subnet = source.info, source.module.subnet
    of_formats = {form.name: form.files(source) for form in formats}
    cost = {"device": info.device, "accelerator": info.accelerator.to_dict(), "cost": info.cost.to_dict()}
    card = model_card(
        subnet,
        cost=info.cost,
        device=Path(info.device).stem,
        target=_target_text(info),
        accuracies={"validation": info.val_accuracy, "test": info.test_accuracy},
        training_image_size=info.training_image_size,
        forms=[(form.summary, list(of_formats[form.name])) for form in formats],
    )
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in source.module.state_dict().items()}
    contents = {
        CONFIG: json_text(asdict(_config(source)) | {"subnet": subnet.to_dict()}).encode(),
        WEIGHTS: safetensors.torch.save(state),
        VECTORS: source.vectors,
        SUBNET: yaml.safe_dump(subnet.to_dict(), sort_keys=False).encode(),
        COST: json_text(cost).encode(),
        CARD: card.encode(),
    }
    for files in of_formats.values():
        contents |= files
    manifest = _manifest(source, contents, {name: tuple(files) for name, files in of_formats.items()})
    # As it will be read, so that an int in place of a float does not look like damage then.
    manifest = validate(Manifest, asdict(manifest), source=MANIFEST)
    return contents | {MANIFEST: manifest.to_text().encode()}


def _config(source: Source) -> BundleConfig:
    info, subnet = source.info, source.module.subnet
    return BundleConfig(
        format_version=FORMAT_VERSION,
        architecture=ARCHITECTURE,
        num_classes=subnet.num_classes,
        num_features=subnet.embed_dim,
        pretrained_cfg=TimmConfig(
            **timm_config(
                subnet,
                data=info.data,
                mean=info.mean,
                std=info.std,
                training_image_size=info.training_image_size,
            )
        ),
        subnet=subnet,
        layer_scale=any(name.endswith("scale1") for name in source.module.state_dict()),
        data=info.data,
        mean=info.mean,
        std=info.std,
        classes=info.classes,
        training_image_size=info.training_image_size,
        integer=source.ranges,
    )


def _manifest(source: Source, contents: dict[str, bytes], formats: dict[str, tuple[str, ...]]) -> Manifest:
    info, subnet = source.info, source.module.subnet
    return Manifest(
        format_version=FORMAT_VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        latency_ms=info.latency_ms,
        fps=info.fps,
        device=info.device,
        cost={key: value for key, value in info.cost.to_dict().items() if key in _COST_KEYS},
        subnet_digest=subnet.digest,
        checkpoint_digest=info.checkpoint_digest,
        data_digests=info.data_digests,
        val_accuracy=info.val_accuracy,
        test_accuracy=info.test_accuracy,
        layers={
            gemm.name: LayerRecord(
                inputs=gemm.inputs,
                rows_high=gemm.rows_high,
                rows_low=gemm.rows_low,
                high_bits=subnet.high_bits,
                low_bits=subnet.low_bits,
            )
            for gemm in lower(subnet).gemms
            if gemm.stored
        },
        codes=_codes(source.module, source.ranges),
        weights=source.packed[1] if source.packed and PACKED in contents else None,
        formats=formats,
        versions={"python": platform.python_version()} | {package: version(package) for package in _PACKAGES},
        files={
            name: FileRecord(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in contents.items()
        },
    )


def _codes(module: SubnetViT, ranges: IntegerRanges) -> dict[str, CodeRecord]:
    """The scales of all tensors between layers."""
    sites = [("", module.sites)]
    scales = {"residual": ranges.residual, "logits": ranges.logits}
    for index, (child, scores) in enumerate(zip(module.blocks, ranges.scores, strict=True)):
        block = cast(SubnetBlock, child)
        sites += [(f"blocks.{index}.", block.sites), (f"blocks.{index}.", block.mixer_sites)]
        if scores is not None:
            scales[f"blocks.{index}.scores"] = scores
    return {name: CodeRecord(scale=scale, zero_point=0) for name, scale in scales.items()} | {
        f"{prefix}{name}": CodeRecord(scale=scale, zero_point=round(zero_point))
        for prefix, own in sites
        for name, scale, zero_point in zip(own.names, own.scale.tolist(), own.zero_point.tolist(), strict=True)
    }


def _target_text(info: BundleInfo) -> str:
    if info.latency_ms is not None:
        return f"at most {info.latency_ms:g} ms"
    return f"at least {info.fps:g} frames per second" if info.fps is not None else "none"
