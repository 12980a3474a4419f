"""`manifest.json` and `config.json` of a bundle: what they hold, and reading them back with every change noticed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hwmodel.errors import DamagedInputError
from quasar.export.weights_file import WeightsIndex
from supernet.data.config import DataConfig
from supernet.integer_vit import IntegerRanges
from supernet.subnet import Subnet
from supernet.validation import validate

FORMAT_VERSION = 4
MANIFEST, CONFIG, WEIGHTS, VECTORS, SUBNET, COST, CARD = (
    "manifest.json",
    "config.json",
    "model.safetensors",
    "vectors.npz",
    "subnet.yaml",
    "cost.json",
    "README.md",
)
#: what every bundle holds beside the manifest; the rest are those of its formats
CORE_FILES = (CONFIG, WEIGHTS, VECTORS, SUBNET, COST, CARD)
#: in the package, beside this module
MANIFEST_SCHEMA = "manifest.schema.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class TimmConfig:
    """What timm calls `pretrained_cfg`, see `quasar.export.timm_config`; it takes a bundle as `local-dir:<folder>`."""

    __pydantic_config__ = {"extra": "forbid"}

    num_classes: int
    input_size: tuple[int, int, int]
    fixed_input_size: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleConfig:
    """The content of `config.json`; see `quasar.export.source.BundleInfo`.

    `architecture`, `num_classes`, `num_features` and `pretrained_cfg` are there for timm and repeat what the rest says.
    """

    __pydantic_config__ = {"extra": "forbid"}

    format_version: int
    architecture: str
    num_classes: int
    num_features: int
    pretrained_cfg: TimmConfig
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
    """The content of `manifest.json` without its own digest; see `quasar.export.source.BundleInfo`.

    Attributes:
        created: time in ISO 8601, UTC.
        latency_ms, fps: the target that the subnet was chosen for; None where it was not, and for the other of the two.
        layers: by name, see `supernet.lowering`.
        codes: of the tensors between layers: "image", "residual", "logits", "norm", and of each block "norm1", "q",
            "k", "v", "scores", "mixed", "norm2", "fc1" and "gelu".
        weights: where everything lies in weights.bin, None without that format.
        formats: the files of each form of the network that is in the bundle, by the form's name.
        files: all files but the manifest, by their paths in the bundle.
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
    weights: WeightsIndex | None
    formats: dict[str, tuple[str, ...]]
    versions: dict[str, str]
    files: dict[str, FileRecord]

    def __post_init__(self) -> None:
        of_formats = [name for names in self.formats.values() for name in names]
        if sorted((*CORE_FILES, *of_formats)) != sorted(self.files):
            raise ValueError("files are not those of the formats")

    def to_text(self) -> str:
        """The file's content: canonical, so that reading and writing it again shows any change."""
        content = asdict(self)
        content["digest"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return json_text(content)


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file; raises `DamagedInputError` for another version, or if it was changed."""
    content, text = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("format_version"), int):
        raise DamagedInputError(f"{path}: is not the manifest of a bundle; export again")
    if content["format_version"] != FORMAT_VERSION:
        raise DamagedInputError(
            f"{path}: has bundle format {content['format_version']}, this version of Quasar reads {FORMAT_VERSION}; "
            "export again with this version, or use the one that wrote it"
        )
    content.pop("digest", None)
    manifest = validate(Manifest, content, source=str(path), error=DamagedInputError)
    if manifest.to_text().encode() != text:
        raise DamagedInputError(f"{path}: was changed after the export; export again")
    return manifest


def read_config(path: Path) -> BundleConfig:
    """The configuration in a file; raises `DamagedInputError` if it is none."""
    return validate(BundleConfig, read_json(path)[0], source=str(path), error=DamagedInputError)


def read_bytes(path: Path) -> bytes:
    """The content of a file of a bundle; raises `DamagedInputError` if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DamagedInputError(f"{path}: is missing; export again") from None
    except OSError as error:
        raise DamagedInputError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_json(path: Path) -> tuple[Any, bytes]:
    """The document in a file of a bundle, and its text; raises `DamagedInputError` if it is none."""
    content = read_bytes(path)
    try:
        return json.loads(content), content
    except ValueError as error:
        raise DamagedInputError(f"{path}: cannot be read as JSON ({error}); export again") from None


def json_text(content: object) -> str:
    """A document as the files of a bundle hold it."""
    return json.dumps(content, indent=2) + "\n"
