import copy

import pytest
import torch

from hwmodel.errors import UsageError
from supernet.functional import Observer
from supernet.outliers import OUTLIER, soften_outliers
from supernet.reorder import importance_order, reorder
from supernet.vit import unquantized


def images(count=6):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def in_floats(model, subnet, x):
    return model(x, subnet, Observer(quantize=False), weights=unquantized)


@pytest.fixture
def trained(make_space, make_supernet):
    """A supernet with weights of which none is at its initial value."""
    model = make_supernet(make_space())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_units_are_sorted_within_the_tiers_of_their_removal():
    low = torch.tensor([1.0, 5, 3, 4, 2])
    removed = torch.tensor([9.0, 1, 8, 2, 7])
    # the choice of 3 keeps units 0, 2 and 4; among those, low precision costs most at 2
    assert importance_order(low, removed, (3, 5)).tolist() == [2, 4, 0, 1, 3]
    assert importance_order(low, removed, (5,)).tolist() == [1, 3, 2, 4, 0]
    assert importance_order(low, -torch.arange(5), (2, 4)).tolist() == [1, 0, 3, 2, 4]


@pytest.mark.parametrize("keep_subnets", [False, True])
def test_the_float_function_stays(trained, keep_subnets):
    space, before = trained.space, copy.deepcopy(trained)
    reorder(trained, [images()], generator=torch.Generator().manual_seed(0), keep_subnets=keep_subnets)
    assert not torch.equal(trained.blocks[0].mlp.fc1.weight, before.blocks[0].mlp.fc1.weight)
    assert not torch.equal(trained.cls_token, before.cls_token)
    x = images(8)
    largest = in_floats(before, space.largest(), x)
    torch.testing.assert_close(in_floats(trained, space.largest(), x), largest, atol=1e-4, rtol=1e-4)
    smallest = in_floats(before, space.smallest(), x)
    same = torch.allclose(in_floats(trained, space.smallest(), x), smallest, atol=1e-4)
    assert same == keep_subnets


def test_what_low_precision_costs_most_comes_first(make_space, make_supernet):
    space = make_space(embed_dim=(16,), mlp_ratio=(2,), num_heads=(2,), depth=(1,), image_size=(8,))
    model = make_supernet(space)
    attention, mlp = model.blocks[0].mixers["attention"], model.blocks[0].mlp
    kept = (mlp.fc1, 30), (mlp.fc2, 11), (attention.qkv, 12 * 1 + 8 + 2)  # the last is channel 2 of v of head 1
    with torch.no_grad():
        for linear in (attention.qkv, attention.proj, mlp.fc1, mlp.fc2):
            linear.weight.copy_(0.2 * linear.weight.sign())  # has no error at 4 bits
        for linear, row in kept:
            linear.weight[row] *= torch.rand(linear.weight.shape[1])
    model.refresh_clips()
    unit, channel, value = (linear.weight[row].norm().item() for linear, row in kept)
    reorder(model, [images(16)], generator=torch.Generator().manual_seed(0))
    # rows are found again by their norms: inputs were reordered, too
    assert mlp.fc1.weight[0].norm().item() == pytest.approx(unit, rel=1e-5)
    assert mlp.fc2.weight[0].norm().item() == pytest.approx(channel, rel=1e-5)
    first_values = attention.qkv.weight.reshape(2, 3, 4, 16)[:, 2, 0].norm(dim=1)
    assert first_values.min().item() == pytest.approx(value, rel=1e-5)


def test_other_operators_are_refused(trained):
    object.__setattr__(trained.space, "operator", ("attention", "other"))
    with pytest.raises(UsageError, match="only attention can be reordered"):
        reorder(trained, [images()], generator=torch.Generator())


def test_an_outlier_becomes_small_and_the_function_stays(make_space, make_supernet):
    space = make_space(embed_dim=(16,), mlp_ratio=(8,), num_heads=(2,), depth=(1, 2), image_size=(8,))
    model = make_supernet(space)
    mlp, x = model.blocks[1].mlp, images(64)
    with torch.no_grad():
        # far above for inputs along one direction, far below for all others
        mlp.fc1.weight[5] = 0
        mlp.fc1.weight[5, 3] = 150.0
        mlp.fc1.bias[5] = -225.0
        mlp.fc2.weight[:, 5] *= 0.05
    seen = {}

    class Watch(Observer):
        def record(self, sites, index, values):
            if sites is model.blocks[1].sites and sites.names[index] == "fc1":
                seen["largest"] = values.amax(dim=(0, 1))

    def largest():
        with torch.no_grad():
            model(x, space.largest(), Watch(quantize=False), weights=unquantized)
        return seen["largest"]

    before, output = largest(), in_floats(model, space.largest(), x)
    others = before[torch.arange(len(before)) != 5].max()
    assert before[5] > OUTLIER * others
    assert soften_outliers(model, [x]) == 1
    assert largest()[5] <= 2.6 * others
    assert (in_floats(model, space.largest(), x) - output).std() < 0.15 * output.std()
    assert soften_outliers(model, [x]) == 0
