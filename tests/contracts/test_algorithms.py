"""What every search algorithm must keep to; a plug-in's author registers it and runs this file."""

import json

import numpy as np
import pytest

from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from hwmodel.explore import best_accelerator
from search.algorithm import ALGORITHMS, SearchProblem
from search.bounds import figures_of
from search.config import HardwareConfig, Limits, SearchConfig, Target
from search.limits import Feasibility, costs_function
from search.run import algorithm_names
from search.shortlist import adaptive_model
from search.trial import Trial
from supernet.lowering import lower

NO_LIMITS = Limits()
#: what a space must leave fixed for algorithms that choose less than all of it
FIXED = {"sensitivity": {"image_size": (8,), "embed_dim": (16,), "depth": (3,), "num_heads": (2,), "mlp_ratio": (2,)}}


@pytest.fixture(params=algorithm_names())
def algorithm(request):
    return request.param


@pytest.fixture
def build(algorithm):
    return ALGORITHMS.get(algorithm)


@pytest.fixture
def space(algorithm, make_space):
    return make_space(**FIXED.get(algorithm, {}))


@pytest.fixture(params=["fixed", "per_subnet"])
def cost_model(request, space):
    device, hardware = load_device("zcu102"), HardwareConfig(array=(4, 8))
    if request.param == "per_subnet":
        return adaptive_model(space, hardware, device, limited=device)
    return FpgaCostModel(device, best_accelerator([lower(space.largest())], device, array=(4, 8)))


@pytest.fixture
def make_problem(space, cost_model):
    def make(*shares, seed=0, limits=NO_LIMITS, known=()):
        feasibility = Feasibility.of(space, cost_model, limits)
        bounds = feasibility.bounds
        limits_ms = tuple(bounds.fastest_ms + share * (bounds.slowest_ms - bounds.fastest_ms) for share in shares)
        return SearchProblem(
            space=space,
            costs_of=costs_function(space, cost_model, limits),
            bounds=bounds,
            anchors=feasibility.anchors,
            limits_ms=limits_ms,
            settings=SearchConfig(targets=tuple(Target(latency_ms=limit) for limit in limits_ms), limits=limits),
            rng=np.random.default_rng(seed),
            known=tuple(known),
            expected_divergence=expected_divergence(space),
        )

    return make


def expected_divergence(space):
    """Low rows of every second linear cost four times as much as those of the others."""
    ratios = np.array(space.high_precision_ratio)
    of_rows = np.array([name.endswith("_ratio") and not name.endswith("mlp_ratio") for name in space.gene_names])
    weight = np.where(np.arange(len(of_rows)) % 2, 0.04, 0.01) * of_rows
    return weight[:, None] * (1 - ratios)


def trials_of(problem, genotypes, start):
    latency = problem.costs_of(genotypes).latency_ms
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
    # Those that look for the whole frontier owe a tight limit less than half, but never nothing.
    assert sum(trial.latency_ms <= problem.limits_ms[0] for trial in trials) >= 0.15 * len(trials)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_small_generations_serve_every_limit(build, make_problem, count):
    problem = make_problem(0.05, 0.5, 0.9)
    trials = run(build, problem, 30 // count, count=count)
    assert len(trials) == 30
    assert sum(trial.latency_ms <= problem.limits_ms[0] for trial in trials) >= 3


def test_other_limits_are_kept(build, make_problem, cost_model):
    problem = make_problem(0.3, 0.9)
    figures = figures_of(problem.space, cost_model, problem.space.sample(problem.rng, 500))
    limits = Limits(
        energy_mj=float(np.quantile(figures["energy_mj"], 0.2)),
        weight_bytes=float(np.quantile(figures["weight_bytes"], 0.1)),
    )
    trials = run(build, make_problem(0.3, 0.9, limits=limits), 4)
    assert len(trials) == 48
    genotypes = np.array([trial.genotype for trial in trials])
    found = figures_of(problem.space, cost_model, genotypes)
    assert found["energy_mj"].max() <= limits.energy_mj
    assert found["weight_bytes"].max() <= limits.weight_bytes


def test_what_is_known_is_never_proposed(build, make_problem):
    problem = make_problem(0.2, 0.6)
    # Measured for other hardware: some are too slow for all limits here.
    known = trials_of(problem, np.unique(problem.space.sample(problem.rng, 60), axis=0), 0)
    assert max(trial.latency_ms for trial in known) > problem.limits_ms[-1]
    trials = run(build, make_problem(0.2, 0.6, known=known), 6)
    assert len(trials) >= 60
    assert not {trial.digest for trial in known} & {trial.digest for trial in trials}
    assert all(trial.latency_ms <= problem.limits_ms[-1] for trial in trials)


def test_its_report_is_plain_data(build, make_problem):
    problem = make_problem(0.5)
    algorithm = build(problem)
    for _ in range(4):
        genotypes = algorithm.ask(12)
        algorithm.tell(trials_of(problem, genotypes, 0))
    assert json.loads(json.dumps(algorithm.report())) == algorithm.report()


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
