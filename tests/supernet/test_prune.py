"""Versions of a network with parts left out are what they say, in function and in shape."""

import dataclasses

import pytest
import torch

from hwmodel.errors import UsageError
from supernet.fisher import fisher_scores
from supernet.lowering import lower
from supernet.prune import (
    check_prunable,
    fisher_importance,
    low_precision,
    norm_importance,
    prune,
    pruned_subnet,
    requantized,
    whole,
)
from supernet.standalone import extract
from supernet.subnet import hidden_units


@pytest.fixture
def base(supernet):
    """An extracted subnet with rows of both precisions, its twin at low precision, its importance, and images."""
    subnet = supernet.space.largest()
    blocks = tuple(
        dataclasses.replace(block, fc1_ratio=0.3, qkv_ratio=0.3, proj_ratio=0.3, fc2_ratio=1.0)
        for block in subnet.blocks
    )
    module = extract(supernet, dataclasses.replace(subnet, blocks=blocks))
    images = torch.randn(3, subnet.in_chans, subnet.image_size, subnet.image_size)
    return module, low_precision(supernet, module), norm_importance(module), images


def changed(version, block, **changes):
    return tuple(dataclasses.replace(kept, **changes) if kept.block == block else kept for kept in version)


def test_the_whole_version_is_the_network(base):
    module, low, importance, images = base
    pruned = prune(module, low, whole(module.subnet), importance)
    assert pruned.subnet.digest == module.subnet.digest
    assert torch.equal(pruned(images), module(images))


def test_a_block_left_out_is_skipped(base):
    module, low, importance, images = base
    pruned = prune(module, low, tuple(kept for kept in whole(module.subnet) if kept.block != 1), importance)
    taken = list(module.blocks)
    module.blocks = torch.nn.ModuleList([taken[0], taken[2]])
    assert torch.equal(pruned(images), module(images))


def test_a_head_left_out_is_one_whose_values_nobody_reads(base):
    module, low, importance, images = base
    pruned = prune(module, low, changed(whole(module.subnet), 2, heads=(0, 2)), importance)
    assert pruned.subnet.blocks[2].num_heads == 2
    head_dim = module.subnet.head_dim
    module.blocks[2].mixer["proj"].codes[:, head_dim : 2 * head_dim] = 0
    torch.testing.assert_close(pruned(images), module(images), rtol=1e-5, atol=1e-5)


def test_units_left_out_are_the_least_important(base):
    module, low, importance, images = base
    count = len(importance[0].units) // 2
    pruned = prune(module, low, changed(whole(module.subnet), 0, units=count), importance)
    assert hidden_units(pruned.subnet.blocks[0].mlp_ratio, module.subnet.embed_dim) == count
    gone = importance[0].units.argsort()[: len(importance[0].units) - count]
    module.blocks[0].mlp["fc2"].codes[:, gone] = 0
    torch.testing.assert_close(pruned(images), module(images), rtol=1e-5, atol=1e-5)


def test_units_keep_the_precision_of_their_rows(base):
    module, low, importance, _ = base
    plan = module.blocks[0].mlp["fc1"].plan
    for count in range(1, plan.rows + 1):
        pruned = prune(module, low, changed(whole(module.subnet), 0, units=count), importance)
        kept = importance[0].kept_units(count)
        assert pruned.blocks[0].mlp["fc1"].plan.is_high.tolist() == plan.is_high[kept.numpy()].tolist()


def test_rows_at_low_precision_are_those_of_the_supernet(base, supernet):
    module, low, importance, images = base
    every = tuple(dataclasses.replace(kept, low=("qkv", "proj", "fc1", "fc2")) for kept in whole(module.subnet))
    pruned = prune(module, low, every, importance)
    assert all(ratio == 0 for block in pruned.subnet.blocks for ratio in block.high_precision_ratios)
    assert torch.equal(pruned(images), extract(supernet, pruned.subnet)(images))
    one = prune(module, low, changed(whole(module.subnet), 1, low=("fc2",)), importance)
    assert torch.equal(one.blocks[1].mlp["fc2"].codes, low.blocks[1].mlp["fc2"].codes)
    assert torch.equal(one.blocks[1].mlp["fc1"].codes, module.blocks[1].mlp["fc1"].codes)


def test_codes_can_be_lowered_without_the_supernet(base):
    module, low, _, images = base
    again = requantized(module)
    for ours, theirs, before in zip(again.blocks, low.blocks, module.blocks, strict=True):
        codes, scale = ours.mlp["fc2"].codes, ours.mlp["fc2"].scale
        assert codes.abs().max() <= 7
        weight = before.mlp["fc2"].active().weight
        # Lowered twice, a row errs little more than one that was lowered from floats.
        errors = [
            ((q.float() * s[:, None] - weight) ** 2).sum().item()
            for q, s in ((codes, scale), (theirs.mlp["fc2"].codes, theirs.mlp["fc2"].scale))
        ]
        assert errors[0] <= 1.02 * errors[1]
        kept = ~torch.from_numpy(before.mlp["fc1"].plan.is_high)
        assert torch.equal(ours.mlp["fc1"].codes[kept], before.mlp["fc1"].codes[kept])
    assert torch.isfinite(again(images)).all()


def test_what_is_left_out_costs_less(base):
    module, _, importance, _ = base
    version = whole(module.subnet)
    macs = [
        lower(pruned_subnet(module.subnet, smaller, importance)).macs
        for smaller in (version, changed(version, 0, heads=(1,)), changed(version, 0, units=3), version[1:])
    ]
    assert macs[0] == lower(module.subnet).macs
    assert all(less < macs[0] for less in macs[1:])


def test_importance_by_fisher_is_that_of_the_weights_that_read(supernet):
    subnet = supernet.space.largest()
    batches = [torch.randn(2, subnet.in_chans, subnet.image_size, subnet.image_size)]
    with torch.no_grad():
        supernet.blocks[0].mlp.fc2.weight[:, 5] = 0.0  # nobody reads unit 5
    scores = fisher_scores(supernet, batches, generator=torch.Generator().manual_seed(0))
    importance = fisher_importance(supernet, scores, subnet)
    assert importance[0].units.argmin() == 5
    assert 5 not in importance[0].kept_units(len(importance[0].units) - 1)
    assert len(importance[0].heads) == subnet.blocks[0].num_heads


def test_norms_need_no_images(base):
    module, *_ = base
    module.blocks[1].mixer["proj"].codes[:, : module.subnet.head_dim] = 0
    assert norm_importance(module)[1].heads.argmin() == 0


def test_other_operators_are_refused(supernet):
    subnet = supernet.space.largest()
    other = dataclasses.replace(subnet.blocks[1], operator="pooling")
    with pytest.raises(UsageError, match=r"^run: block 1 has the operator 'pooling'"):
        check_prunable(dataclasses.replace(subnet, blocks=(subnet.blocks[0], other)), source="run")
    check_prunable(subnet, source="run")
