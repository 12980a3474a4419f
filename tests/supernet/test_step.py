import copy
import dataclasses

import numpy as np
import pytest
import torch

from supernet.config import DistillConfig, SamplingConfig, TrainConfig
from supernet.step import Step

CONFIG = TrainConfig(epochs=9, batch_size=8, lr=0.1, clip_grad_norm=None)
IMAGES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 10


def gradients(model, *, step=0, rollbacks=0, teacher=None, **changes):
    """The gradients of one step without its update, and its loss."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    config = dataclasses.replace(CONFIG, **changes)
    run = Step(model, optimizer, config, seed=0, rollbacks=rollbacks, teacher=teacher)
    loss = run(IMAGES, LABELS, step)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, loss, model


def assert_close(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], **tolerance)


def test_parts_of_a_batch_give_the_gradient_of_the_whole(supernet):
    whole, loss, model = gradients(supernet)
    parts, loss_of_parts, model_of_parts = gradients(supernet, accumulate=4)
    assert_close(parts, whole, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(loss_of_parts, loss)
    assert_close(dict(model_of_parts.named_buffers()), dict(model.named_buffers()))


def test_a_step_of_several_subnets_averages_theirs(space, supernet):
    def only(subnet):
        model = copy.deepcopy(supernet)
        torch.nn.functional.cross_entropy(model(IMAGES, subnet), LABELS, label_smoothing=0.1).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    theirs = [only(space.largest()), only(space.smallest()), gradients(supernet)[0]]
    mean = {name: sum(g[name] for g in theirs if name in g) / 3 for name in theirs[0]}
    sandwich, loss, _ = gradients(supernet, sampling=SamplingConfig(strategy="sandwich"))
    assert_close(sandwich, mean)
    largest = torch.nn.functional.cross_entropy(supernet(IMAGES, space.largest()), LABELS, label_smoothing=0.1)
    torch.testing.assert_close(loss, largest.detach())


def test_the_largest_teaches_and_learns_from_labels_alone(space, supernet):
    sampling = SamplingConfig(strategy="max_random")
    taught = gradients(supernet, sampling=sampling, distill=DistillConfig(kind="kl"))[0]
    by_hand = copy.deepcopy(supernet)
    largest = by_hand(IMAGES, space.largest())
    loss = torch.nn.functional.cross_entropy(largest, LABELS, label_smoothing=0.1)
    subnet = space.decode(space.sample(np.random.default_rng([0, 0]), 1)[0])
    student = by_hand(IMAGES, subnet).log_softmax(1)
    p = largest.detach().softmax(1)
    ((loss + (p * (p.log() - student)).sum(1).mean()) / 2).backward()
    assert_close(taught, {name: p.grad for name, p in by_hand.named_parameters() if p.grad is not None})


def test_an_outside_teacher_teaches_every_subnet(supernet):
    calls = []

    def teacher(x):
        calls.append(len(x))
        return torch.nn.functional.one_hot(LABELS[: len(x)], 10) * 9.0

    distill = DistillConfig(kind="kl", teacher="t", weight=0.5)
    taught = gradients(supernet, distill=distill, teacher=teacher, accumulate=2)[0]
    assert calls == [4, 4]
    assert not torch.equal(taught["head.weight"], gradients(supernet)[0]["head.weight"])


def test_bfloat16_is_near_float32(supernet):
    exact, loss, _ = gradients(supernet)
    rough, rough_loss, _ = gradients(supernet, precision="bfloat16")
    torch.testing.assert_close(rough_loss, loss, rtol=0.02, atol=0.02)
    for name, gradient in exact.items():
        assert rough[name].dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(rough[name].flatten(), gradient.flatten(), dim=0) > 0.9, name


@pytest.mark.parametrize("changes", [{}, {"drop_path": 0.5}, {"mixup": 0.8}, {"cutmix": 1.0}])
def test_steps_are_random_by_seed_step_and_rollbacks_alone(supernet, changes):
    before = torch.random.get_rng_state()
    first = gradients(supernet, step=3, **changes)[0]
    assert torch.equal(before, torch.random.get_rng_state())
    assert_close(gradients(supernet, step=3, **changes)[0], first, rtol=0, atol=0)
    for other in (gradients(supernet, step=4, **changes)[0], gradients(supernet, step=3, rollbacks=1, **changes)[0]):
        assert any(not torch.equal(other[name], first[name]) for name in other.keys() & first.keys())
    if changes:
        plain = gradients(supernet, step=3)[0]
        assert any(not torch.equal(plain[name], first[name]) for name in first)


def test_images_of_the_caller_are_not_mixed(supernet):
    before = IMAGES.clone()
    gradients(supernet, mixup=0.8)
    assert torch.equal(IMAGES, before)
