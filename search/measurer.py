"""What measures candidates: subnets with inherited weights, on the validation split. It keeps no books.

They run as `supernet.stores` serves them: in float32 with the outputs of the modules that would be exported, bit for
bit, or with products of codes, which take less time on a CPU (`search.precision`). With the log-probabilities of a
float reference, the divergence of each image is measured as well:

    KL(p || q) = sum over classes of p * (log p - log q)    in nats, p of the reference and q of the subnet
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor

from search.config import RacingConfig
from search.racing import ends_race
from search.record import Record
from supernet.config import Progress
from supernet.data.splits import Split
from supernet.evaluate import outputs
from supernet.functional import Observer
from supernet.stores import Precision, Stores
from supernet.subnet import Subnet
from supernet.vit import SupernetViT, unquantized


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A subnet to measure: on all images, or until its race against `best` ends, the complete record of an incumbent.

    After the first `seen` looks the race has not ended; that is known, and is not asked again. An `exact` task is done
    in float32, whatever the precision of the others.
    """

    subnet: Subnet
    best: Record | None = None
    seen: int = 0
    exact: bool = False


class Measurer:
    """Measures subnets of a supernet whose weights change no more.

    Args:
        precision: of the products; see `supernet.stores`.
        reference: log-probabilities (images, classes) on `split`, if divergences are to be measured.
        racing: when races end; needed for tasks with an incumbent.

    Raises:
        UsageError: the device has no such products.
    """

    def __init__(
        self,
        supernet: SupernetViT,
        split: Split,
        *,
        batch_size: int,
        precision: Precision = "float32",
        reference: Tensor | None = None,
        racing: RacingConfig | None = None,
    ) -> None:
        self._exact_stores = Stores(supernet)
        self._stores = self._exact_stores if precision == "float32" else Stores(supernet, precision=precision)
        self._split = split
        self._batch_size = batch_size
        self._reference = reference
        self._racing = racing

    def __call__(self, task: Task) -> Record:
        """What a task asks for; raises `UsageError` for a subnet outside the space."""
        for record in self._growing(task.subnet, self._exact_stores if task.exact else self._stores):
            if record.complete or (len(record.looks) > task.seen and self._ends(record, task.best)):
                break
        return record

    def _ends(self, record: Record, best: Record | None) -> bool:
        return best is not None and self._racing is not None and ends_race(record, best, self._racing)

    @torch.inference_mode()
    def _growing(self, subnet: Subnet, stores: Stores) -> Iterator[Record]:
        """Records after 1, 2, 4, … batches, as long as others follow, and of the whole split."""
        device = stores.device
        correct: list[Tensor] = []
        divergence: list[Tensor] = []
        looks: list[tuple[int, float]] = []
        loss, images = torch.zeros((), device=device), 0
        batches = -(-len(self._split) // self._batch_size)

        def record(*, complete: bool) -> Record:
            looks.append((images, loss.item()))
            return Record(
                correct=np.asarray(torch.cat(correct).cpu().numpy(), dtype=np.bool_),
                looks=tuple(looks),
                complete=complete,
                divergence=torch.cat(divergence).cpu().numpy() if divergence else None,
            )

        network = stores.network(subnet)
        stream = outputs(network, self._split, batch_size=self._batch_size, device=device)
        for number, (logits, y_B) in enumerate(stream, start=1):
            correct.append(logits.argmax(dim=1) == y_B)
            loss = loss + F.cross_entropy(logits, y_B, reduction="sum")
            if self._reference is not None:
                divergence.append(divergences(self._reference[images : images + len(y_B)].to(device), logits))
            images += len(y_B)
            if number & (number - 1) == 0 and number < batches:
                yield record(complete=False)
        yield record(complete=True)


def divergences(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(p || q) of each image in nats, (B,): p from log-probabilities (B, classes), q from logits (B, classes)."""
    terms = F.kl_div(logits.log_softmax(dim=1), reference, reduction="none", log_target=True)
    return terms.sum(dim=1).clamp(min=0)  # rounding may take it below


@torch.inference_mode()
def float_reference(supernet: SupernetViT, split: Split, *, batch_size: int, progress: Progress) -> Tensor:
    """Log-probabilities (images, classes) of the largest subnet in floats, float32, on the CPU.

    Of a supernet made of a pretrained ViT these are that network's own. They take 4 bytes for each image and class.
    """
    network = partial(supernet, subnet=supernet.space.largest(), observer=Observer(quantize=False), weights=unquantized)
    rows: list[Tensor] = []
    done = 0
    for logits, _ in outputs(network, split, batch_size=batch_size, device=supernet.cls_token.device):
        rows.append(logits.log_softmax(dim=1).cpu())
        done += len(logits)
        progress(done, len(split), "")
    return torch.cat(rows)
