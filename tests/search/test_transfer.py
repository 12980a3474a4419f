"""Ranks and borrowed choices, by hand; bit operations against the layers of a subnet."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from search.transfer import bit_operations, borrowed, rank_correlation
from supernet.lowering import lower


def test_ranks_of_opposite_devices():
    latency_ms = np.array([[1.0, 2, 3, 4], [8, 6, 4, 2], [1, 3, 2, 4], [5, 5, 5, 5]])
    ranks = rank_correlation(latency_ms)
    assert ranks.kendall[0].tolist()[:3] == pytest.approx([1, -1, 4 / 6])  # of six pairs one is exchanged
    assert ranks.spearman[0].tolist()[:3] == pytest.approx([1, -1, 1 - 6 * 2 / (4 * 15)])
    assert np.isnan(ranks.kendall[3, :3]).all()
    np.testing.assert_array_equal(ranks.kendall, ranks.kendall.T)


def test_what_borrowed_strategies_cost():
    latency_ms = np.array([[1.0, 2, 3, 4], [4, 3, 2, 1]])
    found = borrowed(latency_ms, np.array([0.1, 0.2, 0.3, 0.4]), np.array([[3.0, 3], [4, 4]]))
    # Within 3 ms the first device takes 0.3 in 3 ms, which the second runs in 2: there 0.4 takes 1.
    # The second device takes 0.4, its fastest and best, and nothing on the first one is better than its slowest.
    assert found.lost[0] == pytest.approx(np.array([[0, 0.1], [0, 0]]))
    assert found.best[0] == pytest.approx(np.array([[0.3, 0.4], [0.4, 0.4]]))
    assert found.slower[0] == pytest.approx(np.array([[0, 1], [0, 0]]))
    assert not found.lost[1].any()


def test_of_equal_scores_the_fastest_is_chosen():
    found = borrowed(np.array([[3.0, 1, 2], [1, 2, 3]]), np.array([0.5, 0.5, 0.5]), np.array([[3.0, 3]]))
    assert found.slower[0] == pytest.approx(np.array([[0, 1], [2, 0]]))


@given(
    arrays(np.float64, (3, 7), elements=st.floats(0.1, 9)),
    arrays(np.float64, 7, elements=st.floats(0, 1)),
    st.floats(0.01, 9),  # below the fastest candidate, too
)
def test_nothing_is_lost_at_home_and_nothing_gained_abroad(latency_ms, score, limit_ms):
    found = borrowed(latency_ms, score, np.full((1, 3), limit_ms))
    assert (found.lost >= 0).all()
    assert (found.slower >= 0).all()
    for matrix in (found.lost[0], found.slower[0]):
        assert not np.diagonal(matrix).any()


def test_bit_operations_are_those_of_the_layers(space, rng):
    genotypes = space.sample(rng, 8)
    expected = []
    for genotype in genotypes:
        workload = lower(space.decode(genotype))
        expected.append(
            sum(
                g.tokens * g.inputs * g.count * (8 * g.rows_high + 4 * g.rows_low if g.stored else 8 * g.rows)
                for g in workload.gemms
            )
        )
    assert bit_operations(space, genotypes).tolist() == expected
