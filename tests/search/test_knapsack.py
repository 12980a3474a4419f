import itertools

import numpy as np
import pytest

from search.algorithm import SearchProblem
from search.config import Limits, SearchConfig, Target
from search.knapsack import Knapsack
from search.limits import Feasibility, costs_function


@pytest.fixture
def problem(make_space, make_cost_model, rng):
    space = make_space(
        image_size=(8,),
        embed_dim=(48,),
        depth=(1,),
        num_heads=(3,),
        mlp_ratio=(4,),
        high_precision_ratio=(0, 0.25, 0.5, 0.75, 1),
    )
    model = make_cost_model(space)
    feasibility = Feasibility.of(space, model, Limits())
    limit_ms = feasibility.bounds.slowest_ms
    return SearchProblem(
        space=space,
        costs_of=costs_function(space, model, Limits()),
        bounds=feasibility.bounds,
        anchors=feasibility.anchors,
        limits_ms=(limit_ms,),
        settings=SearchConfig(targets=(Target(latency_ms=limit_ms),)),
        rng=rng,
    )


def all_genotypes(problem, genes):
    choices = np.array(list(itertools.product(range(5), repeat=len(genes))))
    genotypes = np.repeat(problem.anchors[:1], len(choices), axis=0)
    genotypes[:, genes] = choices
    return genotypes, choices


def falling(rng):
    """Terms of four genes that fall with the choice."""
    return rng.random((4, 5)).cumsum(axis=1)[:, ::-1] * rng.lognormal(size=(4, 1))


def test_it_finds_what_trying_all_finds(problem):
    knapsack = Knapsack(problem)
    genotypes, choices = all_genotypes(problem, knapsack.genes)
    latency = problem.costs_of(genotypes).latency_ms
    bounds, optimal = problem.bounds, 0
    for _ in range(40):
        terms = falling(problem.rng)
        limit_ms = problem.rng.uniform(bounds.fastest_ms, bounds.slowest_ms)
        sums = terms[np.arange(4), choices].sum(axis=1)
        found = knapsack.best(terms, limit_ms)
        assert problem.costs_of(found[None]).latency_ms[0] <= limit_ms
        reached = terms[np.arange(4), found[knapsack.genes]].sum()
        best = sums[latency <= limit_ms].min()
        assert reached <= 1.3 * best
        optimal += reached <= best * (1 + 1e-9)
    assert optimal >= 32


def test_of_ratios_with_equal_latency_the_one_with_the_least_term_is_taken(problem):
    knapsack = Knapsack(problem)
    found = knapsack.best(falling(problem.rng), 0.5 * (problem.bounds.fastest_ms + problem.bounds.slowest_ms))
    latency = problem.costs_of(found[None]).latency_ms[0]
    changed = knapsack.changed(found)
    larger = changed[(changed > found).any(axis=1)]
    assert (problem.costs_of(larger).latency_ms > latency).all()


def test_there_may_be_nothing_under_a_limit(problem):
    assert Knapsack(problem).best(np.ones((4, 5)), 0.99 * problem.bounds.fastest_ms) is None


def test_other_limits_are_kept(problem, make_cost_model):
    space = problem.space
    model = make_cost_model(space)
    limits = Limits(weight_bytes=0.6 * 48 * 48 * 12)
    limited = SearchProblem(
        space=space,
        costs_of=costs_function(space, model, limits),
        bounds=problem.bounds,
        anchors=problem.anchors,
        limits_ms=problem.limits_ms,
        settings=problem.settings,
        rng=problem.rng,
    )
    terms = falling(problem.rng)
    free, kept = (Knapsack(p).best(terms, problem.limits_ms[0]) for p in (problem, limited))
    assert limited.costs_of(free[None]).overrun[0] > 1
    assert limited.costs_of(kept[None]).overrun[0] <= 1
