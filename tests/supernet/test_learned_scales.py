"""Scales that are learned with the weights, from the start of a training to the integer network.

That codes stay slices of two stores and that extraction is exact is tested in test_vit.py, gradients against an oracle
in test_quantize.py.
"""

import copy
import dataclasses
import json

import pytest
import safetensors
import safetensors.torch
import torch

import supernet.vit as supernet_vit
from supernet.alone import train_alone
from supernet.calibrate import calibrate, recalibrate
from supernet.checkpoint import Checkpoint
from supernet.config import SamplingConfig, SupernetConfig, TrainConfig
from supernet.data.config import DataConfig
from supernet.data.splits import open_train
from supernet.functional import Observer
from supernet.integer_vit import IntegerViT, find_ranges
from supernet.standalone import extract
from supernet.step import Step
from supernet.train import State, train

LEARNED = SupernetConfig(layer_scale=0.5, scales="learned")
CONFIG = TrainConfig(epochs=2, batch_size=64, lr=3e-3, warmup_epochs=1)
IMAGES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 10


def test_training_goes_on_after_an_evaluation(space, make_supernet):
    supernet_vit._is_high.cache_clear()  # what an evaluation makes first must serve a training, too
    model = make_supernet(space)
    model.learn_scales()
    subnet = dataclasses.replace(
        space.largest(), blocks=tuple(dataclasses.replace(b, qkv_ratio=0.3) for b in space.largest().blocks)
    )
    with torch.inference_mode():
        model(IMAGES, subnet)
    model(IMAGES, subnet).sum().backward()
    assert model.blocks[0].mixers["attention"].qkv.log_range.grad is not None


@pytest.fixture(scope="module")
def splits():
    return open_train(DataConfig(name="digits", crop_padding=1), image_size=8, seed=0)


@pytest.fixture
def start(space, splits, tmp_path):
    def start_training(name, config=CONFIG, *, supernet=LEARNED, resume=False, stop_at=None):
        def progress(done, total, text):
            if done == stop_at:
                raise InterruptedError

        return train(
            space=space,
            supernet=supernet,
            config=config,
            train_split=splits[0],
            val_split=splits[1],
            folder=tmp_path / name,
            seed=0,
            device=torch.device("cpu"),
            resume=resume,
            progress=progress,
        ).checkpoint

    return start_training


