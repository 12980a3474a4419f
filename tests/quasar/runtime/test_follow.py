"""The controller, computed by hand on three subnets, and against its subnets on any trace."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quasar.runtime.budget import Budget, Offer
from quasar.runtime.follow import compare, controller, follow_live, simulate
from quasar.runtime.trace import Frame

SMALL = Offer(subnet="small", accuracy=0.90, latency_ms=1.0, energy_mj=1.0)
MIDDLE = Offer(subnet="middle", accuracy=0.94, latency_ms=2.0, energy_mj=3.0)
LARGE = Offer(subnet="large", accuracy=0.96, latency_ms=4.0, energy_mj=6.0)
OFFERS = [SMALL, MIDDLE, LARGE]


def frames(*steps, limited="latency_ms"):
    return [Frame(arrival_s=ms / 1e3, budget=Budget(**{limited: limit})) for ms, limit in steps]


def test_a_trace_by_hand():
    # The third image waits 3 ms for the second, so that 2 of its 5 ms are left; the last one cannot be saved.
    images = frames((0, 2), (10, 4), (11, 5), (20, 0.5))
    answers = simulate(images, controller(OFFERS))
    assert [answer.offer.subnet for answer in answers] == ["middle", "large", "middle", "small"]
    assert [round(answer.waited_ms, 9) for answer in answers] == [0, 0, 3, 0]
    assert [answer.missed for answer in answers] == [False, False, False, True]

    comparison = compare(OFFERS, images)
    whole = comparison.controller
    assert (whole.images, whole.missed, whole.switches) == (4, 1, 3)
    assert whole.energy_mj == pytest.approx(3 + 6 + 3 + 1)
    assert whole.accuracy == pytest.approx((0.94 + 0.96 + 0.94 + 0.90) / 4)
    assert whole.worst_response_ms == pytest.approx(5)
    assert whole.subnets["middle"].images == 2
    assert whole.subnets["middle"].busy_s == pytest.approx(4e-3)
    assert whole.subnets["middle"].current_s == pytest.approx(10e-3 + 6e-3)  # from 0 to 10 and from 14 to 20 ms
    assert whole.subnets["large"].current_s == pytest.approx(4e-3)
    assert comparison.best_static is None  # the last budget is shorter than any subnet
    assert comparison.against_best is None


def test_the_best_subnet_alone_meets_every_budget():
    comparison = compare(OFFERS, frames((0, 9), (10, 2.5), (20, 9)))
    assert {name: outcome.missed for name, outcome in comparison.static.items()} == {
        "small": 0,
        "middle": 0,
        "large": 1,
    }
    assert comparison.best_static == "middle"
    assert comparison.controller.missed == 0
    points = 100 * ((0.96 + 0.94 + 0.96) / 3 - 0.94)
    assert comparison.against_best == pytest.approx(
        {"accuracy_points": points, "energy_percent": 100 * ((6 + 3 + 6) / 9 - 1)}
    )


def test_energy_budgets_have_no_deadline():
    comparison = compare(OFFERS, frames((0, 6), (1, 3), (2, 0.5), limited="energy_mj"))
    assert list(comparison.controller.subnets) == ["large", "middle", "small"]
    assert comparison.controller.missed == 1
    assert comparison.controller.energy_mj == pytest.approx(10)


def test_at_a_fixed_rate_nothing_slower_than_the_rate_is_taken():
    images = frames(*((2.5 * n, 100) for n in range(5)))
    assert {answer.offer.subnet for answer in simulate(images, controller(OFFERS))} == {"large"}
    assert {answer.offer.subnet for answer in simulate(images, controller(OFFERS, fps=400))} == {"middle"}


def test_a_deadline_that_is_just_met_is_met_far_from_the_start():
    images = [Frame(arrival_s=86400.0 + n / 1e3, budget=Budget(latency_ms=1.0)) for n in range(3)]
    assert compare([SMALL], images, fps=1000).controller.missed == 0


@given(
    st.lists(st.floats(1.0, 10.0), min_size=1, max_size=30),
    st.floats(1.0, 6.0),
)
def test_no_deadline_is_missed_that_the_fastest_subnet_meets_and_no_such_subnet_is_more_accurate(limits, period_ms):
    images = frames(*((period_ms * n, limit) for n, limit in enumerate(limits)))
    comparison = compare(OFFERS, images, fps=1e3 / period_ms)
    assert comparison.controller.missed == 0
    assert sum(use.images for use in comparison.controller.subnets.values()) == len(limits)
    for offer in OFFERS:
        if offer.latency_ms <= min(period_ms, *limits):
            assert comparison.static[offer.subnet].missed == 0
            assert comparison.controller.accuracy >= offer.accuracy - 1e-12


def test_live_on_this_host(runtime):
    images = frames((0, 60_000), (20, 60_000), (40, 1e-6))
    comparison = follow_live(runtime, images)
    assert comparison.live
    assert comparison.costs == "measured"
    assert comparison.controller.images == 3
    assert comparison.controller.missed == 1
    used = {name: use.images for name, use in comparison.controller.subnets.items()}
    most_accurate = max(runtime.offers(), key=lambda offer: offer.accuracy).subnet
    fastest = min(runtime.offers("measured"), key=lambda offer: offer.latency_ms).subnet
    assert used == ({most_accurate: 2, fastest: 1} if fastest != most_accurate else {fastest: 3})
    assert all(use.current_s >= use.busy_s > 0 for use in comparison.controller.subnets.values())
