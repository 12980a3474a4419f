"""What every block operator must keep to; a plug-in's author registers it and runs this file."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from hwmodel.explore import best_accelerator
from hwmodel.integer import IntegerGemm
from supernet.functional import Observer
from supernet.integer_vit import IntegerViT, find_ranges
from supernet.lowering import lower, lower_many
from supernet.operators.registry import OPERATORS
from supernet.quantize import SMALLEST_SCALE
from supernet.standalone import SubnetViT, extract
from supernet.stores import Stores
from supernet.subnet import SubnetArrays
from supernet.vit import SupernetViT


@pytest.fixture(params=OPERATORS.names())
def operator(request):
    return request.param


@pytest.fixture
def space(make_space, operator):
    others = tuple(name for name in ("attention",) if name != operator)
    return make_space(operator=(operator, *others), head_dim=8)


@pytest.fixture
def model(space):
    """A supernet whose largest subnets, one of each operator, have set the ranges of all sites."""
    torch.manual_seed(0)
    model, observer = SupernetViT(space, layer_scale=0.5), Observer(quantize=False)
    with torch.no_grad():
        for index in range(len(space.operator)):
            model(torch.randn(32, 1, 8, 8), space.largest(operator=index), observer)
    observer.update(momentum=0.0)
    return model


@pytest.fixture
def images():
    return torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def subnets(space, count):
    return [space.decode(genotype) for genotype in space.sample(np.random.default_rng(0), count)]


def test_absent_layers_have_a_count_of_0_and_bear_the_name_of_the_block(operator, space):
    workload = lower(space.largest())
    layers = [*workload.gemms, *workload.vectors]
    of_block = [layer for layer in layers if layer.name.startswith("blocks.0.")]
    assert {"blocks.0.qkv", "blocks.0.proj"} <= {layer.name for layer in of_block}
    assert all(layer.count > 0 for layer in layers)
    assert len({layer.name for layer in layers}) == len(layers)


def test_many_cost_what_each_costs(space):
    several = subnets(space, 6)
    device = load_device("zcu102")
    cost_model = FpgaCostModel(device, best_accelerator([lower(space.largest())], device, array=(4, 8)))
    genotypes = np.stack([space.encode(subnet) for subnet in several])
    batch = cost_model.estimate_many(lower_many(space.arrays(genotypes)))
    for index, subnet in enumerate(several):
        assert batch.cycles[index] == cost_model.estimate(lower(subnet)).cycles
        assert lower_many(SubnetArrays.of(subnet)).activation_bytes()[0] == lower(subnet).activation_bytes


def test_more_heads_and_pixels_do_not_cost_less(space):
    few, many = space.smallest(), space.largest()
    assert lower(few).macs < lower(many).macs
    assert 0 < lower(few).activation_bytes < lower(many).activation_bytes


def test_an_extracted_subnet_gives_the_outputs_of_the_supernet(space, model, images):
    for subnet in subnets(space, 6):
        standalone = extract(model, subnet)
        reloaded = SubnetViT(subnet, layer_scale=True)
        reloaded.load(standalone.state_dict(), source="memory")
        with torch.no_grad():
            expected = model(images, subnet)
            assert torch.equal(standalone(images), expected)
            assert torch.equal(reloaded(images), expected)


def test_a_search_measures_the_outputs_of_extracted_subnets(space, model, images):
    stores = Stores(model)
    for subnet in subnets(space, 4):
        with torch.inference_mode():
            assert torch.equal(stores.network(subnet)(images), extract(model, subnet)(images))


def test_every_site_is_quantized(operator, space, model, images):
    subnet, observer = space.largest(), Observer()
    model(images, subnet, observer)
    sites = model.blocks[0].mixers[operator].sites
    seen = {sites.names[index] for group, index in observer.ranges if group is sites}
    assert seen == set(sites.names) == set(OPERATORS.get(operator).load_module().site_names)
    assert (sites.scale > SMALLEST_SCALE).all()


def test_all_weights_learn_with_and_without_what_is_there_in_training_alone(operator, space, model, images):
    subnet = space.largest()
    for auxiliary in (0.0, 0.5):
        model.zero_grad()
        model(images, subnet, auxiliary=auxiliary).square().sum().backward()
        for name, parameter in model.blocks[0].mixers[operator].named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_bfloat16_is_near_float32(space, model, images):
    subnet = space.largest()
    with torch.no_grad():
        exact = model(images, subnet)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(images, subnet).float()
    assert (rough - exact).abs().mean() < 0.1 * exact.std()


def test_the_integer_network_does_what_is_costed_and_follows_the_module(operator, space, model, images):
    if OPERATORS.get(operator).integer is None:
        pytest.skip("searched, but not exported")
    for subnet in (space.largest(), *subnets(space, 3)):
        module = extract(model, subnet)
        network = IntegerViT.of(module, find_ranges(module, images))
        logits = network(network.quantize_images(images)) * network.logit_scale
        with torch.no_grad():
            reference = module(images).numpy()
        assert np.abs(logits - reference).mean() < 0.06 * reference.std()
        assert (logits.argmax(axis=1) == reference.argmax(axis=1)).mean() >= 0.9
        assert operations(network, images[:1]) == layers(lower(subnet))


def operations(network, image):
    """How often the integer network does each operation, by layer and sizes."""
    seen = Counter()

    def record(name, operation):
        if isinstance(operation, IntegerGemm):
            rows_low = operation.rows - operation.rows_high
            seen[name, operation.tokens, operation.inputs, operation.rows_high, rows_low] += 1
        else:
            seen[name, operation.rows, operation.width] += 1

    network(network.quantize_images(image), record)
    return seen


def layers(workload):
    """The same of a workload."""
    found = Counter({(g.name, g.tokens, g.inputs, g.rows_high, g.rows_low): g.count for g in workload.gemms})
    found.update({(v.name, v.tokens, v.width): v.count for v in workload.vectors})
    return found


def test_largest_sums_are_reached_by_no_image(operator, space, model, images):
    if OPERATORS.get(operator).integer is None:
        pytest.skip("searched, but not exported")
    subnet = space.largest()
    module = extract(model, subnet)
    network = IntegerViT.of(module, find_ranges(module, images))
    sums = network.blocks[0].mixer.largest_sums(subnet.tokens)
    found = dict.fromkeys(sums, 0)

    def record(name, operation):
        if name in found:
            products = operation.activations.astype(np.int64) @ operation.weights.astype(np.int64).T
            found[name] = max(found[name], int(np.abs(products).max()))

    network(network.quantize_images(images[:4]), record)
    assert all(0 < found[name] <= sums[name] for name in sums)
    assert set(sums) == {g.name for g in lower(subnet).gemms if not g.stored and g.name.startswith("blocks.0.")}
    assert math.isfinite(network.logit_scale)
