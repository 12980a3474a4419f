import numpy as np
import pytest
import torch

from hwmodel.errors import QuasarError
from supernet.alone import settings_alone, supernet_of_one, train_alone
from supernet.calibrate import linears_of
from supernet.config import DistillConfig, SamplingConfig, SupernetConfig, TrainConfig
from supernet.data.config import DataConfig
from supernet.data.splits import open_train
from supernet.evaluate import evaluate

CONFIG = TrainConfig(epochs=6, batch_size=64, lr=3e-3, warmup_epochs=1)


@pytest.fixture(scope="module")
def splits():
    return open_train(DataConfig(name="digits"), image_size=8, seed=0)


def test_it_has_the_rows_and_inputs_of_its_subnet_and_no_more(space):
    for genotype in space.sample(np.random.default_rng(1), 8):
        subnet = space.decode(genotype)
        model = supernet_of_one(subnet, layer_scale=0.5, seed=0)
        for linear, plan, _ in linears_of(model, subnet):
            assert linear.weight.shape == (plan.rows, plan.inputs)
        assert model(torch.randn(2, 1, 8, 8), subnet).shape == (2, 10)
        again = supernet_of_one(subnet, layer_scale=0.5, seed=0).state_dict()
        assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_it_learns(space, splits):
    subnet = space.decode(space.sample(np.random.default_rng(2), 1)[0])

    def trained(config, seed=0):
        return train_alone(
            subnet,
            supernet=SupernetConfig(layer_scale=0.5),
            config=config,
            train_split=splits[0],
            seed=seed,
            device=torch.device("cpu"),
            progress=lambda done, total, text: None,
        )

    module = trained(CONFIG)
    assert module.subnet == subnet
    assert evaluate(module, splits[1], batch_size=100).accuracy > 0.3  # chance is 0.1
    with pytest.raises(QuasarError, match=rf"training subnet {subnet.digest} alone, seed 1: the loss became"):
        trained(TrainConfig(epochs=1, batch_size=64, lr=1e30, warmup_epochs=0, clip_grad_norm=None), seed=1)


def test_settings_keep_their_proportions_and_leave_the_other_subnets_out():
    config = TrainConfig(
        epochs=20,
        batch_size=64,
        lr=1e-3,
        warmup_epochs=4,
        float_epochs=10,
        sampling=SamplingConfig(strategy="sandwich"),
        distill=DistillConfig(kind="kl"),
    )
    alone = settings_alone(config, epochs=5)
    assert (alone.epochs, alone.warmup_epochs, alone.float_epochs) == (5, 1.0, 2)
    assert (alone.sampling.strategy, alone.distill.kind) == ("single", "none")
    assert settings_alone(alone, epochs=5) == alone
