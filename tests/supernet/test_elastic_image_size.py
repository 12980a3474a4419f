"""One supernet, several input sizes: positions are interpolated in training, in extraction, and so in a search."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)

from supernet.checkpoint import Checkpoint
from supernet.config import SupernetConfig, TrainConfig
from supernet.data.config import DataConfig
from supernet.data.splits import open_train
from supernet.evaluate import evaluate
from supernet.functional import resize_position
from supernet.space import SearchSpace
from supernet.standalone import extract
from supernet.train import train
from supernet.vit import SupernetViT, unquantized

SPACE = SearchSpace(
    num_classes=10,
    in_chans=1,
    patch_size=2,
    head_dim=8,
    image_size=(4, 6, 8),
    embed_dim=(24,),
    depth=(1,),
    num_heads="embed",
    mlp_ratio=(2,),
    high_precision_ratio=(1.0,),
)


def of_size(size):
    return dataclasses.replace(SPACE.largest(), image_size=size)


@pytest.fixture(scope="module")
def splits():
    return open_train(DataConfig(name="digits", val_fraction=0.2), image_size=8, seed=0)


@pytest.fixture(scope="module")
def trained(splits, tmp_path_factory):
    """A supernet whose steps draw their image size."""
    result = train(
        space=SPACE,
        supernet=SupernetConfig(layer_scale=0.5),
        config=TrainConfig(epochs=8, batch_size=64, lr=6e-3, warmup_epochs=1, eval_every=8),
        train_split=splits[0],
        val_split=splits[1],
        folder=tmp_path_factory.mktemp("train"),
        seed=0,
        device=torch.device("cpu"),
        progress=lambda done, total, text: None,
    )
    return Checkpoint.load(result.checkpoint).build(source="test").eval()


def test_gradients_of_a_small_image_reach_all_positions_as_interpolation_does():
    torch.manual_seed(0)
    model = SupernetViT(SPACE, layer_scale=0.5)
    model(torch.randn(2, 1, 8, 8), of_size(4), weights=unquantized).square().sum().backward()
    assert model.position.grad.shape == (17, 24)
    assert (model.position.grad.abs().sum(dim=1) > 0).all()
    # resizing is linear, so that its gradient is the transposed interpolation of the small grid's
    small = torch.randn(5, 24)
    table = model.position.detach().requires_grad_()
    (resize_position(table, 2) * small).sum().backward()
    square = torch.eye(16).reshape(16, 1, 4, 4)
    matrix = F.interpolate(square, size=(2, 2), mode="bicubic", antialias=True, align_corners=False).reshape(16, 4)
    torch.testing.assert_close(table.grad, torch.cat([small[:1], matrix @ small[1:]]))


def test_every_size_learns_in_one_supernet(trained, splits):
    modules = [extract(trained, of_size(size)) for size in SPACE.image_size]
    accuracies = [evaluate(module, splits[1], batch_size=512).accuracy for module in modules]
    assert min(accuracies) > 0.35  # chance is 0.1


def test_extraction_at_every_size_is_exact_and_positions_are_interpolated(trained):
    x = torch.randn(4, 1, 8, 8)
    for size in SPACE.image_size:
        subnet = of_size(size)
        module = extract(trained, subnet)
        assert torch.equal(module.position, resize_position(trained.position, size // 2))
        with torch.no_grad():
            assert torch.equal(module(x), trained(x, subnet))


def test_interpolated_positions_are_worth_something(trained, splits):
    """With the first positions of the table in place of interpolated ones, a smaller image is recognised less."""
    module = extract(trained, of_size(6))
    before = evaluate(module, splits[1], batch_size=512).accuracy
    module.position.copy_(trained.position[: len(module.position)])
    assert evaluate(module, splits[1], batch_size=512).accuracy < before - 0.05
