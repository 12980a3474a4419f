"""Accuracy and loss of one network on one split of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor

from hwmodel.errors import DamagedInputError
from supernet.data.splits import Split
from supernet.integer_vit import IntegerViT
from supernet.parallel import ALONE, Workers
from supernet.pit import PitViT
from supernet.space import SearchSpace
from supernet.standalone import SubnetViT, extract
from supernet.subnet import Subnet
from supernet.vit import SupernetViT

#: random subnets among the probe subnets
RANDOM_PROBES = 4
#: images in a batch of the integer network, whose products are arrays of 64-bit numbers
_INTEGER_BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Top-1 accuracy as a share in [0, 1], mean cross-entropy in nats, and the images they come from."""

    accuracy: float
    loss: float
    images: int


@torch.inference_mode()
def outputs(
    network: Callable[[Tensor], Tensor],
    split: Split,
    *,
    batch_size: int,
    device: torch.device,
    limit: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batch by batch in order, the logits (B, num_classes) of a network and the labels (B,).

    Args:
        network: logits (B, num_classes) of images (B, C, H, W) on `device`.
        limit: only the first so many images.

    Raises:
        DamagedInputError: no image could be read.
    """
    seen = 0
    for x_BCHW, y_B in split.batches(batch_size, device=device, limit=limit):
        seen += len(y_B)
        yield network(x_BCHW), y_B
    if not seen:
        raise DamagedInputError("data: none of the images to evaluate on could be read; restore the files named above")


def evaluate(module: SubnetViT | PitViT, split: Split, *, batch_size: int, limit: int | None = None) -> Evaluation:
    """Runs an extracted subnet, or a pooling ViT, over a split, in order, on the device that holds it.

    Args:
        limit: only the first so many images.

    Raises:
        DamagedInputError: no image could be read.
    """
    device = module.cls_token.device
    return _summed(outputs(module, split, batch_size=batch_size, device=device, limit=limit))


def evaluate_integer(network: IntegerViT, split: Split, *, limit: int) -> Evaluation:
    """Runs the arithmetic of the hardware over the first `limit` images of a split, in order, on the CPU."""

    def logits(x_BCHW: Tensor) -> Tensor:
        codes = network(network.quantize_images(x_BCHW))
        return torch.from_numpy(codes.astype(np.float32)) * network.logit_scale

    return _summed(outputs(logits, split, batch_size=_INTEGER_BATCH, device=torch.device("cpu"), limit=limit))


@torch.inference_mode()
def _summed(batches: Iterable[tuple[Tensor, Tensor]]) -> Evaluation:
    correct, loss, images = torch.zeros(()), torch.zeros(()), 0
    for logits, y_B in batches:
        correct = correct.to(logits.device) + (logits.argmax(dim=1) == y_B).sum()
        loss = loss.to(logits.device) + F.cross_entropy(logits, y_B, reduction="sum")
        images += len(y_B)
    return Evaluation(accuracy=correct.item() / images, loss=loss.item() / images, images=images)


def probe_subnets(space: SearchSpace) -> dict[str, Subnet]:
    """The fixed subnets whose accuracy says how a supernet is: the largest, the smallest, and four random ones.

    The random ones depend on the space alone, so that runs with other seeds and settings can be compared.
    """
    random = space.sample(np.random.default_rng(0), RANDOM_PROBES)
    return {"max": space.largest(), "min": space.smallest()} | {
        f"random{index}": space.decode(genotype) for index, genotype in enumerate(random, start=1)
    }


def probe(model: SupernetViT, split: Split, *, batch_size: int, workers: Workers = ALONE) -> dict[str, Evaluation]:
    """Evaluates the probe subnets of a supernet, each by one of the workers; all workers get all results."""
    subnets = list(probe_subnets(model.space).items())
    share = {
        name: evaluate(extract(model, subnet), split, batch_size=batch_size)
        for name, subnet in subnets[workers.rank :: workers.count]
    }
    results = {name: result for part in workers.gathered(share) for name, result in part.items()}
    return {name: results[name] for name, _ in subnets}
