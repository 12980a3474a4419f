"""An exported subnet as a folder that says everything about itself, and that is either whole or refused.

    manifest.json       what was exported from what, rows and scales of each layer, accuracies, cost, versions, where
                        all lies in weights.bin, and size and sha256 of all other files (see `MANIFEST_SCHEMA`)
    config.json         all that the network and its input need: subnet, data, normalization, classes, and the scales
                        that the integer network adds to the subnet's own (`supernet.integer_vit.IntegerRanges`)
    model.safetensors   the integer weight codes, scales, biases and activation scales of `SubnetViT`
    model_qdq.onnx      the same network for ONNX Runtime, see `quasar.export.onnx_qdq`
    model_int.onnx      the network in the integers of the hardware, see `quasar.export.onnx_int`
    model_int8.onnx     the same without INT4, for runtimes that do not know that type
    weights.bin         its integers in the order of the accelerator's streams, see `quasar.export.weights_file`
    subnet.yaml         the architecture alone, for `quasar hw estimate`
    vectors.npz         golden vectors: `images`, codes of some training images (N, C, H, W), `logits`, codes of theirs
                        (N, classes), and `tensors/<layer>`, what every layer gives for the first image
    cost.json           the predicted cost on the device, layer by layer, and the accelerator
    README.md           a model card

docs/bundle.md describes every field. A bundle is written beside its place, under a name that starts with a dot, and
renamed when it is complete: a killed export leaves no bundle, at most such a folder, which can be deleted. The manifest
holds a digest of itself, so that `load_bundle` notices a change of any byte in any file.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.cost import CostEstimate
from hwmodel.errors import DamagedInputError, QuasarError, UsageError
from hwmodel.integer_vector import Operation
from quasar.export.card import model_card
from quasar.export.onnx_int import build_integer, expected_tensors
from quasar.export.onnx_qdq import build_qdq
from quasar.export.optional import require
from quasar.export.weights_file import WeightsIndex, pack_weights, unpack_weights
from supernet.data.config import DataConfig
from supernet.integer_vit import IntegerRanges, IntegerViT, find_ranges
from supernet.lowering import lower
from supernet.standalone import SubnetBlock, SubnetViT
from supernet.subnet import Subnet
from supernet.validation import validate

FORMAT = 3
MANIFEST, CONFIG, WEIGHTS, ONNX, INTEGER_ONNX, INTEGER_ONNX_INT8, PACKED, VECTORS, SUBNET, COST, CARD = (
    "manifest.json",
    "config.json",
    "model.safetensors",
    "model_qdq.onnx",
    "model_int.onnx",
    "model_int8.onnx",
    "weights.bin",
    "vectors.npz",
    "subnet.yaml",
    "cost.json",
    "README.md",
)
#: all files but the manifest
FILES = (CONFIG, WEIGHTS, ONNX, INTEGER_ONNX, INTEGER_ONNX_INT8, PACKED, VECTORS, SUBNET, COST, CARD)
#: in the package, beside this module
MANIFEST_SCHEMA = "manifest.schema.json"
#: images whose integer logits a bundle holds
GOLDEN_IMAGES = 4
#: figures of the cost that the manifest repeats
_COST_KEYS = ("latency_ms", "fps", "cycles", "dsp", "bram18", "lut", "ff", "energy_mj")
_TENSORS = "tensors/"
_PACKAGES = ("quasar-nas", "torch", "onnx", "numpy")


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleInfo:
    """What a bundle tells beside the network.

    Args:
        latency_ms, fps: the target that the subnet was chosen for; at most one is given.
        device: name or file of the device that `cost` is for.
        mean, std: normalization of pixels in [0, 1], per channel.
        classes: names by label, if known.
        training_image_size: pixels of the images that the data set gives; the network sees them resized to its own
            size, after normalization.
        checkpoint_digest: of the supernet, see `supernet.checkpoint.Checkpoint.digest`.
        data_digests: of the splits by name ("train", "val", "test").
        val_accuracy, test_accuracy: top-1 as shares in [0, 1], None where not measured.
    """

    latency_ms: float | None
    fps: float | None
    device: str
    cost: CostEstimate
    accelerator: AcceleratorConfig
    data: DataConfig
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] | None
    training_image_size: int
    checkpoint_digest: str
    data_digests: dict[str, str]
    val_accuracy: float | None
    test_accuracy: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleConfig:
    """The content of `config.json`; see `BundleInfo`."""

    __pydantic_config__ = {"extra": "forbid"}

    format_version: int
    subnet: Subnet
    layer_scale: bool
    data: DataConfig
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] | None
    training_image_size: int
    integer: IntegerRanges


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """What a file of a bundle must be."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRecord:
    """A linear with stored weights: its sizes, and how many of its rows have how many bits."""

    inputs: int
    rows_high: int
    rows_low: int
    high_bits: int
    low_bits: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeRecord:
    """A tensor of the network: a code q stands for the value (q - zero_point) * scale."""

    scale: float
    zero_point: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The content of `manifest.json` without its own digest; see `BundleInfo`.

    Attributes:
        created: time in ISO 8601, UTC.
        layers: by name, see `supernet.lowering`.
        codes: of the tensors between layers: "image", "residual", "logits", "norm", and of each block "norm1", "q",
            "k", "v", "scores", "mixed", "norm2", "fc1" and "gelu".
        weights: where everything lies in weights.bin.
    """

    __pydantic_config__ = {"extra": "forbid"}

    format_version: int
    created: str
    latency_ms: float | None
    fps: float | None
    device: str
    cost: dict[str, int | float]
    subnet_digest: str
    checkpoint_digest: str
    data_digests: dict[str, str]
    val_accuracy: float | None
    test_accuracy: float | None
    layers: dict[str, LayerRecord]
    codes: dict[str, CodeRecord]
    weights: WeightsIndex
    versions: dict[str, str]
    files: dict[str, FileRecord]

    def to_text(self) -> str:
        """The file's content: canonical, so that reading and writing it again shows any change."""
        content = asdict(self)
        content["digest"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return _json_text(content)


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

    def packed_network(self) -> IntegerViT:
        """The network that weights.bin holds; raises `DamagedInputError`."""
        path = self.folder / PACKED
        return unpack_weights(_read(path), self.manifest.weights, self.config.subnet, source=str(path))

    def vectors(self) -> tuple[NDArray[np.int8], NDArray[np.int16]]:
        """Golden vectors: codes of images (N, C, H, W) and of their logits (N, classes); raises `DamagedInputError`."""
        arrays = self._vectors()
        return arrays["images"], arrays["logits"]

    def golden_tensors(self) -> dict[str, NDArray[Any]]:
        """What every layer gives for the first golden image, see `expected_tensors`; raises `DamagedInputError`."""
        arrays = self._vectors()
        return {name.removeprefix(_TENSORS): array for name, array in arrays.items() if name.startswith(_TENSORS)}

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
        content, _ = _read_json(self.folder / COST)
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

    def session(self, name: str = ONNX, change: Callable[[Any], Any] | None = None) -> Any:
        """An `onnxruntime.InferenceSession` on the CPU of a model of the bundle, from "images" to "logits".

        Args:
            change: gives the `onnx.ModelProto` to load in place of the model's.

        Raises:
            UsageError: onnxruntime, or for a change onnx, is missing.
            QuasarError: it refuses the model.
        """
        ort = require("onnxruntime")
        options = ort.SessionOptions()
        if not _has_exact_int8_products():
            options.add_session_config_entry("session.x64quantprecision", "1")
        path = self.folder / name
        source: Any = path
        if change is not None:
            source = change(require("onnx").load(path)).SerializeToString()
        try:
            return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the classes of onnxruntime share no other base
            raise QuasarError(
                f"{path}: onnxruntime {ort.__version__} cannot load it ({' '.join(str(error).split())}); "
                "try: pip install -U 'quasar-nas[export]'"
            ) from error


def target_folder_name(*, latency_ms: float | None, fps: float | None) -> str:
    """The folder of a target: "latency-0.2ms" or "fps-5000"; raises ValueError unless exactly one is given."""
    if latency_ms is not None and fps is None:
        return f"latency-{np.format_float_positional(latency_ms, trim='-')}ms"
    if fps is not None and latency_ms is None:
        return f"fps-{np.format_float_positional(fps, trim='-')}"
    raise ValueError(f"a target is either a latency or a frame rate, not latency_ms={latency_ms} and fps={fps}")


def write_bundle(module: SubnetViT, folder: Path, *, info: BundleInfo, images: Tensor, overwrite: bool = False) -> Path:
    """Writes the bundle of an extracted subnet and gives its folder.

    Args:
        images: normalised training images (N, C, H, W), from which the scales of the integer network come. The first
            ones become golden vectors.
        overwrite: replace the bundle that `folder` holds, once the new one is complete.

    Raises:
        UsageError: `folder` exists and is not to be, or must not be, overwritten; the subnet cannot be exported; a
            package is missing.
        QuasarError: the disk refused, or weights are not finite. Nothing is left behind, and an old bundle stays.
    """
    folder = folder.absolute()
    if folder.exists():
        if not overwrite:
            raise UsageError(f"{folder}: exists already; choose another folder or allow to overwrite it")
        if not (folder / MANIFEST).is_file():
            raise UsageError(f"{folder}: is no bundle (it has no {MANIFEST}), so it is not overwritten")
    contents = _contents(module, info, images)
    part, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{suffix}") for suffix in ("part", "old"))
    shutil.rmtree(part, ignore_errors=True)  # of a killed process that had the same number
    try:
        part.mkdir(parents=True)
        for name, content in contents.items():
            with (part / name).open("wb") as file:
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


def load_bundle(folder: Path) -> Bundle:
    """Reads and checks a bundle.

    Raises:
        UsageError: there is no such folder.
        DamagedInputError: a file is missing, truncated, changed or of a newer format; the message names it.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such bundle; give a folder that `quasar export` wrote")
    manifest = _read_manifest(folder / MANIFEST)
    for name, record in manifest.files.items():
        _check_file(folder / name, record)
    path = folder / CONFIG
    config = validate(BundleConfig, _read_json(path)[0], source=str(path), error=DamagedInputError)
    return Bundle(folder=folder, config=config, manifest=manifest)


def _contents(module: SubnetViT, info: BundleInfo, images: Tensor) -> dict[str, bytes]:
    """All files of a bundle by name, the manifest last: made before anything is written."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise QuasarError(f"tensor '{name}' of the subnet is not finite: its training has diverged; train again")
    subnet = module.subnet
    model = build_qdq(module)
    ranges = find_ranges(module, images)
    network = IntegerViT.of(module, ranges)
    golden = network.quantize_images(images[:GOLDEN_IMAGES])
    arrays: dict[str, Any] = {"images": golden, "logits": network(golden)}
    arrays |= {f"{_TENSORS}{name}": array for name, array in expected_tensors(network, golden[:1]).items()}
    vectors = io.BytesIO()
    np.savez_compressed(vectors, **arrays)
    packed, index = pack_weights(network, info.accelerator)
    config = BundleConfig(
        format_version=FORMAT,
        subnet=subnet,
        layer_scale=any(name.endswith("scale1") for name in state),
        data=info.data,
        mean=info.mean,
        std=info.std,
        classes=info.classes,
        training_image_size=info.training_image_size,
        integer=ranges,
    )
    cost = {"device": info.device, "accelerator": info.accelerator.to_dict(), "cost": info.cost.to_dict()}
    card = model_card(
        subnet,
        cost=info.cost,
        device=Path(info.device).stem,
        target=_target_text(info),
        accuracies={"validation": info.val_accuracy, "test": info.test_accuracy},
        training_image_size=info.training_image_size,
    )
    contents = {
        CONFIG: _json_text(asdict(config) | {"subnet": subnet.to_dict()}).encode(),
        WEIGHTS: safetensors.torch.save(state),
        ONNX: model.SerializeToString(deterministic=True),
        INTEGER_ONNX: build_integer(network).SerializeToString(deterministic=True),
        INTEGER_ONNX_INT8: build_integer(network, int4=False).SerializeToString(deterministic=True),
        PACKED: packed,
        VECTORS: vectors.getvalue(),
        SUBNET: yaml.safe_dump(subnet.to_dict(), sort_keys=False).encode(),
        COST: _json_text(cost).encode(),
        CARD: card.encode(),
    }
    manifest = Manifest(
        format_version=FORMAT,
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
        codes=_codes(module, ranges),
        weights=index,
        versions={"python": platform.python_version()} | {package: version(package) for package in _PACKAGES},
        files={
            name: FileRecord(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in contents.items()
        },
    )
    # As it will be read, so that an int in place of a float does not look like damage then.
    manifest = validate(Manifest, asdict(manifest), source=MANIFEST)
    return contents | {MANIFEST: manifest.to_text().encode()}


def _codes(module: SubnetViT, ranges: IntegerRanges) -> dict[str, CodeRecord]:
    """The scales of all tensors between layers."""
    sites = [("", module.sites)]
    scales = {"residual": ranges.residual, "logits": ranges.logits}
    for index, (child, scores) in enumerate(zip(module.blocks, ranges.scores, strict=True)):
        block = cast(SubnetBlock, child)
        sites += [(f"blocks.{index}.", block.sites), (f"blocks.{index}.", block.mixer_sites)]
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


def _read_manifest(path: Path) -> Manifest:
    content, text = _read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("format_version"), int):
        raise DamagedInputError(f"{path}: is not the manifest of a bundle; export again")
    if content["format_version"] != FORMAT:
        raise DamagedInputError(
            f"{path}: has bundle format {content['format_version']}, this version of Quasar reads {FORMAT}; "
            "export again with this version, or use the one that wrote it"
        )
    content.pop("digest", None)
    manifest = validate(Manifest, content, source=str(path), error=DamagedInputError)
    if manifest.files.keys() != set(FILES) or manifest.to_text().encode() != text:
        raise DamagedInputError(f"{path}: was changed after the export; export again")
    return manifest


def _check_file(path: Path, record: FileRecord) -> None:
    content = _read(path)
    if len(content) != record.bytes:
        raise DamagedInputError(f"{path}: has {len(content)} bytes, the manifest says {record.bytes}; export again")
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise DamagedInputError(f"{path}: was changed after the export; export again")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DamagedInputError(f"{path}: is missing; export again") from None
    except OSError as error:
        raise DamagedInputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _read_json(path: Path) -> tuple[Any, bytes]:
    content = _read(path)
    try:
        return json.loads(content), content
    except ValueError as error:
        raise DamagedInputError(f"{path}: cannot be read as JSON ({error}); export again") from None


def _json_text(content: object) -> str:
    return json.dumps(content, indent=2) + "\n"


def _has_exact_int8_products() -> bool:
    """Whether the CPU is known to add products of 8-bit numbers without saturating, as x86 without VNNI does.

    Where it saturates, `session.x64quantprecision` makes ONNX Runtime choose other kernels, half as fast.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
