import copy
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from hwmodel.errors import UsageError
from supernet.config import DistillConfig, SamplingConfig, TrainConfig
from supernet.parallel import ALONE, Workers
from supernet.step import Step, _ApartGradients

CONFIG = TrainConfig(epochs=9, batch_size=8, lr=0.1, clip_grad_norm=None)
IMAGES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 10


def gradients(model, *, step=0, rollbacks=0, teacher=None, workers=ALONE, x=IMAGES, y=LABELS, **changes):
    """The gradients of one step without its update, and its loss."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    config = dataclasses.replace(CONFIG, **changes)
    run = Step(model, optimizer, config, seed=0, rollbacks=rollbacks, teacher=teacher, workers=workers)
    loss = run(x, y, step)
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


PROJECTED = SamplingConfig(strategy="sandwich", project_conflicts=True)


def test_conflicts_are_projected_for_each_tensor_by_hand():
    both, against, only_largest, only_others = (torch.nn.Parameter(torch.zeros(2)) for _ in range(4))
    apart = _ApartGradients([both, against, only_largest, only_others])
    for sign in (1, -1):  # parts of a batch: gradients add up in both groups
        with apart.kept():
            (both @ torch.tensor([2.0, 1.0]) + against @ torch.tensor([2.0, 1 + sign])).backward()
            (only_largest @ torch.tensor([0.5, 1.5])).backward()
        (both @ torch.tensor([1.0, 0.0]) + against @ torch.tensor([-1.5, 1.5])).backward()
        (only_others @ torch.tensor([1.0, 2.0])).backward()
    apart.add_projected()
    assert both.grad.tolist() == [6, 2]  # (4, 2) + (2, 0): no conflict
    # (4, 2) . (-3, 3) = -6, and |(-3, 3)|^2 = 18: a third of (-3, 3) is added, which leaves (3, 3), and then (-3, 3)
    assert against.grad.tolist() == pytest.approx([0, 6])
    assert only_largest.grad.tolist() == [1, 3]
    assert only_others.grad.tolist() == [2, 4]


def test_a_gradient_of_zeros_conflicts_with_nothing():
    parameter = torch.nn.Parameter(torch.zeros(2))
    apart = _ApartGradients([parameter])
    with apart.kept():
        (parameter @ torch.tensor([2.0, 1.0])).backward()
    (parameter @ torch.zeros(2)).backward()
    apart.add_projected()
    assert parameter.grad.tolist() == [2, 1]


def test_projection_changes_the_tensors_in_conflict_and_no_others(space, supernet):
    plain = gradients(supernet, sampling=SamplingConfig(strategy="sandwich"))[0]
    projected = gradients(supernet, sampling=PROJECTED)[0]
    model = copy.deepcopy(supernet)
    loss = torch.nn.functional.cross_entropy(model(IMAGES, space.largest()), LABELS, label_smoothing=0.1)
    (loss / 3).backward()
    conflicts = 0
    for name, parameter in model.named_parameters():
        largest, others = parameter.grad, plain[name] - parameter.grad
        product = (largest * others).sum()
        expected = plain[name]
        if product < 0:
            conflicts += 1
            expected = expected - product / others.square().sum() * others
            assert ((projected[name] - others) * others).sum().abs() < 1e-3 * others.square().sum()
        torch.testing.assert_close(projected[name], expected, rtol=1e-3, atol=1e-6)
    assert 0 < conflicts < len(plain)


def test_projection_of_parts_of_a_batch_is_that_of_the_whole(supernet):
    whole = gradients(supernet, sampling=PROJECTED)[0]
    assert_close(gradients(supernet, sampling=PROJECTED, accumulate=4)[0], whole, rtol=1e-3, atol=1e-5)


class Threads(Workers):
    """Workers that are threads of one process."""

    def __init__(self, rank, barrier, told):
        for name, value in (("rank", rank), ("count", 2), ("barrier", barrier), ("told", told)):
            object.__setattr__(self, name, value)  # frozen

    def exchanged(self, value):
        self.told[self.rank] = value
        self.barrier.wait()
        values = [self.told[0], self.told[1]]
        self.barrier.wait()
        return values

    def average(self, tensors):
        for own, *both in zip(tensors, *self.exchanged([x.clone() for x in tensors]), strict=True):
            own.copy_(sum(both) / 2)

    def maximum(self, tensor):
        tensor.copy_(torch.maximum(*self.exchanged(tensor.clone())))


@pytest.mark.parametrize("learned", [False, True])
def test_two_workers_find_the_conflicts_of_one(supernet, learned):
    if learned:
        supernet.learn_scales()
    barrier, told = threading.Barrier(2, timeout=60), {}

    def share(rank):
        workers = Threads(rank, barrier, told)
        places = workers.places(8)
        return gradients(supernet, sampling=PROJECTED, workers=workers, x=IMAGES[places], y=LABELS[places])

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(share, range(2))
    whole = gradients(supernet, sampling=PROJECTED)
    assert_close(first[0], whole[0], rtol=1e-3, atol=1e-5)
    assert_close(second[0], first[0], rtol=0, atol=0)
    assert_close(dict(second[2].named_buffers()), dict(whole[2].named_buffers()))


def test_projection_needs_the_largest_subnet(space, supernet, monkeypatch):
    with pytest.raises(ValueError, match=r"project_conflicts needs the largest subnet .*; choose sandwich or max_ran"):
        SamplingConfig(project_conflicts=True)
    monkeypatch.setattr("supernet.step.STRATEGIES", {"smallest-first": lambda space, *rest: [space.smallest()] * 2})
    with pytest.raises(UsageError, match="strategy smallest-first does not begin a step with the largest subnet"):
        gradients(supernet, sampling=SamplingConfig(strategy="smallest-first", project_conflicts=True))
    # a step of one subnet has nothing to be in conflict with
    config = dataclasses.replace(CONFIG, sampling=PROJECTED)
    Step(supernet, torch.optim.SGD(supernet.parameters(), lr=0.0), config, seed=0, subnets=[space.largest()])(
        IMAGES, LABELS, 0
    )
