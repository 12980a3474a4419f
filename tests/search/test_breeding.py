import numpy as np
import pytest

from search.algorithm import SearchProblem
from search.archive import LatencyArchive
from search.breeding import Breeder, ridge_slopes
from search.config import Limits, SearchConfig, Target
from search.limits import Feasibility, costs_function
from search.trial import Trial


@pytest.fixture
def problem(space, cost_model, bounds, rng):
    feasibility = Feasibility.of(space, cost_model, Limits())
    return SearchProblem(
        space=space,
        costs_of=costs_function(space, cost_model, Limits()),
        bounds=bounds,
        anchors=feasibility.anchors,
        limits_ms=(bounds.slowest_ms,),
        settings=SearchConfig(targets=(Target(latency_ms=bounds.slowest_ms),)),
        rng=rng,
    )


def test_what_is_slightly_over_its_goal_is_repaired(problem, space):
    candidates = space.sample(problem.rng, 200)
    latency = problem.costs_of(candidates).latency_ms
    goals = latency / 1.1
    fitted, fitted_ms, source = Breeder(problem).fitted(candidates, goals)
    assert len(np.unique(source)) == len(source) > 150
    np.testing.assert_array_equal(problem.costs_of(fitted).latency_ms, fitted_ms)
    assert (fitted_ms <= goals[source]).all()
    assert (fitted <= candidates[source]).all()  # genes only go down, one step each
    assert (candidates[source] - fitted)[:, 3:].max() <= np.max(space.gene_sizes) - 1
    np.testing.assert_array_equal(space.canonical(fitted), fitted)


def test_what_meets_its_goal_is_left_alone(problem, space):
    candidates = space.sample(problem.rng, 20)
    goals = problem.costs_of(candidates).latency_ms
    fitted, _, source = Breeder(problem).fitted(candidates, goals)
    np.testing.assert_array_equal(fitted, candidates)
    np.testing.assert_array_equal(source, np.arange(20))


def test_slopes_of_a_linear_function_are_found(rng):
    genotypes = rng.integers(0, 3, size=(500, 4))
    slopes = ridge_slopes(genotypes, genotypes @ [1.0, -2.0, 0.0, 3.0] + 7, strength=1e-6)
    np.testing.assert_allclose(slopes, [1, -2, 0, 3], atol=1e-6)


def trial(index, latency_ms, accuracy):
    return Trial(
        index=index,
        generation=0,
        digest=str(index),
        genotype=(index,),
        val_accuracy=accuracy,
        val_loss=0.0,
        latency_ms=latency_ms,
    )


def test_an_archive_keeps_the_best_of_each_bin():
    archive = LatencyArchive(fastest_ms=1.0, limits_ms=[2.0, 33.0], depth=2)
    for index, (latency_ms, accuracy) in enumerate([(1.5, 0.1), (1.5, 0.3), (1.5, 0.2), (2.0, 0.05), (32.5, 0.9)]):
        archive.add(trial(index, latency_ms, accuracy))
    genotypes, latency = archive.ranked()
    assert genotypes[:, 0].tolist() == [4, 1, 2]  # 2.0 ms meets its limit, hence shares the bin of 1.5 ms
    assert latency.tolist() == [32.5, 1.5, 1.5]
