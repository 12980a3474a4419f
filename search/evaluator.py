"""The accuracy of candidates: extracted subnets with inherited weights, on the validation split."""

from __future__ import annotations

from collections.abc import Callable

from supernet.data.splits import Split
from supernet.evaluate import Evaluation, evaluate
from supernet.standalone import extract
from supernet.subnet import Subnet
from supernet.vit import SupernetViT

#: measures one subnet
Evaluator = Callable[[Subnet], Evaluation]


def supernet_evaluator(model: SupernetViT, split: Split, *, batch_size: int) -> Evaluator:
    """An evaluator that extracts each subnet and runs the very module that would be exported."""

    def measure(subnet: Subnet) -> Evaluation:
        return evaluate(extract(model, subnet), split, batch_size=batch_size)

    return measure


def remembering(evaluator: Evaluator) -> Evaluator:
    """The evaluator with a memory: a subnet that a search and its baselines share is measured once."""
    known: dict[Subnet, Evaluation] = {}

    def measure(subnet: Subnet) -> Evaluation:
        if subnet not in known:
            known[subnet] = evaluator(subnet)
        return known[subnet]

    return measure
