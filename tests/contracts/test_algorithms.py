"""What every search algorithm must keep to; a plug-in's author registers it and runs this file."""

import numpy as np
import pytest

from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from hwmodel.explore import best_accelerator
from search.algorithm import ALGORITHMS, SearchProblem
from search.bounds import latency_bounds
from search.config import SearchConfig, Target
from search.run import algorithm_names
from search.trial import Trial
from supernet.lowering import lower, lower_many


@pytest.fixture(params=algorithm_names())
def build(request):
    return ALGORITHMS.get(request.param)


@pytest.fixture
def make_problem(space):
    device = load_device("zcu102")
    model = FpgaCostModel(device, best_accelerator([lower(space.largest())], device, array=(4, 8)))
    bounds = latency_bounds(space, model)

    def make(*shares, seed=0):
        limits = tuple(bounds.fastest_ms + share * (bounds.slowest_ms - bounds.fastest_ms) for share in shares)
        return SearchProblem(
            space=space,
            latency_of=lambda genotypes: model.estimate_many(lower_many(space.arrays(genotypes))).latency_ms,
            bounds=bounds,
            limits_ms=limits,
            settings=SearchConfig(targets=tuple(Target(latency_ms=limit) for limit in limits)),
            rng=np.random.default_rng(seed),
        )

    return make


def trials_of(problem, genotypes, start):
    latency = problem.latency_of(genotypes) if len(genotypes) else []
    return [
        Trial(
            index=start + i,
            generation=0,
            digest=problem.space.decode(genotype).digest,
            genotype=tuple(genotype.tolist()),
            val_accuracy=float(genotype.sum()) / 100,
            val_loss=0.0,
            latency_ms=float(latency[i]),
        )
        for i, genotype in enumerate(genotypes)
    ]


def run(build, problem, generations, count=12):
    algorithm, trials = build(problem), []
    for _ in range(generations):
        genotypes = algorithm.ask(count)
        assert genotypes.shape[1:] == problem.space.gene_sizes.shape
        assert len(genotypes) <= count
        told = trials_of(problem, genotypes, len(trials))
        algorithm.tell(told)
        trials += told
    return trials


def test_proposals_are_new_canonical_and_feasible(build, make_problem):
    problem = make_problem(0.1, 0.4, 0.9)
    trials = run(build, problem, 8)
    assert len({trial.digest for trial in trials}) == len(trials) >= 80
    genotypes = np.array([trial.genotype for trial in trials])
    np.testing.assert_array_equal(problem.space.canonical(genotypes), genotypes)
    assert all(trial.latency_ms <= max(problem.limits_ms) for trial in trials)


def test_every_limit_gets_its_share(build, make_problem):
    problem = make_problem(0.1, 0.9)
    trials = run(build, problem, 6)
    assert sum(trial.latency_ms <= problem.limits_ms[0] for trial in trials) >= 0.4 * len(trials)


def test_a_limit_at_the_bound_is_found(build, make_problem):
    problem = make_problem(0.0)
    trials = run(build, problem, 3)
    assert trials
    assert all(trial.latency_ms == problem.bounds.fastest_ms for trial in trials)


def test_an_exhausted_space_ends_the_asking(build, make_problem):
    problem = make_problem(0.0)
    algorithm = build(problem)
    sizes = []
    for _ in range(60):
        genotypes = algorithm.ask(20)
        sizes.append(len(genotypes))
        algorithm.tell(trials_of(problem, genotypes, 0))
    assert sizes[-1] == 0


def test_the_generator_decides(build, make_problem):
    first, second = (run(build, make_problem(0.3, 0.8, seed=3), 4) for _ in range(2))
    other = run(build, make_problem(0.3, 0.8, seed=4), 4)
    assert [t.genotype for t in first] == [t.genotype for t in second] != [t.genotype for t in other]
