import dataclasses

import pytest
import safetensors.torch
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from hwmodel.errors import DamagedInputError, QuasarError, UsageError
from supernet.checkpoint import Checkpoint
from supernet.config import SupernetConfig, TrainConfig
from supernet.data.config import DataConfig
from supernet.data.splits import open_train
from supernet.evaluate import evaluate
from supernet.functional import Observer
from supernet.pretrained import initialise
from supernet.space import SearchSpace
from supernet.standalone import extract
from supernet.train import train
from supernet.vit import SupernetViT, unquantized

SPACE = SearchSpace(
    num_classes=10,
    in_chans=1,
    patch_size=2,
    head_dim=4,
    image_size=(8,),
    embed_dim=(8, 12),
    depth=(1, 2),
    num_heads=(2, 3),
    mlp_ratio=(1.0, 2.0),
    high_precision_ratio=(0.0, 0.5, 1.0),
)


def make_vit(**changes):
    """A plain ViT of the shape of the largest subnet, with weights of which none is at its initial value."""
    settings = {
        "img_size": 8,
        "patch_size": 2,
        "in_chans": 1,
        "num_classes": 10,
        "embed_dim": 12,
        "depth": 2,
        "num_heads": 3,
        "mlp_ratio": 2.0,
    }
    torch.manual_seed(0)
    vit = VisionTransformer(**(settings | changes)).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return vit


@pytest.fixture
def save(tmp_path):
    def save_weights(vit, name="vit.safetensors"):
        path = tmp_path / name
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(vit.state_dict(), path)
        else:
            torch.save({"model": vit.state_dict(), "epoch": 3}, path)
        return str(path)

    return save_weights


def start(source, space=SPACE, layer_scale=0.1):
    model = SupernetViT(space, layer_scale=layer_scale)
    initialise(model, source)
    return model


@torch.no_grad()
def in_floats(model, x):
    return model(x, model.space.largest(), Observer(quantize=False), weights=unquantized)


def assert_same_function(model, vit):
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(in_floats(model, x), vit(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layer_scale", [0.1, None])
@pytest.mark.parametrize("name", ["vit.safetensors", "vit.pth"])
@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False}, {"init_values": 0.5}])
def test_the_largest_subnet_is_the_plain_vit(save, name, layer_scale, changes):
    vit = make_vit(**changes)
    assert_same_function(start(save(vit, name), layer_scale=layer_scale), vit)


def test_a_timm_model_comes_by_name(monkeypatch, capsys):
    vit = make_vit(img_size=224, patch_size=16, in_chans=3, num_classes=1000, embed_dim=192, num_heads=3, depth=12)
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    monkeypatch.setattr(timm, "create_model", lambda name, **options: vit)
    space = SearchSpace(
        num_classes=1000,
        in_chans=3,
        patch_size=16,
        head_dim=64,
        image_size=(224,),
        embed_dim=(192,),
        depth=(12,),
        num_heads="embed",
        mlp_ratio=(4.0,),
        high_precision_ratio=(1.0,),
    )
    model = start("vit_tiny_patch16_224", space)
    assert torch.equal(model.blocks[11].mlp.fc2.weight, vit.blocks[11].mlp.fc2.weight)
    assert "data.mean: [0.5, 0.5, 0.5]" in capsys.readouterr().err
    with pytest.raises(UsageError, match="has head_dim 64, the largest subnet of the space 32"):
        start("vit_tiny_patch16_224", dataclasses.replace(space, head_dim=32))


def test_weights_that_cannot_be_fetched_are_one_line(monkeypatch):
    original = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no\nroute")
        return original(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    space = dataclasses.replace(SPACE, head_dim=64)
    with pytest.raises(QuasarError, match=r"cannot be fetched \(no route\); download the file"):
        start("vit_tiny_patch16_224", space)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 4}, "patch_size 4, the largest subnet of the space 2"),
        ({"in_chans": 3}, "in_chans 3"),
        ({"embed_dim": 24}, "embed_dim 24, the largest subnet of the space 12.*largest choice of space.embed_dim"),
        ({"depth": 3}, "depth 3"),
        ({"mlp_ratio": 3.0}, "mlp_ratio 3.0, the largest subnet of the space 2.0"),
        ({"qk_norm": True}, r"blocks\.0\.attn\.k_norm.*which a plain ViT"),
        ({"class_token": False, "global_pool": "avg"}, "has no tensor 'cls_token'"),
        ({"reg_tokens": 2}, "'reg_token'"),
    ],
)
def test_another_shape_is_named(save, changes, message):
    with pytest.raises(UsageError, match=message):
        start(save(make_vit(**changes)))