def step(model, *, quantize=True, **changes):
    """One step of a copy of `model`."""
    model = copy.deepcopy(model)
    config = dataclasses.replace(CONFIG, batch_size=8, **changes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    Step(model, optimizer, config, seed=0, quantize=quantize)(IMAGES, LABELS, 0)
    return model


def learned_parameters(model):
    return {name: p for name, p in model.named_parameters() if name.endswith(("log_range", "log_gain"))}


def test_they_start_where_they_were_measured(space, supernet):
    before = supernet(IMAGES, space.largest())
    count = sum(1 for _ in supernet.parameters())
    supernet.learn_scales()
    learned = learned_parameters(supernet)
    # patch embedding, head and four linears in each of 3 blocks; the stem's sites and two groups of each block
    assert len(learned) == sum(1 for _ in supernet.parameters()) - count == 2 + 3 * 4 + 1 + 3 * 2
    # exp(log(x)) is not x in the last bit, which takes a few values to the next code
    torch.testing.assert_close(supernet(IMAGES, space.largest()), before, rtol=0.05, atol=0.05)


def test_a_step_moves_each_scale_that_its_subnet_uses_by_a_share_of_itself(space, supernet):
    supernet.learn_scales()
    before = learned_parameters(copy.deepcopy(supernet))
    after = learned_parameters(step(supernet, sampling=SamplingConfig(strategy="sandwich")))
    for name in before:
        moved = (after[name] - before[name]).abs()
        assert (moved <= 0.0101).all()  # of Adam's first step each is as large as the learning rate
        assert (moved > 0.005).float().mean() > 0.9, name


def test_weight_decay_leaves_them_alone(supernet):
    supernet.learn_scales()
    groups = State.fresh(supernet, config=CONFIG, steps=1).optimizer.param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert {decay[id(parameter)] for parameter in learned_parameters(supernet).values()} == {0.0}
    assert decay[id(supernet.head.weight)] == CONFIG.weight_decay


def test_ranges_of_activations_stay_but_for_the_lower_end_of_asymmetric_ones(space, supernet):
    supernet.learn_scales()
    sites = supernet.blocks[0].sites
    gelu = sites.names.index("gelu")
    sites.move_range(gelu, torch.tensor(-0.16), torch.tensor(3.0))
    observer = Observer()
    supernet(IMAGES, space.largest(), observer)
    assert {(group, index) for group, index in observer.ranges if group is sites} == {(sites, gelu)}
    observer.ranges = {(sites, gelu): (torch.tensor(-0.12), torch.tensor(99.0))}
    scale = sites.scale.clone()
    observer.update(momentum=0.75)
    assert torch.equal(sites.scale, scale)
    start = (-128 - sites.zero_point[gelu]) * scale[gelu]
    assert start.item() == pytest.approx(-0.15)
    with torch.no_grad():
        sites.log_gain[gelu] = torch.tensor(0.5).log()
    x = torch.tensor([-9.0, 0.0, 9.0])
    lowest, zero, largest = sites.quantizer(None)("gelu", x).tolist()
    step = scale[gelu].item() / 2
    assert lowest == pytest.approx(-0.15, abs=step / 2)  # with half the scale it begins at the same value
    assert zero == 0
    assert largest - lowest == pytest.approx(255 * step)
    with torch.no_grad():
        sites.log_gain[gelu] = -20.0  # 0 keeps its code, even if no value of the range is above it
    assert sites.quantizer(None)("gelu", x).tolist()[1:] == [0, 0]


def test_steps_of_floats_keep_them_at_what_is_measured(supernet):
    measured = step(supernet, quantize=False)
    supernet.learn_scales()
    learned = step(supernet, quantize=False)
    for name, buffer in measured.named_buffers():
        assert torch.equal(learned.get_buffer(name), buffer)
    for name, parameter in learned_parameters(learned).items():
        if name.endswith("log_gain"):
            assert not parameter.any()
    torch.testing.assert_close(learned.head.scales(), measured.head.scales())
    assert not torch.equal(learned.head.ranges(), supernet.head.ranges())


def test_calibration_starts_them_again(supernet):
    measured = copy.deepcopy(supernet)
    calibrate(measured, [IMAGES])
    supernet.learn_scales()
    with torch.no_grad():
        for parameter in learned_parameters(supernet).values():
            parameter.add_(1.0)
    calibrate(supernet, [IMAGES])
    for name, buffer in measured.named_buffers():
        torch.testing.assert_close(supernet.get_buffer(name), buffer)
    torch.testing.assert_close(supernet.head.scales(), measured.head.scales())
    assert not supernet.sites.log_gain.any()


@pytest.mark.parametrize(
    "changes",
    [
        {"ema_decay": 0.9, "sampling": SamplingConfig(strategy="sandwich", project_conflicts=True), "accumulate": 2},
        {"float_epochs": 1, "precision": "bfloat16"},
    ],
)
def test_a_resumed_training_ends_as_a_whole_one(start, splits, changes):
    config = dataclasses.replace(CONFIG, **changes)
    whole = Checkpoint.load(start("whole", config))
    with pytest.raises(InterruptedError):
        start("stopped", config, stop_at=30)
    resumed = Checkpoint.load(start("stopped", config, resume=True))
    assert resumed.digest == whole.digest
    for name in ("trained", "optimizer"):
        for key, tensor in getattr(whole, name).items():
            assert torch.equal(getattr(resumed, name)[key], tensor)
    model = whole.build(source="whole")
    assert model.head.log_range is not None
    # Whoever reads an extracted subnet need not know how its scales came about.
    subnet = model.space.smallest()
    module = extract(model, subnet)
    images = next(splits[1].batches(64))[0]
    with torch.no_grad():
        expected = module(images)
        assert torch.equal(expected, model(images, subnet))
    network = IntegerViT.of(module, find_ranges(module, images))
    logits = torch.from_numpy(network(network.quantize_images(images)) * network.logit_scale)
    assert (logits - expected).abs().mean() < 0.05 * expected.std()
    recalibrate(module, [images])
    assert (module(images) - expected).abs().mean() < 0.3 * expected.std()


def test_a_checkpoint_from_before_has_measured_scales(start, tmp_path):
    path = start("measured", supernet=SupernetConfig(layer_scale=0.5))
    with safetensors.safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["quasar"])
    del about["supernet"]["scales"], about["settings"]["train.sampling.project_conflicts"]
    tensors = safetensors.torch.load_file(path)
    assert not any("log_" in name for name in tensors)
    path.write_bytes(safetensors.torch.save(tensors, metadata={"quasar": json.dumps(about)}))
    assert Checkpoint.load(path).supernet.scales == "measured"
    before = path.read_bytes()
    start("measured", supernet=SupernetConfig(layer_scale=0.5), resume=True)
    assert path.read_bytes() == before


def test_a_subnet_trained_alone_learns_them_too(space, splits):
    modules = [
        train_alone(
            space.smallest(),
            supernet=supernet,
            config=CONFIG,
            train_split=splits[0],
            seed=0,
            device=torch.device("cpu"),
            progress=lambda done, total, text: None,
        )
        for supernet in (LEARNED, dataclasses.replace(LEARNED, scales="measured"))
    ]
    learned, measured = (module.head.scale for module in modules)
    assert not torch.equal(learned, measured)
    assert (learned / measured - 1).abs().max() < 0.5
