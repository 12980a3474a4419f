import math
from types import SimpleNamespace

import pytest
import safetensors.torch
import timm
import torch

from hwmodel.errors import DamagedInputError, UsageError
from supernet.checkpoint import Checkpoint
from supernet.config import DistillConfig, SupernetConfig
from supernet.data.config import DataConfig
from supernet.data.splits import open_train
from supernet.distill import alpha_divergence, divergence, load_teacher
from supernet.standalone import extract

CPU = torch.device("cpu")
ALPHAS = (-1.0, 0.5, 1.0, 2.0)


def logits(seed, spread=1.0):
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread


def by_definition(student, teacher, alpha):
    p, q = teacher.softmax(1), student.softmax(1)
    if alpha == 1:
        return (p * (p / q).log()).sum(1)
    return (q * ((p / q) ** alpha - 1)).sum(1) / (alpha * (alpha - 1))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_alpha_divergence_has_the_value_and_gradient_of_its_definition(alpha):
    student, teacher = logits(0).requires_grad_(), logits(1)
    ours = alpha_divergence(student, teacher, alpha=alpha, clip=1e9)
    theirs = by_definition(student, teacher, alpha)
    torch.testing.assert_close(ours, theirs)
    assert (ours > 0).all()
    for value in (ours, theirs):
        value.sum().backward()
    half = student.grad / 2  # both gradients were added up
    student.grad = None
    by_definition(student, teacher, alpha).sum().backward()
    torch.testing.assert_close(half, student.grad)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_clipped_ratios_bound_the_gradient(alpha):
    student = torch.tensor([[60.0, 0.0, 0.0]], requires_grad=True)
    value = alpha_divergence(student, torch.tensor([[0.0, 60.0, 0.0]]), alpha=alpha, clip=5.0)
    value.sum().backward()
    assert value.isfinite().all()
    assert student.grad.abs().max() <= 2 * 5 / abs(alpha)


def test_no_divergence_from_oneself():
    for alpha in ALPHAS:
        same = alpha_divergence(logits(0), logits(0), alpha=alpha, clip=5.0)
        torch.testing.assert_close(same, torch.zeros_like(same))


def test_adaptive_takes_the_larger_for_each_image():
    student, teacher = logits(0, 2.0), logits(1, 2.0)
    config = DistillConfig(kind="alpha", clip=1e9)
    each = torch.stack([by_definition(student, teacher, alpha) for alpha in (-1.0, 1.0)])
    assert 0 < (each[0] > each[1]).sum() < 7
    torch.testing.assert_close(divergence(student, teacher, config), each.amax(0).mean())


def test_kl_by_hand():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(9.0), 0.0]])
    config = DistillConfig(kind="kl")
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert divergence(student, teacher, config).item() == pytest.approx(expected, rel=1e-5)
    warm = DistillConfig(kind="kl", temperature=2.0)  # odds of 3 instead of 9, times 2^2
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert divergence(student, teacher, warm).item() == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def split():
    return open_train(DataConfig(name="digits"), image_size=8, seed=0)[0]


def config(teacher, **changes):
    return DistillConfig(kind="kl", teacher=teacher, **changes)


def test_a_checkpoint_teaches_by_its_largest_subnet(space, supernet, split, tmp_path):
    path = tmp_path / "teacher.safetensors"
    settings = {"epoch": 1, "step": 2, "best_accuracy": 0.5, "train_digest": "d", "settings": {}}
    about = {"space": space, "supernet": SupernetConfig(layer_scale=0.5)}
    Checkpoint(model=supernet.state_dict(), **about, **settings).save(path)
    teacher = load_teacher(config(str(path)), space=space, split=split, device=CPU)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(teacher(x), extract(supernet, space.largest())(x))


