import dataclasses

import numpy as np
import pytest
import torch

from supernet.fisher import _low_error, expected_divergence
from supernet.functional import Observer
from supernet.quantize import qmax
from supernet.vit import quantized, unquantized


@pytest.fixture
def trained(make_space, make_supernet):
    """A supernet whose row precisions alone are open, with weights of which none is at its initial value."""
    space = make_space(
        image_size=(8,),
        embed_dim=(16,),
        depth=(2,),
        num_heads=(2,),
        mlp_ratio=(2,),
        high_precision_ratio=(0, 0.5, 1),
    )
    model = make_supernet(space)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.measure_rows()
    model.refresh_clips()
    return model


def images(count):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def expected(model, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return expected_divergence(model, images(count).split(25), generator=generator)


def test_the_error_of_low_precision_by_hand(trained):
    linear = trained.blocks[0].mlp.fc1
    with torch.no_grad():
        linear.weight[0] = torch.tensor([7.0, 0.4, -0.6, *[0.0] * (linear.weight.shape[1] - 3)])
    trained.measure_rows()
    linear.clip[0] = 1
    assert qmax(linear.low_bits) == 7
    torch.testing.assert_close(_low_error(linear)[0, :3], torch.tensor([0.0, 0.4, 0.4]))


def test_only_low_rows_are_expected_to_cost(trained):
    space, nats = trained.space, expected(trained, 20)
    rows = np.array(
        [name.split(".")[-1] in ("qkv_ratio", "proj_ratio", "fc1_ratio", "fc2_ratio") for name in space.gene_names]
    )
    assert nats.shape == (len(space.gene_sizes), 3)
    assert not nats[~rows].any()
    assert (nats[rows, 0] > nats[rows, 1]).all()
    assert (nats[rows, 1] > 0).all()
    assert not nats[:, 2].any()
    np.testing.assert_array_equal(nats, expected(trained, 20))


def test_the_expectation_is_what_quantizing_a_linear_costs(trained):
    """Activations stay in floats, and the errors at high precision are small beside those at low precision."""
    space, x = trained.space, images(300)
    largest = space.largest()

    @torch.no_grad()
    def log_shares(subnet, weights):
        return trained(x, subnet, Observer(quantize=False), weights=weights).log_softmax(dim=1)

    reference = log_shares(largest, unquantized)

    def divergence(subnet):
        found = log_shares(subnet, quantized)
        return float((reference.exp() * (reference - found)).sum(dim=1).mean())

    def with_low(block, linear):
        blocks = list(largest.blocks)
        blocks[block] = dataclasses.replace(blocks[block], **{f"{linear}_ratio": 0.0})
        return dataclasses.replace(largest, blocks=tuple(blocks))

    least, nats = divergence(largest), expected(trained, 300)
    pairs = [
        (nats[space.gene_names.index(f"blocks.{block}.{linear}_ratio"), 0], divergence(with_low(block, linear)) - least)
        for block in range(2)
        for linear in ("qkv", "proj", "fc1", "fc2")
    ]
    forecast, measured = np.array(pairs).T
    assert np.corrcoef(np.log(forecast), np.log(measured))[0, 1] > 0.6
    assert 0.67 < forecast.sum() / measured.sum() < 1.5
