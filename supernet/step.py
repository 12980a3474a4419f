"""One optimizer step of the supernet: forward and backward passes of the step's subnets, then one update.

Everything random follows from (seed, step), and from the number of rollbacks, so that a step that diverged is not
repeated as it was. Each subnet is differentiated on its own: a step of several needs no more memory than its largest.

In bfloat16 only the products (and what autocast leaves between them) lose precision: weights, scales, codes and the
loss are computed in float32. A dequantized value, code times scale, is then rounded to 8 bits of mantissa as an
operand, by at most 2^-9 of itself: a quarter of a code at 127. Training sees that as noise; evaluation and export are
in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from timm.data import Mixup
from timm.layers import drop_path
from torch import Tensor

from supernet.config import TrainConfig
from supernet.data.randomness import seeded
from supernet.distill import Teacher, divergence
from supernet.functional import Observer
from supernet.parallel import ALONE, Workers
from supernet.sampling import STRATEGIES
from supernet.subnet import Subnet
from supernet.vit import QuantizedOnce, SupernetViT, Weights, quantized, unquantized

#: what random numbers are for; the subnets of a step need no number of their own
_MIXUP, _DROP_PATH = 1, 2


class Step:
    """Trains a supernet by one batch of images at a time.

    Args:
        seed: of everything random.
        rollbacks: how often the training went back so far.
        quantize: False for a step of float weights and activations; ranges of activations are followed all the same.
        teacher: teaches the subnets; None for the largest subnet of each step, or for none, as `config.distill` says.
        workers: that take the other shares of each batch; see `Workers.places`.
        subnets: to train in every step, instead of those that `config.sampling` draws.

    Raises:
        UsageError: an unknown sampling strategy.
    """

    def __init__(
        self,
        model: SupernetViT,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        *,
        seed: int,
        rollbacks: int = 0,
        quantize: bool = True,
        teacher: Teacher | None = None,
        workers: Workers = ALONE,
        subnets: Sequence[Subnet] | None = None,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._config = config
        self._seed = seed
        self._rollbacks = rollbacks
        self._quantize = quantize
        self._teacher = teacher
        self._workers = workers
        self._subnets = subnets
        self._strategy = STRATEGIES.get(config.sampling.strategy)
        self._largest = model.space.largest()
        self._mixup = _mixup(config, model.space.num_classes)

    def __call__(self, x_BCHW: Tensor, y_B: Tensor, step: int) -> Tensor:
        """One update by normalised images and their labels; the loss on the labels of the first subnet before it.

        The loss of a step is the mean over its subnets. What is given back is left on the device, the same for all
        workers.

        Args:
            x_BCHW: this worker's share of the batch, as are its labels.
        """
        config, model = self._config, self._model
        # numpy takes a trailing 0 for nothing: without rollbacks this is the generator of (seed, step).
        rng = np.random.default_rng([self._seed, step, self._rollbacks])
        subnets = self._subnets or self._strategy(model.space, rng, config.sampling.random)
        x_BCHW, target_B = self._mixed(x_BCHW, y_B, step)
        drop_path_L2B = self._drop_path(len(x_BCHW), step)
        weights: Weights = unquantized
        if self._quantize:
            weights = QuantizedOnce() if len(subnets) * config.accumulate > 1 else quantized
        observer = Observer(quantize=self._quantize)
        share = 1 / (len(subnets) * config.accumulate)
        loss = torch.zeros((), device=x_BCHW.device)
        self._optimizer.zero_grad(set_to_none=True)
        for part in range(config.accumulate):
            images = slice(part * len(x_BCHW) // config.accumulate, (part + 1) * len(x_BCHW) // config.accumulate)
            x, target = x_BCHW[images], target_B[images]
            dropped = None if drop_path_L2B is None else drop_path_L2B[:, :, images]
            taught = self._taught(x)
            for index, subnet in enumerate(subnets):
                with self._autocast():
                    logits = model(x, subnet, observer, weights=weights, drop_path_L2B=dropped)
                logits = logits.float()
                on_labels = F.cross_entropy(
                    logits, target, label_smoothing=0.0 if self._mixup else config.label_smoothing
                )
                total = on_labels
                if taught is not None:
                    weight = config.distill.weight
                    total = (1 - weight) * on_labels + weight * divergence(logits, taught, config.distill)
                elif index == 0 and config.distill.kind != "none" and subnet == self._largest:
                    taught = logits.detach()
                (total * share).backward()  # type: ignore[no-untyped-call]
                if index == 0:
                    loss += on_labels.detach() / config.accumulate
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self._workers.average([*gradients, loss])
        if config.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
        self._optimizer.step()
        if self._workers.count > 1:
            observer.unite(self._workers.maximum)
        observer.update(momentum=config.activation_momentum)
        return loss

    def _autocast(self) -> torch.autocast:
        device = self._model.cls_token.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self._config.precision == "bfloat16")

    def _taught(self, x_BCHW: Tensor) -> Tensor | None:
        """Logits of the outside teacher, if there is one."""
        if self._teacher is None:
            return None
        with torch.no_grad(), self._autocast():
            return self._teacher(x_BCHW).float()

    def _mixed(self, x_BCHW: Tensor, y_B: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The batch after mixup or cutmix, with labels (B,) or, where there is either, shares of classes (B, C)."""
        if self._mixup is None:
            return x_BCHW, y_B
        with seeded(self._seed, step, self._rollbacks, _MIXUP):
            x_BCHW, target_BC = self._mixup(x_BCHW.clone(), y_B)
        return x_BCHW, target_BC

    def _drop_path(self, batch: int, step: int) -> Tensor | None:
        """Factors (L, 2, B) of the branches of L blocks for B images of this worker: 0, or 1 / (chance to stay)."""
        if not self._config.drop_path:
            return None
        batch *= self._workers.count  # drawn for all
        ones_2B = torch.ones(2 * batch)
        rates = torch.linspace(0, self._config.drop_path, self._model.space.max_depth).tolist()
        with seeded(self._seed, step, self._rollbacks, _DROP_PATH):  # on the CPU: the same on every device
            factors_L2B = torch.stack([drop_path(ones_2B, rate, training=True).view(2, batch) for rate in rates])
        if (places := self._workers.places(batch)) is not None:
            factors_L2B = factors_L2B[:, :, places]
        return factors_L2B.to(self._model.cls_token.device, non_blocking=True)


def _mixup(config: TrainConfig, num_classes: int) -> Mixup | None:
    if not (config.mixup or config.cutmix):
        return None
    return Mixup(  # type: ignore[no-untyped-call]
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        label_smoothing=config.label_smoothing,
        num_classes=num_classes,
    )
