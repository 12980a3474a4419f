"""Measures versions of a network: their divergence from the whole one, their accuracy, and their cost.

Two sets of images, which have none in common:

    training images     choose what is left out next, by the divergence KL(whole || version) of the outputs. It needs no
                        labels, so it does not matter that the network has seen them
    validation images   say what the versions reach; nothing is chosen by them

The accuracy of a version is compared with that of the whole network image by image. With b images that only the whole
one gets right, and c that only the version does, of n, the difference is (c - b) / n, with the standard error

    sqrt(b + c - (b - c)^2 / n) / n

of a difference of paired proportions (McNemar 1947; Agresti, Categorical Data Analysis, 10.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from numpy.typing import NDArray
from torch import Tensor

from hwmodel.cost import CostEstimate, CostModel
from quasar.resilience.journal import Journal
from supernet.data.splits import Split
from supernet.evaluate import outputs
from supernet.extracted import ExtractedNetwork
from supernet.lowering import lower
from supernet.prune import BlockImportance, Version, prune, pruned_subnet, whole
from supernet.standalone import SubnetViT
from supernet.stores import Precision
from supernet.subnet import Subnet, hidden_units

#: values in the largest activation of a batch, so that a CPU finds them in its cache again
_PIECE = 1 << 19


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Of N validation images, which ones are right, (N,)."""

    right: NDArray[np.bool_]

    @property
    def share(self) -> float:
        """Top-1 accuracy in [0, 1]."""
        return float(self.right.mean())

    @property
    def error(self) -> float:
        """Its standard error."""
        return math.sqrt(self.share * (1 - self.share) / len(self.right))

    def less(self, other: Accuracy) -> tuple[float, float]:
        """By how much it is below another one on the same images, and the standard error of that; see the module."""
        lost, gained = int((other.right & ~self.right).sum()), int((self.right & ~other.right).sum())
        images = len(self.right)
        variance = lost + gained - (lost - gained) ** 2 / images
        return (lost - gained) / images, math.sqrt(max(variance, 0.0)) / images


class Measurer:
    """Measures versions of `module`, each only once; results are kept in `journal`.

    Args:
        module: the whole network.
        low: the same at low precision, see `supernet.prune.prune`.
        importance: of the heads and units of each block.
        model: gives the costs.
        choice: normalised training images (B, C, H, W), all together.
        split: validation images; the first `images` of them count.
        precision: of products, see `supernet.stores`.
    """

    def __init__(
        self,
        module: SubnetViT,
        low: SubnetViT,
        importance: tuple[BlockImportance, ...],
        *,
        model: CostModel,
        choice: Tensor,
        split: Split,
        images: int,
        precision: Precision,
        journal: Journal,
    ) -> None:
        self.importance = importance
        self.base = whole(module.subnet)
        self.model = model
        self._module, self._low = module, low
        self._split, self._images = split, images
        self._precision = precision
        self._journal = journal
        self._pieces = torch.split(choice, batch_size(module.subnet))
        self._logits: list[Tensor] = []  # of the whole network
        self._path: Version = ()
        self._streams: list[list[Tensor]] = []  # of each piece: what each block of `_path` reads

    @property
    def subnet(self) -> Subnet:
        """The whole network's architecture."""
        return self._module.subnet

    def shape(self, version: Version) -> Subnet:
        """The architecture of a version."""
        return pruned_subnet(self.subnet, version, self.importance)

    def cost(self, version: Version) -> CostEstimate:
        """The modelled cost of a version."""
        return self.model.estimate(lower(self.shape(version)))

    def divergence(self, version: Version) -> float:
        """The mean KL(whole || version) over the training images, in nats."""
        key = f"kl {name_of(version)}"
        known = self._journal.get(key)
        if known is None:
            known = self._divergence(version)
            self._journal.add(key, known)
        return float(known)

    @torch.inference_mode()
    def _divergence(self, version: Version) -> float:
        if not self._logits:
            self.follow(self.base)
            head = ExtractedNetwork(self._module, precision=self._precision).head
            self._logits = [head(streams[-1]) for streams in self._streams]
        network = self._network(version)
        shared = 0
        while shared < min(len(version), len(self._path)) and version[shared] == self._path[shared]:
            shared += 1
        total, images = 0.0, 0
        for streams, logits in zip(self._streams, self._logits, strict=True):
            x_BTD = streams[shared]
            for block in network.blocks[shared:]:
                x_BTD = block(x_BTD)
            ours = network.head(x_BTD).log_softmax(dim=1)
            total += float(F.kl_div(ours, logits.log_softmax(dim=1), log_target=True, reduction="sum"))
            images += len(logits)
        return total / images

    @torch.inference_mode()
    def follow(self, version: Version) -> None:
        """Keeps what each block of a version reads: others that begin alike are measured in less time."""
        network = self._network(version)
        self._path, self._streams = version, []
        for piece in self._pieces:
            streams = [network.stem(piece)]
            for block in network.blocks:
                streams.append(block(streams[-1]))
            self._streams.append(streams)

    def _network(self, version: Version) -> ExtractedNetwork:
        module = prune(self._module, self._low, version, self.importance)
        return ExtractedNetwork(module, precision=self._precision)

    def accuracy(self, version: Version) -> Accuracy:
        """Which of the validation images a version gets right."""
        return self._right(
            f"right {name_of(version)}", lambda: prune(self._module, self._low, version, self.importance)
        )

    def accuracy_of_path(self, subnet: Subnet, extracted: Callable[[], SubnetViT]) -> Accuracy:
        """The same of another subnet of the supernet, with inherited weights."""
        return self._right(f"path {subnet.digest}", extracted)

    def _right(self, key: str, build: Callable[[], SubnetViT]) -> Accuracy:
        known = self._journal.get(key)
        if known is None:
            module = build()
            device = module.cls_token.device
            network = ExtractedNetwork(module, precision=self._precision)
            batches = outputs(
                network, self._split, batch_size=batch_size(module.subnet), device=device, limit=self._images
            )
            right = torch.cat([logits.argmax(dim=1) == y_B for logits, y_B in batches]).cpu().numpy()
            known = {"images": len(right), "right": np.packbits(right).tobytes().hex()}
            self._journal.add(key, known)
        packed = np.frombuffer(bytes.fromhex(known["right"]), dtype=np.uint8)
        return Accuracy(right=np.unpackbits(packed, count=known["images"]).astype(np.bool_))


def name_of(version: Version) -> str:
    """A version in a line: of each block its index, heads, units, and linears at low precision."""
    return " ".join(
        f"{kept.block}:{','.join(map(str, kept.heads))}/{kept.units}{''.join(f'/{name}' for name in kept.low)}"
        for kept in version
    )


def batch_size(subnet: Subnet) -> int:
    """Images in a batch whose activations a CPU finds in its cache again."""
    widest = max(
        max(int(hidden_units(block.mlp_ratio, subnet.embed_dim)), 3 * block.num_heads * subnet.head_dim)
        for block in subnet.blocks
    )
    return max(1, _PIECE // (subnet.tokens * widest))