def test_a_distilled_deit_is_refused(save, tmp_path):
    path = tmp_path / "deit.safetensors"
    safetensors.torch.save_file(make_vit().state_dict() | {"dist_token": torch.zeros(1, 1, 12)}, path)
    with pytest.raises(UsageError, match="distilled DeiT with two class tokens; use one without"):
        start(str(path))
    with pytest.raises(UsageError, match="not a plain Vision Transformer with one class token"):
        start("deit_tiny_distilled_patch16_224")


def test_another_head_starts_anew(save, capsys):
    vit = make_vit(num_classes=7)
    model = start(save(vit))
    assert "tells 7 classes apart, space.num_classes is 10: the head starts anew" in capsys.readouterr().err
    assert model.head.weight.std() > 0.05
    assert torch.equal(model.norm.weight, vit.norm.weight)


def test_positions_of_another_grid_are_interpolated(save):
    model = start(save(make_vit(img_size=12)))
    assert model.position.shape == (17, 12)


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(UsageError, match=r"missing\.pth: no such file"):
        start(str(tmp_path / "missing.pth"))
    with pytest.raises(UsageError, match="timm model"):
        start("vit_tiny_patch16_225")
    for name in ("noise.safetensors", "noise.pth"):
        (tmp_path / name).write_bytes(b"noise" * 100)
        with pytest.raises(DamagedInputError, match=name):
            start(str(tmp_path / name))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UsageError, match="holds no state dict"):
        start(str(tmp_path / "list.pth"))


def checkpoint_of(model, layer_scale):
    return Checkpoint(
        space=model.space,
        supernet=SupernetConfig(layer_scale=layer_scale),
        model=model.state_dict(),
        epoch=1,
        step=1,
        best_accuracy=0.5,
        train_digest="",
        settings={},
    )


@pytest.mark.parametrize("theirs", [0.3, None])
@pytest.mark.parametrize("ours", [0.1, None])
def test_a_supernet_goes_on_in_another_phase(tmp_path, theirs, ours):
    floats = dataclasses.replace(SPACE, high_precision_ratio=(1.0,))
    source = SupernetViT(floats, layer_scale=theirs)
    path = tmp_path / "last.safetensors"
    checkpoint_of(source, theirs).save(path)
    assert_same_function(start(str(path), layer_scale=ours), lambda x: in_floats(source, x))
    with pytest.raises(UsageError, match=r"has depth \(1, 2\), the largest subnet of the space \(1, 2, 3\)"):
        start(str(path), dataclasses.replace(SPACE, depth=(1, 2, 3)))


def test_calibration_alone_gives_a_checkpoint(save, tmp_path):
    splits = open_train(DataConfig(name="digits"), image_size=8, seed=0)
    vit = make_vit()
    result = train(
        space=SPACE,
        supernet=SupernetConfig(init_from=save(vit), calibration_images=40),
        config=TrainConfig(epochs=0, batch_size=64, lr=1e-3),
        train_split=splits[0],
        val_split=splits[1],
        folder=tmp_path / "train",
        seed=0,
        device=torch.device("cpu"),
        progress=lambda done, total, text: None,
    )
    checkpoint = Checkpoint.load(result.checkpoint)
    assert checkpoint.epoch == 0
    model = checkpoint.build(source="last")
    x = next(splits[1].batches(100))[0]
    with torch.no_grad():
        quantized, floats = extract(model, SPACE.largest())(x), vit(x)
    assert (quantized - floats).square().mean() < 0.01 * floats.square().mean()
    assert result.probes["max"] == evaluate(extract(model, SPACE.largest()), splits[1], batch_size=256)
