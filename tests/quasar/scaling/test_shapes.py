import dataclasses

import numpy as np
import pytest

from hwmodel.errors import InfeasibleError, UsageError
from quasar.scaling.candidates import device_models, find_candidates
from quasar.scaling.shapes import DIMENSIONS, VitShape, enumerate_shapes, shape_costs, space_filling
from supernet.lowering import lower


def test_all_combinations_are_there_once(study):
    space = study().config.space
    shapes = enumerate_shapes(space, (2, 3, 4))
    # 3 depths, 3 widths, 2 MLP ratios; 8 px in patches of 2 and 4, 12 px in patches of 2, 3 and 4
    assert len(shapes) == 3 * 3 * 2 * 5
    assert len(np.unique(shapes, axis=0)) == len(shapes)
    assert (shapes[:, 2] * space.head_dim == shapes[:, 1]).all()
    listed = dataclasses.replace(space, num_heads=(1, 2))
    assert len(enumerate_shapes(listed, (4,))) == 3 * 3 * 2 * 2 * 2
    with pytest.raises(UsageError, match="list fewer"):
        enumerate_shapes(dataclasses.replace(space, depth=tuple(range(1, 100_001))), (4,))


@pytest.mark.parametrize(
    "hardware",
    [
        "{device: zcu102, array: [8, 16], backend: dual}",
        "{device: zcu102, array: [8, 16], backend: dual, accelerator: per_subnet}",
        "{device: jetson_tx2}",
    ],
)
def test_costs_of_many_are_those_of_each(study, hardware):
    plan = study(f"hardware={hardware}", "scale.patch_size=[2, 4]")
    models = device_models(plan)
    space = plan.config.space
    shapes = enumerate_shapes(space, plan.patch_sizes)[::9]
    for row, (macs, latency_ms) in zip(shapes, shape_costs(shapes, space, models).tolist(), strict=True):
        shape = VitShape.of_row(row)
        assert VitShape.of_row(shape.row()) == shape
        workload = lower(shape.subnet(space))
        estimate = models[shape.patch_size].estimate(workload)
        assert (macs, latency_ms) == (workload.macs, estimate.latency_ms)
        assert not estimate.violations


def test_candidates_lie_near_their_budget(study):
    given = ("scale.tolerance=0.2", "scale.patch_size=[2, 3, 4]")
    plan = study(*given)
    found = find_candidates(plan, device_models(plan))
    for budget, near, chosen in zip(plan.plan.budgets, found.near, found.chosen, strict=True):
        assert len(chosen) == min(3, near)
        assert (np.abs(found.costs[chosen, 0] / budget.cost - 1) <= 0.2).all()
    again = find_candidates(plan, device_models(plan))
    assert again.chosen == found.chosen
    assert any(find_candidates(study(f"seed={seed}", *given), None).chosen != found.chosen for seed in range(1, 6))


def test_a_budget_that_nothing_reaches_is_told_the_nearest(study):
    plan = study("scale.budgets=[{macs: 4.0e+4}, {macs: 9.0e+11}]")
    with pytest.raises(InfeasibleError, match=r"within 30% of 9e\+05 M MACs; the nearest costs 0\.\d+ M MACs:"):
        find_candidates(plan, None)
    with pytest.raises(InfeasibleError, match=r"the nearest costs 0\.\d+ M MACs and 0\.\d+ M MACs"):
        find_candidates(study("scale.budgets=[{macs: 4.0e+4}, {macs: 1.31e+5}]", "scale.tolerance=0.0001"), None)
    plan = study("scale.budgets=[{fps: 1.0e+9}, {latency_ms: 0.01}]")
    with pytest.raises(InfeasibleError, match=r"1e-06 ms; the nearest costs 0.00\d+ ms: change the budget"):
        find_candidates(plan, device_models(plan))


def test_a_choice_fills_the_space():
    """Of 20 shapes that differ in depth alone, the farthest ones are taken, and those between them."""
    shapes = np.ones((20, len(DIMENSIONS)))
    shapes[:, 0] = 2.0 ** np.arange(20)
    chosen = space_filling(shapes, np.arange(20), 5, np.random.default_rng(0))
    assert max(min(abs(shape - other) for other in chosen) for shape in range(20)) <= 3  # 5 shapes, each for 4 others
    assert space_filling(shapes, np.array([3, 7]), 5, np.random.default_rng(0)) == [3, 7]
