"""The accuracy of candidates: subnets with inherited weights, on the validation split.

They run as `supernet.stores` serves them, with the outputs of the modules that would be exported, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from search.cache import EvaluationCache, Record
from search.config import RacingConfig
from search.racing import Outcome, Race, clearly_no_improvement, estimated_accuracy
from supernet.data.splits import Split
from supernet.evaluate import Evaluation, scores
from supernet.stores import Stores
from supernet.subnet import Subnet
from supernet.vit import SupernetViT

#: measures one subnet on the whole validation split
Evaluator = Callable[[Subnet], Evaluation]


class SupernetEvaluator:
    """An `Evaluator` that measures no subnet twice, and can let subnets race.

    Args:
        cache: of this supernet, this split and batches of `batch_size` images.
    """

    def __init__(self, supernet: SupernetViT, split: Split, *, batch_size: int, cache: EvaluationCache) -> None:
        self._stores = Stores(supernet)
        self._split = split
        self._batch_size = batch_size
        self._cache = cache

    def __call__(self, subnet: Subnet) -> Evaluation:
        """The subnet on the whole split."""
        return self._complete(subnet).evaluation

    def racing(self, config: RacingConfig | None) -> Race | None:
        """Races by these settings; None if there are none, or the split is too small for them."""
        if config is None or len(self._split) < config.images:
            return None

        def race(subnet: Subnet, incumbent: Subnet) -> Outcome:
            best = self._complete(incumbent)
            for record in self._growing(subnet):
                look = len(record.looks)
                if record.complete:
                    break
                error = config.error / (len(best.looks) - 1)
                if clearly_no_improvement(record.correct, best.correct, margin=config.margin, error=error):
                    break
            self._cache.put(subnet.digest, record)
            if record.complete:
                return Outcome(evaluation=record.evaluation)
            (images, ours), (_, theirs) = record.looks[-1], best.looks[look - 1]
            estimate = Evaluation(
                accuracy=estimated_accuracy(record.correct, best.correct),
                loss=best.evaluation.loss + (ours - theirs) / images,
                images=images,
            )
            return Outcome(evaluation=estimate, complete=False)

        return race

    def _complete(self, subnet: Subnet) -> Record:
        record = self._cache.get(subnet.digest)
        if record is None or not record.complete:
            *_, record = self._measured(subnet)
            self._cache.put(subnet.digest, record)
        return record

    def _growing(self, subnet: Subnet) -> Iterator[Record]:
        """What there is to know after each look, of which no more is measured than is asked for and not yet known."""
        known = self._cache.get(subnet.digest)
        looks = 0 if known is None else len(known.looks)
        if known is not None:
            yield from map(known.until, range(1, looks + 1))
            if known.complete:
                return
        yield from (record for record in self._measured(subnet) if len(record.looks) > looks)

    def _measured(self, subnet: Subnet) -> Iterator[Record]:
        """Records after 1, 2, 4, … batches, as long as others follow, and of the whole split."""
        correct: list[Tensor] = []
        looks: list[tuple[int, float]] = []
        loss, images = torch.zeros((), device=self._stores.device), 0
        batches = -(-len(self._split) // self._batch_size)

        def record(*, complete: bool) -> Record:
            looks.append((images, loss.item()))
            bits = np.asarray(torch.cat(correct).cpu().numpy(), dtype=np.bool_)
            return Record(correct=bits, looks=tuple(looks), complete=complete)

        network = self._stores.network(subnet)
        stream = scores(network, self._split, batch_size=self._batch_size, device=self._stores.device)
        for number, (correct_B, batch_loss) in enumerate(stream, start=1):
            correct.append(correct_B)
            loss = loss + batch_loss
            images += len(correct_B)
            if number & (number - 1) == 0 and number < batches:
                yield record(complete=False)
        yield record(complete=True)
