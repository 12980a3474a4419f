import numpy as np
import pytest

from search.algorithm import SearchProblem
from search.archive import LatencyArchive
from search.breeding import Breeder, Sums, ridge_slopes
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
    values = genotypes @ [1.0, -2.0, 0.0, 3.0] + 7
    sums = Sums(4)
    for part in (slice(0, 100), slice(100, 500)):
        sums.add(genotypes[part], values[part])
    np.testing.assert_allclose(ridge_slopes(*sums.centred(), strength=1e-6), [1, -2, 0, 3], atol=1e-6)


def test_a_repair_spares_what_accuracy_needs(problem, space):
    genotypes = space.sample(problem.rng, 400)
    gene = 3 + space.gene_sizes[3:].argmax()  # of the first block: always active
    candidates = genotypes[genotypes[:, gene] > 0]
    goals = np.nextafter(problem.costs_of(candidates).latency_ms, 0)

    def shrunk(worth):
        breeder = Breeder(problem)
        breeder.learn(genotypes, 0.5 + worth * genotypes[:, gene])
        fitted, _, source = breeder.fitted(candidates, goals)
        return (fitted[:, gene] < candidates[source, gene]).mean()

    assert shrunk(0.1) < 0.1
    assert shrunk(-0.1) > 0.5


def test_children_have_genes_of_their_parents(problem, space):
    parents, partners = space.sample(problem.rng, 200), space.sample(problem.rng, 200)
    parents[:, 2] = partners[:, 2] = space.gene_sizes[2] - 1  # all blocks
    children = Breeder(problem).children(parents, partners, probability=1e-9)
    np.testing.assert_array_equal(space.canonical(children), children)
    ours, theirs = children == parents, children == partners
    grown = ((children - np.maximum(parents, partners)) > 0).any(axis=1)
    assert 0.3 < grown.mean() < 0.7
    assert (ours | theirs)[~grown].mean() > 0.95  # growth from the smaller one may hide in those
    crossed = (~ours & theirs)[~grown].any(axis=1)
    assert 0.3 < crossed.mean() < 0.7


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
    figures = [(1.5, 0.1), (1.5, 0.3), (1.5, 0.2), (2.0, 0.05), (32.5, 0.9)]
    trials = [trial(index, latency_ms, accuracy) for index, (latency_ms, accuracy) in enumerate(figures)]
    archive.add(trials[:2], np.array([[0], [1]]))
    archive.add(trials[2:], np.array([[2], [3], [4]]))
    genotypes, latency = archive.ranked()
    assert genotypes[:, 0].tolist() == [4, 1, 2]  # 2.0 ms meets its limit, hence shares the bin of 1.5 ms
    assert latency.tolist() == [32.5, 1.5, 1.5]
