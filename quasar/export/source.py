"""What a bundle is made from: an extracted subnet, what is to be told about it, and its integers, made once for all."""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.cost import FpgaCostEstimate
from hwmodel.errors import QuasarError, UsageError
from hwmodel.integer import Int8Array
from quasar.export.onnx_int import expected_tensors
from quasar.export.weights_file import PACKED_OPERATORS, WeightsIndex, pack_weights
from supernet.data.config import DataConfig
from supernet.integer_vit import IntegerRanges, IntegerViT, find_ranges
from supernet.standalone import SubnetViT

#: images whose integer logits a bundle holds
GOLDEN_IMAGES = 4
#: prefix of the names of golden tensors in vectors.npz
TENSORS = "tensors/"
#: of an accumulator of the engine
LARGEST_SUM = 2**31 - 1
#: of a file in a zip archive; its last fields are the lengths of the name and of what follows it
_LOCAL_HEADER = struct.Struct("<26xHH")


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
    cost: FpgaCostEstimate
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
class Source:
    """All that the forms of a network are made from.

    Attributes:
        ranges: the scales that `network` needs beside the module's own.
        packed: the content of weights.bin and what lies where in it; None if an operator is unknown to it.
        images, logits: golden vectors: codes of images (N, C, H, W), and of their logits (N, classes).
        tensors: what every layer gives for the first of them, see `expected_tensors`.
        vectors: the content of vectors.npz.
    """

    module: SubnetViT
    info: BundleInfo
    ranges: IntegerRanges
    network: IntegerViT
    packed: tuple[bytes, WeightsIndex] | None
    images: Int8Array
    logits: NDArray[np.int16]
    tensors: dict[str, NDArray[Any]]
    vectors: bytes

    @staticmethod
    def of(module: SubnetViT, info: BundleInfo, images: Tensor) -> Source:
        """The source of a bundle, with scales from these normalised training images (N, C, H, W).

        Raises:
            QuasarError: a tensor of the subnet is not finite, or a scale not positive.
            UsageError: the subnet has no integer form; a sum could leave 32 bits.
        """
        _check_tensors(module)
        ranges = find_ranges(module, images)
        network = IntegerViT.of(module, ranges)
        _check_accumulators(network)
        packable = all(block.operator in PACKED_OPERATORS for block in module.subnet.blocks)
        golden = network.quantize_images(images[:GOLDEN_IMAGES])
        logits, tensors = network(golden), expected_tensors(network, golden[:1])
        return Source(
            module=module,
            info=info,
            ranges=ranges,
            network=network,
            packed=pack_weights(network, info.accelerator) if packable else None,
            images=golden,
            logits=logits,
            tensors=tensors,
            vectors=vectors_file(golden, logits, tensors),
        )


def vectors_file(images: Int8Array, logits: NDArray[np.int16], tensors: dict[str, NDArray[Any]]) -> bytes:
    """The content of vectors.npz; see `Source`. Arrays are stored, not deflated: see `array_places`."""
    arrays: dict[str, Any] = {"images": images, "logits": logits}
    arrays |= {f"{TENSORS}{name}": np.ascontiguousarray(array) for name, array in tensors.items()}
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def array_places(vectors: bytes) -> dict[str, int]:
    """The byte of vectors.npz at which the values of each array begin, so that programs without NumPy find them.

    An .npz is a zip archive of stored files, each of which has a header and then the values.
    """
    places = {}
    with zipfile.ZipFile(io.BytesIO(vectors)) as archive:
        for entry in archive.infolist():
            local = vectors[entry.header_offset : entry.header_offset + _LOCAL_HEADER.size]
            name_bytes, extra_bytes = _LOCAL_HEADER.unpack(local)
            begin = entry.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
            file = io.BytesIO(vectors[begin : begin + entry.file_size])
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            places[entry.filename.removesuffix(".npy")] = begin + file.tell()
    return places


def _check_tensors(module: SubnetViT) -> None:
    """Raises `QuasarError` naming the first tensor of a subnet that no network can be made of."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise QuasarError(f"tensor '{name}' of the subnet is not finite: its training has diverged; train again")
        if name.rpartition(".")[2] == "scale" and not bool((tensor > 0).all()):
            raise QuasarError(
                f"tensor '{name}' of the subnet has a scale that is not positive: no image was seen in its training, "
                "or it has collapsed; train again"
            )


def _check_accumulators(network: IntegerViT) -> None:
    """Raises `UsageError` naming the first layer whose sums could leave 32 bits, whatever the codes of its input."""
    linears = [network.patch_embed, network.head]
    for block in network.blocks:
        linears += [block.qkv, block.proj, block.fc1, block.fc2]
    sums = {
        linear.name: 128 * np.abs(linear.weights.astype(np.int64)).sum(axis=1) + np.abs(linear.bias.astype(np.int64))
        for linear in linears
    }
    tokens = network.subnet.tokens
    for block in network.blocks:
        sums |= {name: np.array([largest]) for name, largest in block.mixer.largest_sums(tokens).items()}
    for name, own in sums.items():
        if own.max() > LARGEST_SUM:
            raise UsageError(
                f"{name}: a sum can reach {own.max():,}, more than the 32 bits of its accumulator hold; "
                "export a subnet with fewer inputs or smaller weights there"
            )
