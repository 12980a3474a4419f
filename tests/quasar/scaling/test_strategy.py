import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.errors import InfeasibleError
from quasar.scaling.families import Multipliers, PitFamily, VitFamily
from quasar.scaling.plan import Compound
from quasar.scaling.shapes import VitShape
from quasar.scaling.strategy import Exponents, Measured, Strategy, cost_function, fit, reference_cost
from supernet.pit_shape import PitShape
from supernet.space import SearchSpace

SPACE = SearchSpace(
    num_classes=10,
    in_chans=3,
    patch_size=4,
    head_dim=32,
    image_size=(32,),
    embed_dim=(64,),
    depth=(2,),
    num_heads="embed",
    mlp_ratio=(4,),
    high_precision_ratio=(1.0,),
)
BASE = VitShape(depth=4, embed_dim=128, num_heads=4, mlp_ratio=4, image_size=32, patch_size=4)
VIT = VitFamily(base=BASE, space=SPACE)
MACS = cost_function("macs", None)


def budget(cost, growths, accuracy, error=0.0):
    count = len(cost)
    return Measured(
        growths=np.array(growths, dtype=float),
        cost=np.array(cost, dtype=float),
        accuracy=np.array(accuracy, dtype=float),
        error=np.full(count, error),
    )


def lawful(cost, depth, width, resolution):
    """The dimensions of a law with these exponents, 2, 16 and 4 at a cost of 100."""
    return [start * (cost / 100) ** power for start, power in ((2, depth), (16, width), (4, resolution))]


def test_the_exponents_of_a_law_are_found_and_the_worse_candidates_ignored():
    cost = ([90, 110, 100], [390, 440, 400], [1500, 1700, 1600])
    measured = [
        budget(row, [lawful(c, 0.2, 0.3, 0.1) for c in row[:2]] + [[50, 3, 9]], [0.8, 0.8, 0.1], 0.001) for row in cost
    ]
    found, law = fit(measured, best=2, seed=0)
    assert [round(found[name].value, 6) for name in ("depth", "width", "resolution")] == [0.2, 0.3, 0.1]
    assert all(exponent.status == "determined" for exponent in found.values())
    assert all(exponent.standard_error < 1e-6 and exponent.selection_error < 1e-6 for exponent in found.values())
    start = reference_cost(measured)
    assert start == pytest.approx((90 * 110 * 100) ** (1 / 3))
    assert (law.depth, law.width, law.resolution) == pytest.approx(lawful(start, 0.2, 0.3, 0.1))


def test_the_standard_error_by_hand():
    # y = 0, 1, 1 over x = 0, 1, 2: slope 1/2, residuals -1/6, 1/3, -1/6; s^2 = 1/6, divided by sum of squares 2
    y = (0, 1, 1)
    measured = [budget([math.exp(x)], [[math.exp(y[x]), 16, 4]], [0.5]) for x in range(3)]
    found, _ = fit(measured, best=1, seed=0)
    depth = found["depth"]
    assert depth.value == pytest.approx(0.5)
    assert depth.standard_error == pytest.approx(math.sqrt(1 / 12))
    assert depth.high - depth.value == pytest.approx(12.706 * math.sqrt(1 / 12), rel=1e-4)  # t with one degree
    assert depth.status == "undetermined"
    assert found["width"].status == "fixed"
    assert found["width"].value == pytest.approx(0)


def test_two_points_have_no_error():
    measured = [budget([c], [lawful(c, 0.5, 0.2, 0.1)], [0.5]) for c in (100, 200)]
    found, _ = fit(measured, best=1, seed=0)
    assert found["depth"].value == pytest.approx(0.5)
    assert (found["depth"].standard_error, found["depth"].low, found["depth"].status) == (None, None, "undetermined")


def test_noise_of_accuracies_is_in_the_selection_error():
    """Deep and flat ones are equally accurate in truth: which are best, and so the slope, is luck."""
    growths = [[1, 32, 4], [8, 16, 4]]
    measured = [budget([c, c], growths, [0.80, 0.79], error) for c in (100, 400) for error in (0.02,)]
    noisy = fit(measured, best=1, seed=0)[0]["depth"].selection_error
    certain = fit([budget([c, c], growths, [0.80, 0.79], 1e-6) for c in (100, 400)], best=1, seed=0)[0]
    # the slope is log(8) / log(4) up or down when the best differ
    assert 0.5 < noisy < 1.5
    assert certain["depth"].selection_error < 1e-9


