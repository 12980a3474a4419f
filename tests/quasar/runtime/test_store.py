"""Subnets on one store give what their bundles' own modules give, and hold no weights of their own."""

import pytest
import torch

from hwmodel.errors import UsageError
from quasar.runtime.store import Rows, StoredLinear, share, tensor_bytes
from supernet.plan import LinearPlan
from supernet.standalone import extract


def test_logits_are_those_of_the_bundles_own_modules_bit_for_bit(bundles):
    images = torch.randn(5, 1, 8, 8)
    with torch.inference_mode():
        for bundle, network in zip(bundles, share(bundles), strict=True):
            assert torch.equal(network(images), bundle.module()(images))


def test_rows_of_both_precisions_are_joined_in_each_group():
    high = Rows(
        codes=torch.tensor([[[100, -3]], [[7, 8]]], dtype=torch.int8),
        scale=torch.tensor([[0.5], [2.0]]),
        bias=torch.tensor([[1.0], [2.0]]),
    )
    low = Rows(
        codes=torch.tensor([[[1, -7]], [[0, 5]]], dtype=torch.int8),
        scale=torch.tensor([[3.0], [4.0]]),
        bias=torch.tensor([[-1.0], [-2.0]]),
    )
    plan = LinearPlan(site="norm1", rows=4, inputs=2, group=2, high=1, low_bits=4, high_bits=8)
    weight, bias, *_ = StoredLinear(plan, [high, low]).active()
    assert weight.tolist() == [[50.0, -1.5], [3.0, -21.0], [14.0, 16.0], [0.0, 20.0]]
    assert bias.tolist() == [1.0, -1.0, 2.0, -2.0]


def test_a_subnet_that_is_a_part_of_another_takes_no_memory(shared_supernet, subnets, write, tmp_path):
    largest = subnets[-1]
    shallow = type(largest)(**{**_fields(largest), "blocks": largest.blocks[:1]})
    pair = [write(extract(shared_supernet, s), tmp_path / name) for s, name in ((largest, "large"), (shallow, "small"))]
    assert tensor_bytes(share(pair)) == tensor_bytes(share(pair[:1])) == tensor_bytes([pair[0].module()])


def test_each_precision_of_a_row_is_stored_once(bundles):
    networks = share(bundles)
    linears = {name for n in networks for name, child in n.named_modules() if isinstance(child, StoredLinear)}
    codes = {b.untyped_storage().data_ptr() for n in networks for name, b in n.named_buffers() if "codes" in name}
    assert len(codes) <= 2 * len(linears)
    assert tensor_bytes(networks) < sum(tensor_bytes([bundle.module()]) for bundle in bundles)


def test_biases_and_scales_of_its_own_are_kept(shared_supernet, subnets, write, tmp_path):
    largest = subnets[-1]
    changed = extract(shared_supernet, largest)
    changed.blocks[0].mlp["fc1"].bias.mul_(2)
    changed.blocks[0].mlp["fc1"].scale.mul_(0.5)
    changed.norm.weight.add_(1)
    pair = [write(extract(shared_supernet, largest), tmp_path / "a"), write(changed, tmp_path / "b")]
    images = torch.randn(3, 1, 8, 8)
    with torch.inference_mode():
        for bundle, network in zip(pair, share(pair), strict=True):
            assert torch.equal(network(images), bundle.module()(images))


def test_other_supernets_are_refused(bundles, make_space, make_supernet, subnets, write, tmp_path):
    other = make_supernet(make_space(), seed=1)
    foreign = write(extract(other, subnets[0]), tmp_path / "foreign", checkpoint_digest="fedcba9876543210")
    with pytest.raises(UsageError, match=r"s4.* and .*foreign.*|foreign.* and .*s\d.* do not share one store") as error:
        share([*bundles, foreign])
    assert "different supernets; give bundles of one run" in str(error.value)


def test_a_subnet_that_was_trained_further_is_refused(shared_supernet, bundles, subnets, write, tmp_path):
    trained = extract(shared_supernet, subnets[-1])
    codes = trained.blocks[0].mlp["fc2"].codes
    codes[-1, -1] = 1 if codes[-1, -1] != 1 else 2
    tuned = write(trained, tmp_path / "tuned")
    with pytest.raises(UsageError, match=r"rows of blocks\.0\.mlp\.fc2 differ; one of them was trained further"):
        share([*bundles, tuned])


def _fields(subnet):
    return {name: getattr(subnet, name) for name in subnet.__slots__}
