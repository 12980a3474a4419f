"""Training one subnet by itself: from random weights, or further from those that it inherits.

From random weights, for comparison with the inherited ones, the network is a supernet of one subnet, whose tensors are
no larger than the subnet: rows and inputs that others use would take part in the scales of its rows. Fine-tuning goes
on in the whole supernet, so that it starts with exactly the network that was chosen; the scales of measured rows stay
those of the full rows. Everything else is as in the training of a supernet.
"""

from __future__ import annotations

import dataclasses

import torch

from hwmodel.errors import QuasarError
from supernet.calibrate import linears_of
from supernet.config import DistillConfig, FinetuneConfig, Progress, SamplingConfig, SupernetConfig, TrainConfig
from supernet.data.splits import Split
from supernet.distill import load_teacher
from supernet.functional import Observer
from supernet.space import SearchSpace
from supernet.standalone import SubnetViT, extract
from supernet.subnet import Subnet
from supernet.train import DivergedError, State, new_supernet, steps_per_epoch, train_epoch
from supernet.vit import ElasticLinear, SupernetViT, unquantized

#: images that set the first activation ranges
_CALIBRATION_IMAGES = 200


def train_alone(
    subnet: Subnet,
    *,
    supernet: SupernetConfig,
    config: TrainConfig,
    train_split: Split,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> SubnetViT:
    """The subnet after a training by itself, extracted.

    Args:
        supernet: its layer scaling and kind of scales count; the weights start at random.
        config: as `settings_alone` gives it.
        seed: of the initial weights and of everything random in a step.

    Raises:
        QuasarError: training diverges.
    """
    model = supernet_of_one(subnet, layer_scale=supernet.layer_scale, seed=seed).to(device)
    observer = Observer(quantize=False)
    with torch.no_grad():
        images = next(train_split.batches(_CALIBRATION_IMAGES, device=device))[0]
        model(images, subnet, observer, weights=unquantized)
    observer.update(momentum=0.0)
    if supernet.scales == "learned":
        model.learn_scales()
    return train_further(model, subnet, config=config, train_split=train_split, seed=seed, progress=progress)


def train_further(
    model: SupernetViT, subnet: Subnet, *, config: TrainConfig, train_split: Split, seed: int, progress: Progress
) -> SubnetViT:
    """One subnet of `model` after training from the weights that it has, extracted; the other subnets are spoilt.

    Args:
        config: as `finetuning_settings` gives it.
        seed: of everything random in a step.

    Raises:
        UsageError: a teacher that cannot teach.
        QuasarError: training diverges.
    """
    state = State.fresh(model, config=config, steps=steps_per_epoch(config, train_split))
    teacher = load_teacher(config.distill, space=model.space, split=train_split, device=model.cls_token.device)
    try:
        while state.epoch < config.epochs:
            train_epoch(
                state, train_split, config=config, seed=seed, teacher=teacher, progress=progress, subnets=[subnet]
            )
            state.epoch += 1
    except DivergedError as diverged:
        raise QuasarError(
            f"training subnet {subnet.digest} alone, seed {seed}: {diverged}, in epoch {state.epoch + 1}; "
            "use a lower learning rate or train.clip_grad_norm"
        ) from None
    return extract(state.weights, subnet)


def settings_alone(config: TrainConfig, *, epochs: int) -> TrainConfig:
    """The settings of a supernet's training for `epochs` epochs of one subnet.

    Warm-up and float epochs keep their share; of a supernet that was only calibrated, warm-up takes a tenth. Subnets
    that teach each other are left out, a teacher from outside stays.
    """
    scale = epochs / config.epochs if config.epochs else 0.0
    return dataclasses.replace(
        config,
        epochs=epochs,
        warmup_epochs=config.warmup_epochs * scale if config.epochs else epochs / 10,
        float_epochs=round(config.float_epochs * scale),
        sampling=SamplingConfig(),
        distill=DistillConfig() if config.distill.teacher is None else config.distill,
    )


def finetuning_settings(config: TrainConfig, finetune: FinetuneConfig) -> TrainConfig:
    """The settings of a supernet's training for further training of one subnet, with a lower rate.

    Without warm-up, float epochs, and what operators add in training alone.
    """
    lr = config.lr / 10 if finetune.lr is None else finetune.lr
    alone = settings_alone(config, epochs=finetune.epochs)
    return dataclasses.replace(
        alone, lr=lr, min_lr=min(config.min_lr, lr), warmup_epochs=0.0, float_epochs=0, auxiliary_share=0.0
    )


def supernet_of_one(subnet: Subnet, *, layer_scale: float | None, seed: int) -> SupernetViT:
    """A supernet with random weights that holds one subnet and no row or input more."""
    space = SearchSpace.of(subnet)
    model = new_supernet(space, SupernetConfig(layer_scale=layer_scale), seed=seed)
    names = {module: name for name, module in model.named_modules()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for linear, plan, _ in list(linears_of(model, subnet)):
            owner, _, name = names[linear].rpartition(".")
            fitting = ElasticLinear(plan.rows, plan.inputs, weight_bits=space.weight_bits)
            setattr(model.get_submodule(owner), name, fitting)
    return model
