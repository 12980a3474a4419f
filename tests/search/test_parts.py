import numpy as np
import pytest

from search.parts import SpaceParts
from supernet.lowering import lower_many


@pytest.mark.parametrize("changes", [{}, {"num_heads": "embed"}, {"depth": (3,)}])
def test_subnets_put_together_from_parts_are_those_of_the_lowering(make_space, make_cost_model, rng, changes):
    space = make_space(**changes)
    parts, genotypes = SpaceParts.of(space), space.sample(rng, 200)
    found, lowered = parts.of_genotypes(genotypes), lower_many(space.arrays(genotypes))
    assert [found.workload(i, name="") for i in range(20)] == [lowered.workload(i, name="") for i in range(20)]
    np.testing.assert_array_equal(found.activation_bytes(), lowered.activation_bytes())
    model = make_cost_model(space)
    ours, theirs = model.table(parts.population).costs(parts.numbers(genotypes)), model.estimate_many(lowered)
    for name in ("cycles", "latency_ms", "energy_mj", "fits"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_extremes_of_figures_by_hand(make_space):
    space = make_space(image_size=(8,), embed_dim=(12,), depth=(1, 2), num_heads=(1, 2), high_precision_ratio=(0, 1))
    parts = SpaceParts.of(space)
    figures = np.ones((2, len(parts.population.part_activation_bytes)), dtype=np.int64)
    figures[0, parts.mixers[0, 0, 5]] = 0  # heads 0, the only operator, qkv 1, proj 0 is 2; with heads 1 it is 6
    figures[0, parts.mixers[0, 0, 6]] = 7
    smallest, largest = parts.extremes(figures)
    assert smallest[0, 2] == 0  # one block
    assert smallest[0, [3, 6, 7]].tolist() == [1, 0, 1]
    assert largest[0, 2] == 1
    assert largest[0, 3:].reshape(2, 7)[:, [0, 3, 4]].tolist() == [[1, 1, 0]] * 2
    assert smallest[1].sum() == 0
    np.testing.assert_array_equal(space.canonical(largest), largest)
