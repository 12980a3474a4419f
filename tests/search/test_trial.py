import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.trial import ParetoFront, Trial, best_under


def trial(latency_ms, accuracy, *, loss=0.0, index=0, kl=None):
    return Trial(
        index=index,
        generation=0,
        digest=str(index),
        genotype=(index,),
        val_accuracy=accuracy,
        val_loss=loss,
        latency_ms=latency_ms,
        val_kl=kl,
    )


def test_front_and_hypervolume_by_hand():
    trials = [trial(1, 0.5), trial(2, 0.8), trial(3, 0.7), trial(2, 0.6), trial(4, 0.9)]
    front = ParetoFront.of(trials)
    assert [(t.latency_ms, t.val_accuracy) for t in front.trials] == [(1, 0.5), (2, 0.8), (4, 0.9)]
    # 0.5 from 1 to 2, 0.8 from 2 to 4, 0.9 from 4 to 5, over 5
    assert front.hypervolume(slowest_ms=5) == pytest.approx((0.5 * 1 + 0.8 * 2 + 0.9 * 1) / 5)
    assert front.hypervolume(slowest_ms=3) == pytest.approx((0.5 * 1 + 0.8 * 1) / 3)
    assert ParetoFront.of([]).hypervolume(slowest_ms=1) == 0


points = st.lists(st.tuples(st.floats(0.1, 10), st.floats(0, 1)), max_size=12)


@given(points)
def test_nothing_beats_a_front_and_the_front_beats_the_rest(pairs):
    trials = [trial(*pair, index=i) for i, pair in enumerate(pairs)]
    front = ParetoFront.of(trials).trials

    def beats(a, b):
        return (
            a.latency_ms <= b.latency_ms
            and a.val_accuracy >= b.val_accuracy
            and (a.latency_ms, a.val_accuracy) != (b.latency_ms, b.val_accuracy)
        )

    assert not any(beats(a, b) for a in trials for b in front)
    for other in trials:
        assert any(a.latency_ms <= other.latency_ms and a.val_accuracy >= other.val_accuracy for a in front)


@given(points, st.tuples(st.floats(0.1, 10), st.floats(0, 1)))
def test_hypervolume_never_falls_when_a_trial_is_added(pairs, extra):
    trials = [trial(*pair) for pair in pairs]
    before = ParetoFront.of(trials).hypervolume(slowest_ms=10)
    after = ParetoFront.of([*trials, trial(*extra)]).hypervolume(slowest_ms=10)
    assert after - before >= -1e-12
    assert 0 <= after <= 1


def test_best_under_ranks_by_accuracy_then_loss_then_latency():
    trials = [
        trial(1, 0.5, index=0),
        trial(2, 0.9, loss=0.4, index=1),
        trial(2, 0.9, loss=0.3, index=2),
        trial(1.5, 0.9, loss=0.3, index=3),
        trial(3, 1.0, index=4),
    ]
    assert [t.index for t in best_under(trials, 2, count=3)] == [3, 2, 1]
    assert best_under(trials, 0.5) == []


def test_where_there_is_a_divergence_it_ranks():
    trials = [trial(1, 0.9, kl=0.5, index=0), trial(2, 0.1, kl=0.1, index=1), trial(3, 1.0, kl=0.2, index=2)]
    assert [t.score for t in trials] == pytest.approx([0.60653, 0.90484, 0.81873], abs=1e-5)
    assert [t.index for t in best_under(trials, 3, count=3)] == [1, 2, 0]
    front = ParetoFront.of(trials)
    assert [t.index for t in front.trials] == [0, 1]
    assert front.hypervolume(slowest_ms=4) == pytest.approx((0.60653 * 1 + 0.90484 * 2) / 4, abs=1e-5)
    assert "val_kl" not in trial(1, 0.5).to_dict()
    assert trials[0].to_dict()["val_kl"] == 0.5
