"""The integer network against the fake-quantized one, and its operations against the lowered workload."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hwmodel.errors import UsageError
from hwmodel.integer import IntegerGemm
from supernet.functional import Observer
from supernet.integer_vit import IntegerViT, find_ranges
from supernet.lowering import lower
from supernet.standalone import extract


def recalibrated(supernet, subnet, x):
    """The extracted subnet with activation ranges of its own, as after training."""
    observer = Observer(quantize=False)
    with torch.no_grad():
        supernet(x, subnet, observer)
    observer.update(momentum=0.0)
    return extract(supernet, subnet)


@pytest.fixture(scope="module")
def supernet(make_supernet, make_space):
    torch.manual_seed(1)
    supernet = make_supernet(make_space())
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            if name.endswith(("scale1", "scale2")):
                parameter.mul_(2 * torch.randn_like(parameter))  # of either sign
            elif name.endswith("bias"):
                parameter.copy_(0.2 * torch.randn_like(parameter))
    return supernet


def images(supernet, subnet, count=64):
    return torch.randn(count, supernet.space.in_chans, subnet.image_size, subnet.image_size)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000))
def test_logits_follow_those_of_the_module(supernet, seed):
    torch.manual_seed(seed)
    space = supernet.space
    subnet = space.decode(space.sample(np.random.default_rng(seed), 1)[0])
    x = images(supernet, subnet)
    module = recalibrated(supernet, subnet, x)
    network = IntegerViT.of(module, find_ranges(module, x))
    logits = network(network.quantize_images(x)) * network.logit_scale
    with torch.no_grad():
        reference = module(x).numpy()
    # Single codes differ, and then so does all that follows; on the whole the two are the same function.
    assert np.abs(logits - reference).mean() < 0.03 * reference.std()
    assert (logits.argmax(axis=1) == reference.argmax(axis=1)).mean() >= 0.9


def test_operations_are_those_of_the_workload(supernet):
    for seed in range(4):
        space = supernet.space
        subnet = space.decode(space.sample(np.random.default_rng(seed), 1)[0])
        x = images(supernet, subnet)
        module = recalibrated(supernet, subnet, x)
        network = IntegerViT.of(module, find_ranges(module, x))
        seen: Counter = Counter()

        def record(name, operation, seen=seen):
            if isinstance(operation, IntegerGemm):
                rows_low = operation.rows - operation.rows_high
                seen[name, operation.tokens, operation.inputs, operation.rows_high, rows_low] += 1
            else:
                seen[name, operation.rows, operation.width] += 1

        network(network.quantize_images(x[:1]), record)
        workload = lower(subnet)
        expected = Counter({(g.name, g.tokens, g.inputs, g.rows_high, g.rows_low): g.count for g in workload.gemms})
        expected.update({(v.name, v.tokens, v.width): v.count for v in workload.vectors})
        assert seen == expected


def test_a_batch_is_as_its_images_one_by_one(supernet):
    subnet = supernet.space.largest()
    x = images(supernet, subnet, 5)
    module = recalibrated(supernet, subnet, x)
    network = IntegerViT.of(module, find_ranges(module, x))
    codes = network.quantize_images(x)
    together = network(codes)
    assert together.dtype == np.int16
    for index in range(5):
        np.testing.assert_array_equal(network(codes[index : index + 1])[0], together[index])


def test_a_bias_beyond_the_accumulator_saturates(supernet):
    subnet = supernet.space.smallest()
    x = images(supernet, subnet)
    module = recalibrated(supernet, subnet, x)
    ranges = find_ranges(module, x)
    module.head.bias[0], module.head.bias[1] = 1e12, -1e12
    network = IntegerViT.of(module, ranges)
    logits = network(network.quantize_images(x))
    assert (logits[:, 0] == 2**15 - 1).all()
    assert (logits[:, 1] == -(2**15)).all()


def test_other_activations_than_8_bits_are_refused(supernet):
    subnet = supernet.space.smallest()
    x = images(supernet, subnet)
    module = recalibrated(supernet, subnet, x)
    ranges = find_ranges(module, x)
    module.subnet = dataclasses.replace(subnet, act_bits=6)
    with pytest.raises(UsageError, match="activations of 8 bits, not 6"):
        IntegerViT.of(module, ranges)
