"""Initial weights of a supernet's largest subnet: from a plain Vision Transformer, or from another supernet.

`supernet.init_from` names one of

* a model of timm, such as vit_tiny_patch16_224 or deit_small_patch16_224, whose weights timm fetches;
* a file (safetensors, or torch's format) with the state dict of such a model, by itself or under "model" or
  "state_dict";
* a checkpoint of a Quasar supernet of the same space, for the step from float to quantized training.

The tensors of a plain ViT become those of the largest subnet as they are, but for the rows of qkv: timm orders them
(q|k|v, head, channel), a supernet (head, q|k|v, channel), so that a prefix keeps whole heads. Supernet layer scaling
starts at 1 then, which leaves the function as it was; a source with layer scaling of its own (`ls1.gamma`) gives its
values, or has them folded into proj and fc2 where `supernet.layer_scale` is null.

`prepare` does all that comes before the first training step; with `train.epochs: 0` that is all there is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hwmodel.errors import DamagedInputError, QuasarError, UsageError
from supernet.calibrate import calibrate
from supernet.checkpoint import Checkpoint
from supernet.config import SupernetConfig
from supernet.data.splits import Split
from supernet.functional import resize_position
from supernet.outliers import soften_outliers
from supernet.reorder import reorder
from supernet.subnet import hidden_units
from supernet.timm_vit import plain_vit
from supernet.vit import ElasticAttention, ElasticBlock, ElasticLinear, ElasticNorm, SupernetViT

_FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".tar", ".ckpt")
_KEY = "supernet.init_from"
#: images at once in passes that calibrate
_BATCH = 25


def prepare(model: SupernetViT, config: SupernetConfig, split: Split, *, seed: int) -> None:
    """Initial weights as `config` says, and activation ranges from images of `split`; learned scales start there.

    Raises:
        UsageError: `init_from` cannot initialise this space; the message says which dimension differs.
        DamagedInputError: the file cannot be read.
    """
    device = model.cls_token.device
    images = split.batches(_BATCH, device=device, limit=config.calibration_images)
    batches = [x_BCHW for x_BCHW, _ in images]
    if config.init_from is not None:
        trained = initialise(model, config.init_from)
        if not trained:
            count = soften_outliers(model, batches)
            if count:
                _say(f"{count} hidden unit{'s' * (count > 1)} with massive activations rescaled")
        if config.reorder:
            reorder(model, batches, generator=torch.Generator().manual_seed(seed), keep_subnets=trained)
    calibrate(model, batches)
    if config.scales == "learned":
        model.learn_scales()


def check_source(source: str) -> None:
    """Raises `UsageError` where `source` is neither a file nor a plain ViT of timm, without fetching anything."""
    path = Path(source).expanduser()
    if path.is_file():
        return
    if path.suffix in _FILE_SUFFIXES or "/" in source:
        raise UsageError(f"{_KEY}: {path}: no such file; give a timm model's name or the path of its weights")
    try:
        plain_vit(source)
    except UsageError as error:
        raise UsageError(f"{_KEY}: {error}") from None


@torch.no_grad()
def initialise(model: SupernetViT, source: str) -> bool:
    """Copies the weights that `source` names; True if they are those of a supernet, whose subnets are all trained.

    Raises:
        UsageError: there is no such model or file, or it is of another shape or kind.
        DamagedInputError: the file cannot be read.
    """
    check_source(source)
    path = Path(source).expanduser()
    if not path.is_file():
        _copy_plain(model, _fetch(source, model), source=source)
        return False
    if path.suffix == ".safetensors" and _is_supernet(path):
        _copy_supernet(model, Checkpoint.load(path), source=str(path))
        return True
    _copy_plain(model, _read(path), source=str(path))
    return False


def _fetch(name: str, model: SupernetViT) -> dict[str, Tensor]:
    """The state dict of timm's pretrained model; its shape is checked first, without fetching anything."""
    import timm

    shape = plain_vit(name)
    eps = shape.norm.eps
    if eps != 1e-6:
        raise UsageError(f"{_KEY}: the norms of {name} add {eps} to the variance, those of a supernet 1e-06")
    heads = cast(Any, shape.blocks[0]).attn.num_heads
    if shape.embed_dim // heads != model.space.head_dim:
        raise _differs(name, "head_dim", shape.embed_dim // heads, model.space.head_dim)
    config = cast(dict[str, Any], shape.pretrained_cfg)
    _say(f"{name} was trained with data.mean: {list(config['mean'])} and data.std: {list(config['std'])}")
    try:
        return dict(timm.create_model(name, pretrained=True).state_dict())
    except Exception as error:  # whatever the hub's client raises
        raise QuasarError(
            f"{_KEY}: the weights of {name} cannot be fetched ({' '.join(str(error).split())[:200]}); "
            "download the file elsewhere and give its path"
        ) from error


def _is_supernet(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return "quasar" in (file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise DamagedInputError(f"{path}: is not a whole safetensors file ({error}); copy it again") from None


def _read(path: Path) -> dict[str, Tensor]:
    """The state dict in a file."""
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise DamagedInputError(
            f"{path}: cannot be read as weights ({' '.join(str(error).split())[:200]}); copy it again"
        ) from None
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UsageError(f"{_KEY}: {path}: holds no state dict; save the model's `state_dict()`")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _copy_supernet(model: SupernetViT, checkpoint: Checkpoint, *, source: str) -> None:
    """Takes over all weights; which shares of rows are at high precision, and at how many bits, may differ."""
    for key, ours in asdict(model.space).items():
        theirs = asdict(checkpoint.space)[key]
        if theirs != ours and key not in ("high_precision_ratio", "weight_bits"):
            raise _differs(source, f"space.{key}", theirs, ours)
    other = checkpoint.build(source=source)
    for ours, block in zip(_blocks(model), _blocks(other), strict=True):
        mixers = [cast(ElasticLinear, mixer.get_submodule("proj")) for mixer in block.mixers.values()]
        _take_layer_scale(ours.scale1, block.scale1, mixers)
        _take_layer_scale(ours.scale2, block.scale2, [block.mlp.fc2])
    # Without the scales that only one of the two has, which are folded or 1 by now.
    own = model.state_dict()
    model.load_state_dict(own | {name: value for name, value in other.state_dict().items() if name in own})


def _copy_plain(model: SupernetViT, state: dict[str, Tensor], *, source: str) -> None:
    """Copies a plain ViT into the largest subnet; operators beside attention start with its weights, too."""
    _check_plain(model, state, source)
    space = model.space
    model.cls_token.copy_(state["cls_token"].flatten())
    model.position.copy_(resize_position(state["pos_embed"][0], space.image_size[-1] // space.patch_size))
    _copy(model.patch_embed, state, "patch_embed.proj")
    _copy(model.norm, state, "norm")
    for index, block in enumerate(_blocks(model)):
        name = f"blocks.{index}"
        mixers, mlp = [cast(ElasticAttention, mixer) for mixer in block.mixers.values()], block.mlp
        _copy(block.norm1, state, f"{name}.norm1")
        _copy(block.norm2, state, f"{name}.norm2")
        for mixer in mixers:
            _copy(mixer.qkv, state, f"{name}.attn.qkv", heads=space.max_heads)
            _copy(mixer.proj, state, f"{name}.attn.proj")
        _copy(mlp.fc1, state, f"{name}.mlp.fc1")
        _copy(mlp.fc2, state, f"{name}.mlp.fc2")
        _take_layer_scale(block.scale1, state.get(f"{name}.ls1.gamma"), [mixer.proj for mixer in mixers])
        _take_layer_scale(block.scale2, state.get(f"{name}.ls2.gamma"), [mlp.fc2])
    classes = state["head.weight"].shape[0] if "head.weight" in state else 0
    if classes == space.num_classes:
        _copy(model.head, state, "head")
    else:
        _say(f"{source} tells {classes} classes apart, space.num_classes is {space.num_classes}: the head starts anew")
    model.refresh_clips()


def _copy(
    target: ElasticLinear | ElasticNorm, state: dict[str, Tensor], name: str, *, heads: int | None = None
) -> None:
    """Weight, and bias or 0; with `heads`, rows in the order (q|k|v, head, channel) become (head, q|k|v, channel)."""
    for key, tensor in (("weight", target.weight), ("bias", target.bias)):
        value = state.get(f"{name}.{key}", torch.zeros_like(tensor))
        if heads is not None:
            value = value.reshape(3, heads, -1, *value.shape[1:]).transpose(0, 1)
        tensor.copy_(value.reshape(tensor.shape))


def _take_layer_scale(ours: Tensor | None, theirs: Tensor | None, linears: Iterable[ElasticLinear]) -> None:
    """Gives `ours` the source's values, or 1; where there are none, `linears` take them into their rows."""
    if ours is not None:
        ours.copy_(torch.ones_like(ours) if theirs is None else theirs)
    elif theirs is not None:
        for linear in linears:
            linear.weight.mul_(theirs[:, None])
            linear.bias.mul_(theirs)


def _check_plain(model: SupernetViT, state: dict[str, Tensor], source: str) -> None:
    """Raises `UsageError` unless `state` is a plain ViT of the shape of the space's largest subnet."""
    space = model.space
    if "attention" not in space.operator:
        raise UsageError(f"{_KEY}: a plain ViT mixes by attention; add it to space.operator")
    if "dist_token" in state or "head_dist.weight" in state:
        raise UsageError(
            f"{_KEY}: {source} is a distilled DeiT with two class tokens; use one without, such as "
            "deit_tiny_patch16_224"
        )
    missing = [name for name in ("cls_token", "pos_embed", "patch_embed.proj.weight") if name not in state]
    if missing:
        raise UsageError(f"{_KEY}: {source} has no tensor '{missing[0]}', so it is no ViT with timm's names")
    own = {name.replace(".mixers.attention.", ".attn.") for name in model.state_dict()}
    own = {name for name in own if ".mixers." not in name}
    known = {"pos_embed", *(name.replace("patch_embed.", "patch_embed.proj.") for name in own)}
    depth = 1 + max((int(name.split(".")[1]) for name in state if name.startswith("blocks.")), default=-1)
    width, in_chans, patch_size = (state["patch_embed.proj.weight"].shape[i] for i in (0, 1, 3))
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0] if "blocks.0.mlp.fc1.weight" in state else 0
    for key, theirs, ours in (
        ("patch_size", patch_size, space.patch_size),
        ("in_chans", in_chans, space.in_chans),
        ("embed_dim", width, space.embed_dim[-1]),
        ("depth", depth, space.max_depth),
        ("num_heads", width // space.head_dim, space.max_heads),
        ("mlp_ratio", hidden / width, int(hidden_units(space.mlp_ratio[-1], width)) / width),
    ):
        if theirs != ours:
            raise _differs(source, f"space.{key}", theirs, ours)
    for name in state:
        if name not in known and not name.endswith((".ls1.gamma", ".ls2.gamma")):
            raise UsageError(f"{_KEY}: {source} has a tensor '{name}', which a plain ViT with a class token has not")
    optional = (".qkv.bias", "head.weight", "head.bias")
    for name in known:
        if name.endswith((".weight", ".bias")) and name not in state and not name.endswith(optional):
            raise UsageError(f"{_KEY}: {source} has no tensor '{name}', which a plain ViT has")


def _differs(source: str, key: str, theirs: object, ours: object) -> UsageError:
    return UsageError(
        f"{_KEY}: {source} has {key.removeprefix('space.')} {theirs}, the largest subnet of the space {ours}; "
        f"the largest choice of space.{key.removeprefix('space.')} must be {theirs}"
    )


def _blocks(model: SupernetViT) -> Iterable[ElasticBlock]:
    return cast(Iterable[ElasticBlock], model.blocks)


def _say(text: str) -> None:
    print(f"{_KEY}: {text}", file=sys.stderr)
