"""One optimizer step of the supernet: forward and backward passes of the step's subnets, then one update.

Everything random follows from (seed, step), and from the number of rollbacks, so that a step that diverged is not
repeated as it was. Each subnet is differentiated on its own: a step of several needs no more memory than its largest.

The largest subnet and small ones can want opposite things of a weight, and the largest has the larger gradients. With
`train.sampling.project_conflicts`, of each parameter tensor with the gradient g of the largest subnet and the sum h of
the others', where `g . h < 0`, the update is made of `h + g - (g . h) / |h|^2 * h`: the largest then does nothing
against the others (NASViT, Gong et al. 2022, openreview.net/forum?id=Qaw16njk6L). It costs one more set of gradients.

What an operator adds in training alone has a weight that falls linearly from 1 in the first step to 0 after
`train.auxiliary_share` of all steps. It follows from the number of the step, so a resumed training goes on with it.

In bfloat16 only the products (and what autocast leaves between them) lose precision: weights, scales, codes and the
loss are computed in float32. A dequantized value, code times scale, is then rounded to 8 bits of mantissa as an
operand, by at most 2^-9 of itself: a quarter of a code at 127. Training sees that as noise; evaluation and export are
in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from timm.data import Mixup
from timm.layers import drop_path
from torch import Tensor, nn

from hwmodel.errors import UsageError
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
        auxiliary_steps: steps from the first one on in which operators have what they add in training alone.
        teacher: teaches the subnets; None for the largest subnet of each step, or for none, as `config.distill` says.
        workers: that take the other shares of each batch; see `Workers.places`.
        subnets: to train in every step, instead of those that `config.sampling` draws.

    Raises:
        UsageError: an unknown sampling strategy; in a call, `config.sampling.project_conflicts` with a strategy whose
            first subnet is not the largest.
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
        auxiliary_steps: float = 0.0,
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
        self._auxiliary_steps = auxiliary_steps
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
        auxiliary = max(0.0, 1 - step / self._auxiliary_steps) if self._auxiliary_steps else 0.0
        share = 1 / (len(subnets) * config.accumulate)
        loss = torch.zeros((), device=x_BCHW.device)
        self._optimizer.zero_grad(set_to_none=True)
        projected = self._projected(subnets)
        largest = _ApartGradients(model.parameters())
        for part in range(config.accumulate):
            images = slice(part * len(x_BCHW) // config.accumulate, (part + 1) * len(x_BCHW) // config.accumulate)
            x, target = x_BCHW[images], target_B[images]
            dropped = None if drop_path_L2B is None else drop_path_L2B[:, :, images]
            taught = self._taught(x)
            for index, subnet in enumerate(subnets):
                with self._autocast():
                    logits = model(x, subnet, observer, weights=weights, drop_path_L2B=dropped, auxiliary=auxiliary)
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
                with largest.kept() if projected and index == 0 else nullcontext():
                    (total * share).backward()  # type: ignore[no-untyped-call]
                if index == 0:
                    loss += on_labels.detach() / config.accumulate
        gradients = [gradient for p in model.parameters() if (gradient := p.grad) is not None]
        # Both sums before they are compared: several workers find the conflicts that one alone would find.
        self._workers.average([*gradients, *largest.gradients.values(), loss])
        largest.add_projected()
        if config.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
        self._optimizer.step()
        if self._workers.count > 1:
            observer.unite(self._workers.maximum)
        observer.update(momentum=config.activation_momentum)
        if not self._quantize:
            model.measure_rows()  # learned scales of rows follow their weights, as those of activations their ranges
        return loss

    def _projected(self, subnets: Sequence[Subnet]) -> bool:
        """Whether the gradients of the largest subnet are to be projected."""
        sampling = self._config.sampling
        if not sampling.project_conflicts or len(subnets) == 1:
            return False
        if subnets[0] != self._largest:
            raise UsageError(
                f"train.sampling.project_conflicts: strategy {sampling.strategy} does not begin a step with the "
                "largest subnet; choose sandwich or max_random, or set it to false"
            )
        return True

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


class _ApartGradients:
    """The gradients of a step's largest subnet, kept apart from those of its others.

    Attributes:
        gradients: those of the parameters that have one.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.gradients: dict[nn.Parameter, Tensor] = {}
        self._parameters = list(parameters)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Gradients that arise within are added to those kept here; none are copied."""
        others = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = self.gradients.get(parameter)
        yield
        for parameter, gradient in zip(self._parameters, others, strict=True):
            if parameter.grad is not None:
                self.gradients[parameter] = parameter.grad
            parameter.grad = gradient

    def add_projected(self) -> None:
        """Adds what is kept to the gradients of the parameters, projected where the two conflict; see the module."""
        for parameter, largest in self.gradients.items():
            others = parameter.grad
            if others is None:
                parameter.grad = largest
                continue
            product, square = (largest * others).sum(), others.square().sum()
            # No branch on values, which would wait for the device: without a conflict the share is 0.
            share = (product / square.clamp(min=torch.finfo(square.dtype).tiny)).clamp(max=0.0)
            others.mul_(1 - share).add_(largest)


def _mixup(config: TrainConfig, num_classes: int) -> Mixup | None:
    if not (config.mixup or config.cutmix):
        return None
    return Mixup(  # type: ignore[no-untyped-call]
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        label_smoothing=config.label_smoothing,
        num_classes=num_classes,
    )
