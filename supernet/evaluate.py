"""Accuracy and loss of one network on one split of the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor

from supernet.data.splits import Split
from supernet.parallel import ALONE, Workers
from supernet.space import SearchSpace
from supernet.standalone import SubnetViT, extract
from supernet.subnet import Subnet
from supernet.vit import SupernetViT

#: random subnets among the probe subnets
RANDOM_PROBES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Top-1 accuracy as a share in [0, 1], mean cross-entropy in nats, and the images they come from."""

    accuracy: float
    loss: float
    images: int


@torch.inference_mode()
def evaluate(module: SubnetViT, split: Split, *, batch_size: int, limit: int | None = None) -> Evaluation:
    """Runs an extracted subnet over a split, in order, on the device that holds it.

    Args:
        limit: only the first so many images.
    """
    device = module.cls_token.device
    correct, loss, images = torch.zeros((), device=device), torch.zeros((), device=device), 0
    for x_BCHW, y_B in split.batches(batch_size, device=device, limit=limit):
        logits: Tensor = module(x_BCHW)
        correct += (logits.argmax(dim=1) == y_B).sum()
        loss += F.cross_entropy(logits, y_B, reduction="sum")
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
