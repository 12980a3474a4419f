"""Distillation: divergences from a teacher's distribution to a student's, and teachers from outside of the supernet.

Distributions are p = softmax(teacher's logits) and q = softmax(student's logits), over classes c.

Kullback-Leibler: `sum_c p log(p / q)`, with both logits divided by a temperature T and the result multiplied by T^2
(Hinton et al. 2015, arXiv:1503.02531).

Adaptive alpha-divergence (Wang et al. 2021, AlphaNet, arXiv:2102.07954): for each image the larger of the divergences

    D_a(p || q) = 1 / (a (a - 1)) * sum_c q ((p / q)^a - 1)

of a = alpha_min < 0, which is large where the student is sure of what the teacher excludes, and a = alpha_max > 0,
which is large where it misses what the teacher expects. The ratios (p / q)^a are cut at `clip` in value and gradient.
At a = 1 the limit of D_a is Kullback-Leibler's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor, nn

from hwmodel.errors import DamagedInputError, UsageError
from hwmodel.registry import unknown_name
from supernet.checkpoint import Checkpoint
from supernet.config import DistillConfig
from supernet.data.splits import Split
from supernet.space import SearchSpace
from supernet.standalone import extract

#: gives a teacher's logits (B, classes) for images (B, C, H, W) as the training split gives them
Teacher = Callable[[Tensor], Tensor]


def divergence(student_BC: Tensor, teacher_BC: Tensor, config: DistillConfig) -> Tensor:
    """Mean divergence over images of a student's logits from a teacher's, both (B, classes); see `DistillConfig`."""
    if config.kind == "kl":
        t = config.temperature
        log_p, log_q = F.log_softmax(teacher_BC / t, dim=1), F.log_softmax(student_BC / t, dim=1)
        return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * t**2
    at_min, at_max = (
        alpha_divergence(student_BC, teacher_BC, alpha=alpha, clip=config.clip)
        for alpha in (config.alpha_min, config.alpha_max)
    )
    return torch.where(at_min.detach() > at_max.detach(), at_min, at_max).mean()


def alpha_divergence(student_BC: Tensor, teacher_BC: Tensor, *, alpha: float, clip: float) -> Tensor:
    """D_alpha of each image (B,), with ratios cut at `clip`; see the module's docstring.

    The gradient is that of D_alpha, `dD/d log q = -1/alpha * q (p / q)^alpha`, with the ratio cut in the same way.
    """
    log_p, log_q = F.log_softmax(teacher_BC.detach(), dim=1), F.log_softmax(student_BC, dim=1)
    fixed_log_q = log_q.detach()
    q, log_ratio = fixed_log_q.exp(), log_p - fixed_log_q
    power = (alpha * log_ratio).clamp(max=math.log(clip)).exp()
    if math.isclose(alpha, 1.0):
        value = (q * power * log_ratio).sum(dim=1)
    else:
        value = (q * (power - 1)).sum(dim=1) / (alpha * (alpha - 1))
    surrogate = -(q * power * log_q).sum(dim=1) / alpha
    return value + surrogate - surrogate.detach()


def check_teacher(config: DistillConfig) -> None:
    """Raises `UsageError` where the teacher that `config` names cannot exist, without reading or fetching weights."""
    name = config.teacher
    if name is None:
        return
    if Path(name).suffix == ".safetensors":
        if not Path(name).is_file():
            raise UsageError(f"train.distill.teacher: {name}: no such checkpoint of a supernet")
        return
    if not timm.is_model(name):
        raise UsageError(f"train.distill.teacher: {unknown_name('timm model', name, timm.list_models())}")
    if not config.pretrained and config.teacher_weights is None:
        raise UsageError(
            f"train.distill.teacher: {name} has no weights to teach with; set train.distill.pretrained=true to fetch "
            "timm's, or train.distill.teacher_weights to the path of your own"
        )
    if config.teacher_weights is not None and not Path(config.teacher_weights).is_file():
        raise UsageError(f"train.distill.teacher_weights: {config.teacher_weights}: no such file")


def load_teacher(config: DistillConfig, *, space: SearchSpace, split: Split, device: torch.device) -> Teacher | None:
    """The teacher that `config` names, in evaluation mode on `device`; None if it names none.

    Raises:
        UsageError: an unknown model, no weights for it, weights that cannot be fetched, other classes or channels
            than the space has.
        DamagedInputError: a file of weights that cannot be read or does not fit.
    """
    check_teacher(config)
    if config.teacher is None:
        return None
    if Path(config.teacher).suffix == ".safetensors":
        path = Path(config.teacher)
        supernet = Checkpoint.load(path).build(source=str(path))
        _check_shape(config.teacher, supernet.space.num_classes, supernet.space.in_chans, space)
        module: nn.Module = extract(supernet, supernet.space.largest())
        module.to(device)
        return module
    model = _timm_model(config, space)
    model.eval().requires_grad_(False).to(device)
    cfg: dict[str, Any] = cast(Any, model).pretrained_cfg
    if not config.pretrained and not cfg.get("fixed_input_size"):
        return model
    # timm's weights know images of their own size and normalization; one's own were trained with that of the split.
    mean, std = (cfg["mean"], cfg["std"]) if config.pretrained else split.normalization
    ours, theirs = (
        torch.tensor(values, device=device).view(2, 1, -1, 1, 1) for values in (tuple(split.normalization), (mean, std))
    )
    size = cfg["input_size"][-2:]

    def teach(x_BCHW: Tensor) -> Tensor:
        pixels = x_BCHW * ours[1] + ours[0]
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
        logits: Tensor = model((pixels - theirs[0]) / theirs[1])
        return logits

    return teach


def _timm_model(config: DistillConfig, space: SearchSpace) -> nn.Module:
    name = str(config.teacher)
    if config.pretrained:
        known = timm.get_pretrained_cfg(name)
        if known is None:
            raise UsageError(f"train.distill.teacher: timm has no weights of {name}; choose another model")
        _check_shape(name, known.num_classes, known.input_size[0], space)  # before anything is fetched
        try:
            model: Any = timm.create_model(name, pretrained=True)
        except Exception as error:  # whatever the hub's client raises: offline, no such file, no weights of that model
            raise UsageError(
                f"train.distill.teacher: the weights of {name} cannot be fetched "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
                "set train.distill.teacher_weights to a local file"
            ) from None
        return cast(nn.Module, model)
    path = Path(str(config.teacher_weights))
    try:
        return timm.create_model(
            name, checkpoint_path=str(path), num_classes=space.num_classes, in_chans=space.in_chans
        )
    except Exception as error:  # torch, pickle and safetensors each have their own
        raise DamagedInputError(
            f"{path}: is not a checkpoint of {name} with {space.num_classes} classes and {space.in_chans} channels: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None


def _check_shape(name: str, num_classes: int, in_chans: int, space: SearchSpace) -> None:
    for key, theirs in (("num_classes", num_classes), ("in_chans", in_chans)):
        ours = getattr(space, key)
        if ours != theirs:
            raise UsageError(f"train.distill.teacher: {name} has {key} {theirs}, the space has {ours}")
