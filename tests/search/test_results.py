"""What a search says about itself: importance of choices, baselines, the predictor's ranking."""

import numpy as np
import pytest

from search.baselines import uniform_ladder
from search.bounds import figures_of
from search.config import Limits, SearchConfig, Target
from search.importance import choice_importance
from search.predictor import AccuracyPredictor, rank_correlation
from search.trial import Trial
from supernet.space import BLOCK_GENES


@pytest.fixture
def trials(space, rng):
    """Accuracy depends on width, and a little on the ratio of fc2."""
    genotypes = space.sample(rng, 200)
    fc2 = genotypes[:, 3:].reshape(len(genotypes), space.max_depth, len(BLOCK_GENES))[:, :, -1].mean(axis=1)
    accuracy = 0.3 + 0.4 * genotypes[:, 1] + 0.05 * fc2 + rng.normal(0, 0.01, len(genotypes))
    return [
        Trial(
            index=i,
            generation=0,
            digest=str(i),
            genotype=tuple(genotypes[i].tolist()),
            val_accuracy=float(accuracy[i]),
            val_loss=0.0,
            latency_ms=1.0,
        )
        for i in range(len(genotypes))
    ]


def test_importance_finds_what_matters(space, trials):
    found = choice_importance(space, trials, seed=0)
    assert list(found["choices"])[:2] == ["embed_dim", "fc2_ratio"]
    assert found["explained"] > 0.95
    assert all(abs(value) < 0.02 for kind, value in found["choices"].items() if kind not in ("embed_dim", "fc2_ratio"))
    assert "operator" not in found["choices"]  # there is only one
    assert choice_importance(space, trials[:10], seed=0) is None


def test_a_predictor_ranks_unseen_subnets(space, trials):
    predictor = AccuracyPredictor(space, trials[:100])
    unseen = np.array([trial.genotype for trial in trials[100:]])
    mean, deviation = predictor.predict(unseen)
    assert rank_correlation(mean, np.array([trial.val_accuracy for trial in trials[100:]])) > 0.9
    assert (deviation > 0).all()


def test_rank_correlation_by_hand():
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([10.0, 20, 15])) == pytest.approx(0.5)
    assert rank_correlation(np.array([1.0, 1, 2]), np.array([1.0, 1, 2])) == pytest.approx(1)
    assert rank_correlation(np.array([1.0, 1, 1]), np.array([1.0, 2, 3])) == 0


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_uniform_subnets_are_a_ladder(space, cost_model, bounds, ratio):
    config = SearchConfig(targets=(Target(latency_ms=bounds.slowest_ms),))
    ladder = uniform_ladder(space, cost_model, config, ratio=ratio)
    latency = figures_of(space, cost_model, ladder)["latency_ms"]
    assert 3 <= len(ladder) <= 8
    assert (np.diff(latency) > 0).all()
    for genotype in ladder:
        blocks = space.decode(genotype).blocks
        assert len(set(blocks)) == 1
        assert set(blocks[0].high_precision_ratios) == {ratio}


def test_uniform_subnets_outside_the_space_or_the_limits_are_left_out(make_space, make_cost_model):
    space = make_space(high_precision_ratio=(0.25, 0.5))
    model, config = make_cost_model(space), SearchConfig(targets=(Target(latency_ms=1e3),), limits=Limits(fps=1e9))
    assert len(uniform_ladder(space, model, config, ratio=1.0)) == 0
    assert len(uniform_ladder(space, model, config, ratio=0.25)) == 0