def test_a_checkpoint_with_another_head_is_refused(make_space, make_supernet, split, tmp_path):
    other = make_space(num_classes=7)
    path = tmp_path / "teacher.safetensors"
    settings = {"epoch": 1, "step": 2, "best_accuracy": 0.5, "train_digest": "d", "settings": {}}
    about = {"space": other, "supernet": SupernetConfig(layer_scale=0.5)}
    Checkpoint(model=make_supernet(other).state_dict(), **about, **settings).save(path)
    with pytest.raises(UsageError, match=r"teacher\.safetensors has num_classes 7, the space has 10"):
        load_teacher(config(str(path)), space=make_space(), split=split, device=CPU)


def test_a_timm_model_teaches_with_local_weights(space, split, tmp_path):
    model = timm.create_model("test_vit", num_classes=10, in_chans=1)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors")
    given = config("test_vit", teacher_weights=str(tmp_path / "w.safetensors"))
    teacher = load_teacher(given, space=space, split=split, device=CPU)
    x = torch.randn(2, 1, 160, 160)
    torch.testing.assert_close(teacher(x), model.eval()(x))
    assert teacher(torch.randn(2, 1, 8, 8)).shape == (2, 10)  # a model of one size sees images of that size


def test_teachers_that_cannot_teach_are_named(make_space, split, tmp_path, monkeypatch):
    space = make_space()

    def refused(error, message, **changes):
        with pytest.raises(error, match=message):
            load_teacher(config(**changes), space=space, split=split, device=CPU)

    refused(UsageError, "unknown timm model 'test_vitt': did you mean 'test_vit", teacher="test_vitt")
    refused(UsageError, "test_vit has no weights to teach with", teacher="test_vit")
    refused(UsageError, r"none\.pth: no such file", teacher="test_vit", teacher_weights=str(tmp_path / "none.pth"))
    refused(UsageError, "no such checkpoint", teacher=str(tmp_path / "none.safetensors"))
    seven = timm.create_model("test_vit", num_classes=7, in_chans=1)
    safetensors.torch.save_file(seven.state_dict(), tmp_path / "seven.safetensors")
    message = "is not a checkpoint of test_vit with 10 classes and 1 channels"
    refused(DamagedInputError, message, teacher="test_vit", teacher_weights=str(tmp_path / "seven.safetensors"))

    refused(UsageError, "test_vit has num_classes 1000, the space has 10", teacher="test_vit", pretrained=True)
    space = make_space(num_classes=1000, in_chans=3)

    def offline(name, **settings):
        raise OSError("cannot reach the hub\nand a long story")

    monkeypatch.setattr(timm, "create_model", offline)
    message = r"the weights of test_vit cannot be fetched \(cannot reach the hub\); set .* to a local file"
    refused(UsageError, message, teacher="test_vit", pretrained=True)


def test_a_pretrained_teacher_sees_images_as_it_knows_them(space, split, monkeypatch):
    seen = []

    class Teacher(torch.nn.Module):
        num_classes = 10
        pretrained_cfg = {"mean": (0.5,), "std": (0.25,), "input_size": (1, 16, 16)}

        def forward(self, x):
            seen.append(x)
            return x.mean((2, 3)).expand(-1, 10)

    cfg = SimpleNamespace(num_classes=10, input_size=(1, 16, 16))
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: cfg)
    monkeypatch.setattr(timm, "create_model", lambda name, *, pretrained: Teacher())
    teacher = load_teacher(config("test_vit", pretrained=True), space=space, split=split, device=CPU)
    (mean,), (std,) = split.normalization
    teacher(torch.full((2, 1, 8, 8), (0.75 - mean) / std))
    torch.testing.assert_close(seen[0], torch.ones(2, 1, 16, 16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "vit"}, "teacher is vit, but kind is none"),
        ({"kind": "kl", "pretrained": True}, "pretrained has no effect without a teacher"),
        ({"kind": "kl", "teacher": "v", "pretrained": True, "teacher_weights": "w"}, "exclude each other"),
        ({"weight": 0.0}, r"weight must lie in \(0, 1\]"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"alpha_max": 0.0}, "alpha_max must be finite and not 0"),
        ({"alpha_min": 2.0}, "must be below alpha_max"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig(**changes)
