"""The network of a bundle as a model of timm. Importing this module registers it as `quasar_vit`.

    import timm, quasar.timm_model
    model = timm.create_model("quasar_vit", bundle="runs/quickstart/export/latency-0.025ms")
    model = timm.create_model("local-dir:runs/quickstart/export/latency-0.025ms")

It is for inference: weights are integer codes, so there is nothing to train, and its outputs are those of
`SubnetViT`, bit for bit. The weights are the bundle's also where `pretrained` is False, because integers cannot be
initialised at random. timm's other scripts and functions find what they need: `resolve_model_data_config`,
`forward_features`, `forward_head`, `num_features`; the state dict is the content of model.safetensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from timm.models import register_model
from torch import Tensor

from hwmodel.errors import UsageError
from quasar.export.bundle import Bundle, load_bundle
from quasar.export.timm_config import ARCHITECTURE, timm_config
from supernet.standalone import QuantLinear, SubnetViT
from supernet.subnet import Subnet

#: arguments that timm adds by itself, and that mean nothing here
_FROM_TIMM = ("cache_dir", "pretrained_model_args")


class QuasarViT(SubnetViT):
    """`SubnetViT` with the attributes and methods that timm expects of a classifier.

    Args:
        subnet: its architecture and row precisions.
        layer_scale: whether the supernet had layer scaling.
        pretrained_cfg: see `quasar.export.timm_config`.
    """

    def __init__(self, subnet: Subnet, *, layer_scale: bool, pretrained_cfg: dict[str, Any]) -> None:
        super().__init__(subnet, layer_scale=layer_scale)
        self.num_classes = subnet.num_classes
        self.in_chans = subnet.in_chans
        self.num_features = self.head_hidden_size = self.embed_dim = subnet.embed_dim
        self.pretrained_cfg = self.default_cfg = pretrained_cfg

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """Normalised tokens (B, T, D), the class token first; the network itself uses that one alone."""
        normalised: Tensor = self.norm.active()(self.encode(x_BCHW))
        return normalised

    def forward_head(self, x_BTD: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of what `forward_features` gives, or with `pre_logits` what the head takes (B, D)."""
        x_BD = self.sites.quantizer(None)("norm", x_BTD[:, 0])
        return x_BD if pre_logits else self.head.active()(x_BD)

    def get_classifier(self) -> QuantLinear:
        """The head, which holds integer codes, scales and biases."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> NoReturn:
        """Raises NotImplementedError: new weights would have to be trained."""
        raise NotImplementedError(
            "the network of a bundle has integer weights, so it cannot get another classifier; for features call "
            "forward_head(x, pre_logits=True), for other classes train a supernet with space.num_classes"
        )


@register_model
def quasar_vit(
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    bundle: str | Path | None = None,
    **kwargs: Any,
) -> QuasarViT:
    """The network of a bundle, in evaluation mode on the CPU, with its weights whatever `pretrained` says.

    Args:
        pretrained_cfg: what timm read from config.json; its "file" is the bundle where `bundle` is not given. The rest
            is in the bundle's other keys too.
        pretrained_cfg_overlay: replaces keys of the model's `pretrained_cfg`.
        bundle: a folder that `quasar export` wrote.
        kwargs: `num_classes`, `in_chans` and `img_size` may repeat what the bundle has.

    Raises:
        UsageError: no bundle, or an argument that the network cannot follow.
        DamagedInputError: the bundle is damaged.
    """
    folder = bundle or (pretrained_cfg.get("file") if isinstance(pretrained_cfg, dict) else None)
    if folder is None:
        raise UsageError(
            f"{ARCHITECTURE}: give the folder of a bundle: timm.create_model('{ARCHITECTURE}', bundle=FOLDER), or "
            "timm.create_model('local-dir:FOLDER'); one from the Hugging Face Hub has to be downloaded first"
        )
    loaded = load_bundle(Path(folder))
    cfg = _pretrained_cfg(loaded) | {"architecture": ARCHITECTURE, "file": str(folder), "source": "local-dir"}
    _refuse_changes(kwargs, cfg, str(folder))
    config = loaded.config
    model = QuasarViT(
        config.subnet, layer_scale=config.layer_scale, pretrained_cfg=cfg | (pretrained_cfg_overlay or {})
    )
    model.load_state_dict(loaded.module().state_dict())
    return model.eval()


def _pretrained_cfg(bundle: Bundle) -> dict[str, Any]:
    config = bundle.config
    return timm_config(
        config.subnet,
        data=config.data,
        mean=config.mean,
        std=config.std,
        training_image_size=config.training_image_size,
    )


def _refuse_changes(kwargs: dict[str, Any], cfg: dict[str, Any], folder: str) -> None:
    channels, size = cfg["input_size"][:2]
    fixed = {"num_classes": cfg["num_classes"], "in_chans": channels, "img_size": size}
    for name, value in kwargs.items():
        if name in fixed and value not in (fixed[name], (fixed[name], fixed[name])):
            raise UsageError(f"{folder}: its network has {name}={fixed[name]}, and it cannot be made for {value}")
        if name not in fixed and name not in _FROM_TIMM:
            raise UsageError(f"{folder}: its network is for inference and takes no argument '{name}'; leave it out")
