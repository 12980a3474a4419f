"""Which subnet a budget allows: cases by hand."""

import math

import pytest

from hwmodel.errors import UsageError
from quasar.runtime.budget import Budget, Choice, Offer, choose

OFFERS = [
    Offer(subnet="small", accuracy=0.90, latency_ms=1.0, energy_mj=1.0),
    Offer(subnet="odd", accuracy=0.89, latency_ms=2.0, energy_mj=0.5),
    Offer(subnet="large", accuracy=0.95, latency_ms=4.0, energy_mj=6.0),
]


@pytest.mark.parametrize(
    ("budget", "subnet", "met"),
    [
        ({"latency_ms": 4.0}, "large", True),
        ({"latency_ms": 3.999}, "small", True),
        ({"latency_ms": 1.0}, "small", True),
        ({"latency_ms": 0.5}, "small", False),
        ({"energy_mj": 6}, "large", True),
        ({"energy_mj": 0.7}, "odd", True),
        ({"energy_mj": 0.1}, "small", False),
        ({"latency_ms": 4.0, "energy_mj": 1.0}, "small", True),
        ({"latency_ms": 1.5, "energy_mj": 0.7}, "small", False),
    ],
)
def test_the_most_accurate_within_the_budget_or_else_the_fastest(budget, subnet, met):
    offer, found = choose(OFFERS, Budget(**budget))
    assert (offer.subnet, found) == (subnet, met)


def test_of_equally_accurate_ones_the_faster():
    slower = Offer(subnet="slower", accuracy=0.95, latency_ms=5.0, energy_mj=1.0)
    assert choose([slower, *OFFERS], Budget(latency_ms=9))[0].subnet == "large"


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "needs latency_ms or energy_mj"),
        ({"latency_ms": 0}, "latency_ms must be a positive number, not 0"),
        ({"latency_ms": 1, "energy_mj": -1}, "energy_mj must be a positive number, not -1"),
        ({"latency_ms": math.nan}, "not nan"),
        ({"energy_mj": math.inf}, "not inf"),
    ],
)
def test_what_is_no_budget_is_refused(budget, message):
    with pytest.raises(UsageError, match=message):
        Budget(**budget)


def test_an_unmet_budget_is_told():
    budget = Budget(latency_ms=0.5)
    offer, met = choose(OFFERS, budget)
    text = str(Choice(offer=offer, budget=budget, costs="modelled", met=met))
    assert text.startswith("no subnet meets 0.5 ms; the fastest is taken, small: 90.00%, 1 ms (modelled)")
