import numpy as np
import pytest

from hwmodel.errors import UsageError
from search.algorithm import SearchProblem
from search.config import Limits, SearchConfig, Target
from search.knapsack import Knapsack
from search.limits import Feasibility, costs_function
from search.sensitivity import SensitivitySearch, check_rows_only
from search.trial import Trial

FIXED = {"image_size": (8,), "embed_dim": (24,), "depth": (4,), "num_heads": (3,), "mlp_ratio": (4,)}
RATIOS = (0, 0.25, 0.5, 0.75, 1)


@pytest.fixture
def make_problem(make_space, make_cost_model):
    space = make_space(**FIXED, high_precision_ratio=RATIOS)
    model = make_cost_model(space)
    feasibility = Feasibility.of(space, model, Limits())

    def make(*shares, expected, seed=0):
        fastest, slowest = feasibility.bounds.fastest_ms, feasibility.bounds.slowest_ms
        limits_ms = tuple(fastest + share * (slowest - fastest) for share in shares)
        return SearchProblem(
            space=space,
            costs_of=costs_function(space, model, Limits()),
            bounds=feasibility.bounds,
            anchors=feasibility.anchors,
            limits_ms=limits_ms,
            settings=SearchConfig(targets=tuple(Target(latency_ms=limit) for limit in limits_ms)),
            rng=np.random.default_rng(seed),
            expected_divergence=expected(space),
        )

    return make


def convex(space, seed=0):
    """What the ratios of 16 linears are expected to cost, (G, C)."""
    rng = np.random.default_rng(seed)
    nats = np.zeros((len(space.gene_sizes), len(RATIOS)))
    rows = space.gene_sizes > 1
    nats[rows] = 0.01 * rng.lognormal(size=(rows.sum(), 1)) * (1 - np.array(RATIOS)) ** 2
    return nats


def trials_of(problem, genotypes, true, start):
    latency = problem.costs_of(genotypes).latency_ms
    return [
        Trial(
            index=start + i,
            generation=0,
            digest=str(start + i),
            genotype=tuple(genotype.tolist()),
            val_accuracy=0.5,
            val_loss=0.0,
            latency_ms=float(latency[i]),
            val_kl=0.01 + float(true[np.arange(len(true)), genotype].sum()),
        )
        for i, genotype in enumerate(genotypes)
    ]


def test_it_begins_with_the_best_that_is_expected_for_each_limit(make_problem):
    problem = make_problem(0.3, 0.5, 0.7, expected=convex)
    knapsack = Knapsack(problem)
    terms = problem.expected_divergence[knapsack.genes]
    best = [knapsack.best(terms, limit) for limit in problem.limits_ms]
    asked = SensitivitySearch(problem).ask(5)
    np.testing.assert_array_equal(asked[:3], best)
    assert len(np.unique(asked, axis=0)) == 5


def test_it_learns_where_linears_differ_from_what_is_expected(make_problem):
    problem = make_problem(0.5, expected=convex)
    rng, genes = np.random.default_rng(5), np.flatnonzero(problem.space.gene_sizes > 1)
    true = problem.expected_divergence.copy()
    true[genes] *= 1.5 * rng.lognormal(sigma=0.8, size=(len(genes), 1))
    optimum = Knapsack(problem).best(true[genes], problem.limits_ms[0])
    least = trials_of(problem, optimum[None], true, 0)[0].val_kl
    search, trials = SensitivitySearch(problem), []
    for _ in range(4):
        told = trials_of(problem, search.ask(10), true, len(trials))
        search.tell(told)
        trials += told
    assert trials[0].val_kl > 1.05 * least
    assert min(trial.val_kl for trial in trials) < 1.01 * least
    assert search.report()["predictor_rank_correlation"] > 0.5


def test_a_known_trial_is_learned_from(make_problem):
    problem = make_problem(0.5, expected=convex)
    true = problem.expected_divergence * 2
    known = tuple(trials_of(problem, problem.space.sample(problem.rng, 30), true, 0))
    problem = SearchProblem(
        **{name: getattr(problem, name) for name in SearchProblem.__slots__ if name != "known"}, known=known
    )
    search = SensitivitySearch(problem)
    genotypes = search.ask(6)
    search.tell(trials_of(problem, genotypes, true, 30))
    assert search.report()["predictor_rank_correlation"] > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": (3, 4)}, r"space\.depth has 2 choices; leave one, or use search\.algorithm=predictor"),
        ({"num_heads": (1, 3)}, r"space\.num_heads has 2 choices"),
        ({"operator": ("convolution",)}, r"not of space\.operator 'convolution'"),
    ],
)
def test_spaces_with_other_choices_are_refused(make_space, change, message):
    check_rows_only(make_space(**FIXED))
    check_rows_only(make_space(**FIXED | {"num_heads": "embed"}))
    with pytest.raises(UsageError, match=message):
        check_rows_only(make_space(**FIXED | change))


def test_it_cannot_go_without_expectations(make_problem):
    with pytest.raises(UsageError, match="needs what rows are expected to cost"):
        SensitivitySearch(make_problem(0.5, expected=lambda space: None))