def test_compound_scaling_doubles_the_cost():
    exponents = Exponents.of_compound(Compound())
    assert 2**exponents.depth == pytest.approx(1.2)
    with pytest.raises(ValueError, match=r"about 2, so that the cost doubles, not 1\.54"):
        Compound(depth=1.05, width=1.1, resolution=1.1)


def test_a_strategy_by_hand():
    """Only the depth grows, and every block costs the same: 4 blocks become 8 at about twice the cost."""
    deeper = Strategy(
        unit="macs", exponents=Exponents(depth=1.0, width=0.0, resolution=0.0), cost=MACS(VIT.lower(BASE))
    )
    placed = deeper.at(2 * deeper.cost, VIT, MACS)
    assert placed.shape == VitShape(depth=8, embed_dim=128, num_heads=4, mlp_ratio=4, image_size=32, patch_size=4)
    assert placed.cost == MACS(VIT.lower(placed.shape))
    assert abs(placed.off) < 0.02
    wider = Strategy(unit="macs", exponents=Exponents(depth=0.0, width=0.5, resolution=0.0), cost=deeper.cost)
    assert wider.at(4 * wider.cost, VIT, MACS).shape.embed_dim in (224, 256)  # attention grows by less than the square


@settings(max_examples=15, deadline=None)
@given(
    exponents=st.tuples(*[st.floats(0.0, 0.6)] * 3).filter(lambda e: 0.8 < e[0] + 2 * e[1] + 2 * e[2] < 1.3),
    factor=st.floats(1.0, 40.0),
)
def test_the_shape_at_a_budget_costs_about_that(exponents, factor):
    depth, width, resolution = exponents
    cost = MACS(VIT.lower(BASE))
    strategy = Strategy(unit="macs", exponents=Exponents(depth=depth, width=width, resolution=resolution), cost=cost)
    placed = strategy.at(factor * cost, VIT, MACS)
    assert abs(math.log(placed.cost / (factor * cost))) < 0.35  # one more head of width, a block or a patch at most
    assert placed.shape.depth >= BASE.depth - 1


def test_a_strategy_that_shrinks_or_does_not_fit_is_refused():
    shrinking = Strategy(unit="macs", exponents=Exponents(depth=-1.0, width=0.0, resolution=0.0), cost=1e6)
    with pytest.raises(InfeasibleError, match="no costlier as the budget grows"):
        shrinking.at(1e7, VIT, MACS)
    # deeper and narrower: costlier all the same on a device that only counts blocks

    def cost(workload):
        return float(sum(gemm.kind == "fc1" for gemm in workload.gemms))

    narrower = Strategy(unit="latency_ms", exponents=Exponents(depth=1.0, width=-0.8, resolution=0.0), cost=4.0)
    assert narrower.at(8.0, VIT, cost).shape.depth == 8
    growing = Strategy(unit="macs", exponents=Exponents(depth=0.3, width=0.2, resolution=0.1), cost=1e6)
    with pytest.raises(InfeasibleError, match="fits the device"):
        growing.at(1e7, VIT, lambda workload: math.inf)
    with pytest.raises(InfeasibleError, match="cannot hold"):
        growing.moved(VIT, lambda workload: math.inf)


def test_a_strategy_of_vit_scales_pit():
    base = PitShape(
        image_size=32,
        patch_size=4,
        stride=4,
        in_chans=3,
        num_classes=10,
        widths=(64, 128),
        depths=(2, 2),
        heads=(2, 4),
    )
    family = PitFamily(base=base)
    assert family.scaled(Multipliers()) == base
    strategy = Strategy(unit="macs", exponents=Exponents(depth=0.3, width=0.2, resolution=0.15), cost=1.0)
    strategy = strategy.moved(family, MACS)
    assert strategy.cost == MACS(family.lower(base))
    placed = strategy.at(3 * strategy.cost, family, MACS)
    assert placed.cost == pytest.approx(3 * strategy.cost, rel=0.3)
    assert placed.shape.depth > base.depth
    assert placed.shape.widths[0] > 64
    assert placed.shape.image_size > 32


def test_families_build_networks_of_their_shapes():
    import torch

    small = VitShape(depth=1, embed_dim=32, num_heads=1, mlp_ratio=2, image_size=8, patch_size=4)
    family = VitFamily(base=small, space=SPACE)
    assert family.build(small)(torch.zeros(1, 3, 8, 8), small.subnet(SPACE)).shape == (1, 10)
    pit = PitShape(
        image_size=8, patch_size=2, stride=2, in_chans=3, num_classes=10, widths=(8, 16), depths=(1, 1), heads=(1, 2)
    )
    assert PitFamily(base=pit).build(pit)(torch.zeros(1, 3, 8, 8)).shape == (1, 10)
