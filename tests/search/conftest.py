"""A cost model and an evaluator without training: deterministic, so that searches can be checked."""

import hashlib

import numpy as np
import pytest

from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from hwmodel.explore import best_accelerator
from search.bounds import latency_bounds
from supernet.evaluate import Evaluation
from supernet.lowering import lower


@pytest.fixture(scope="session")
def make_cost_model():
    def make(space):
        device = load_device("zcu102")
        accelerator = best_accelerator([lower(space.largest())], device, array=(4, 8))
        return FpgaCostModel(device, accelerator)

    return make


@pytest.fixture
def cost_model(make_cost_model, space):
    return make_cost_model(space)


@pytest.fixture
def bounds(space, cost_model):
    return latency_bounds(space, cost_model)


def capacity_score(subnet):
    """More capacity is more accurate, with a little noise that depends on the subnet alone."""
    noise = int(hashlib.sha256(subnet.digest.encode()).hexdigest()[:8], 16) / 2**32
    parts = [subnet.embed_dim / 16, subnet.depth / 3]
    parts += [np.mean([b.num_heads for b in subnet.blocks]) / 3, np.mean([b.fc2_ratio for b in subnet.blocks])]
    return float(np.mean(parts) * 0.9 + 0.1 * noise)


class CountingEvaluator:
    def __init__(self):
        self.seen = []

    def __call__(self, subnet):
        self.seen.append(subnet.digest)
        score = capacity_score(subnet)
        return Evaluation(accuracy=score, loss=1 - score, images=100)


@pytest.fixture
def evaluator():
    return CountingEvaluator()
