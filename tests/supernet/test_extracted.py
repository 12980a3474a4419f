"""The network of an extracted module in pieces gives the module's outputs, and with products of codes nearly so."""

import pytest
import torch

from supernet.extracted import ExtractedNetwork
from supernet.standalone import extract
from supernet.stores import Stores, fastest_precision


@pytest.fixture
def module(supernet, rng):
    return extract(supernet, supernet.space.decode(supernet.space.sample(rng, 1)[0]))


@pytest.fixture
def images(module):
    subnet = module.subnet
    return torch.randn(5, subnet.in_chans, subnet.image_size, subnet.image_size)


def test_floats_are_those_of_the_module(module, images):
    with torch.inference_mode():
        assert torch.equal(ExtractedNetwork(module, precision="float32")(images), module(images))


def test_pieces_make_up_the_whole(module, images):
    network = ExtractedNetwork(module, precision="float32")
    with torch.inference_mode():
        x_BTD = network.stem(images)
        for block in network.blocks:
            x_BTD = block(x_BTD)
        assert torch.equal(x_BTD, module.encode(images))
        assert torch.equal(network.head(x_BTD), module(images))


def test_pooling_is_not_left_out(make_space, make_supernet):
    supernet = make_supernet(make_space(pooling=((1,),), image_size=(8,), depth=(2, 3)))
    module = extract(supernet, supernet.space.largest())
    images = torch.randn(2, 1, 8, 8)
    with torch.inference_mode():
        assert module.encode(images).shape[1] == 5
        assert torch.equal(ExtractedNetwork(module, precision="float32")(images), module(images))


@pytest.mark.skipif(fastest_precision(torch.device("cpu")) != "int8", reason="this CPU has no fast products of int8")
def test_codes_give_what_the_stores_give(module, images, supernet):
    with torch.inference_mode():
        logits = ExtractedNetwork(module, precision="int8")(images)
        assert torch.equal(logits, Stores(supernet, precision="int8").network(module.subnet)(images))
        torch.testing.assert_close(logits, module(images), rtol=0.1, atol=0.1 * module(images).std().item())
