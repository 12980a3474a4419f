"""Subnets from stores that are quantized once: the outputs of extracted modules, and nothing quantized again."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.errors import UsageError
from supernet.functional import Linear
from supernet.plan import mlp_plan
from supernet.standalone import extract
from supernet.stores import Stores, fastest_precision
from supernet.vit import CodesOnce, ElasticLinear

integer_products = pytest.mark.skipif(
    fastest_precision(torch.device("cpu")) != "int8", reason="this CPU does not multiply int8 fast and exactly"
)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), layer_scale=st.sampled_from([None, 0.3]), learned=st.booleans())
def test_outputs_are_those_of_extracted_subnets_bit_for_bit(make_space, make_supernet, seed, layer_scale, learned):
    space = make_space()
    model = make_supernet(space, layer_scale=layer_scale)
    if learned:
        model.learn_scales()
    stores = Stores(model)
    drawn = space.sample(np.random.default_rng(seed), 3)
    for subnet in (space.smallest(), *map(space.decode, drawn), space.largest()):
        network = stores.network(subnet)
        with torch.inference_mode():
            for batch in (5, 2):
                x = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
                assert torch.equal(network(x), extract(model, subnet)(x))


def test_each_linear_is_quantized_once(space, supernet, monkeypatch):
    calls = []
    dequantized = ElasticLinear.dequantized_stores
    monkeypatch.setattr(ElasticLinear, "dequantized_stores", lambda self: calls.append(self) or dequantized(self))
    stores = Stores(supernet)
    for subnet in (space.largest(), space.smallest(), space.largest()):
        stores.network(subnet)
    linears = [module for module in supernet.modules() if isinstance(module, ElasticLinear)]
    assert len(calls) == len(set(calls)) == len(linears)


def test_a_subnet_outside_the_space_is_refused(make_space, supernet):
    outside = make_space(embed_dim=(12, 16, 20)).largest()
    with pytest.raises(UsageError):
        Stores(supernet).network(outside)


def test_a_batch_is_run_in_pieces_of_the_same_outputs(space, supernet, monkeypatch):
    subnet = space.largest()
    x = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = Stores(supernet).network(subnet)(x)
        monkeypatch.setattr("supernet.stores._PIECE", 1)  # one image in each
        pieces = Stores(supernet).network(subnet)(x)
    torch.testing.assert_close(pieces, whole)


@integer_products
def test_products_of_codes_are_exact():
    rng = np.random.default_rng(0)
    codes, weight = rng.integers(-128, 128, (3, 5, 999)), rng.integers(-127, 128, (7, 999))
    codes[0, 0], weight[0] = -128, -127  # the largest sum there is
    linear = Linear(torch.tensor(weight, dtype=torch.int8), torch.zeros(7), torch.ones(7))
    result = linear(torch.tensor(codes, dtype=torch.int8))
    np.testing.assert_array_equal(result.numpy(), (codes @ weight.T).astype(np.float32))


@integer_products
def test_a_zero_point_is_taken_away_again(space, supernet):
    subnet, block = space.largest(), supernet.blocks[0]
    plan = mlp_plan(subnet, subnet.blocks[0])["fc2"]
    block.sites.zero_point[block.sites.names.index("gelu")] = -101.3
    scale = block.sites.scales()["gelu"]
    x = torch.randn(6, plan.inputs, generator=torch.Generator().manual_seed(0)).abs()
    with torch.inference_mode():
        weights = CodesOnce().weights(block.sites.zero_points())
        codes = block.sites.coder({"gelu"})("gelu", x)
        assert codes.dtype == torch.int8
        expected = block.mlp.fc2.active(plan, scale)(block.sites.quantizer(None)("gelu", x))
        torch.testing.assert_close(weights(block.mlp.fc2, plan, scale)(codes), expected, rtol=1e-4, atol=1e-5)


@integer_products
@pytest.mark.parametrize("learned", [False, True])
def test_integer_products_change_no_more_than_single_codes(make_space, make_supernet, learned):
    space = make_space()
    model = make_supernet(space)
    if learned:
        model.learn_scales()
    x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for subnet in (space.smallest(), space.largest()):
        with torch.inference_mode():
            exact = Stores(model).network(subnet)(x)
            integer = Stores(model, precision="int8").network(subnet)(x)
        assert ((integer - exact).abs().amax(dim=1) > 1e-4 * exact.abs().max()).double().mean() < 0.2
        torch.testing.assert_close(integer, exact, rtol=0, atol=0.05 * exact.std().item())


def test_a_cpu_without_products_of_int8_is_refused_them(supernet, monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True})
    assert fastest_precision(torch.device("cpu")) == "float32"
    with pytest.raises(UsageError, match="avx512_vnni"):
        Stores(supernet, precision="int8")
