"""Subnets from stores that are quantized once: the outputs of extracted modules, and nothing quantized again."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.errors import UsageError
from supernet.standalone import extract
from supernet.stores import Stores
from supernet.vit import ElasticLinear


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
