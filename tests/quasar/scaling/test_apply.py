import pytest

from hwmodel.errors import InfeasibleError, UsageError
from quasar.scaling.apply import Found, apply, latency_function
from quasar.scaling.families import VitFamily
from quasar.scaling.shapes import VitShape
from quasar.scaling.strategy import Exponents, Strategy
from quasar.scaling.summary import findings
from search.config import HardwareConfig


@pytest.fixture
def found(study):
    """A strategy for the TX2 that grows depth and width alike, from the baseline of the study."""
    settings = study("hardware={device: jetson_tx2}", "scale.budgets=[{latency_ms: 0.2}, {latency_ms: 0.4}]")
    family = VitFamily(base=settings.plan.baseline, space=settings.config.space)
    cost = latency_function(settings.config.hardware)(family.lower(family.base))
    strategy = Strategy(unit="latency_ms", exponents=Exponents(depth=0.5, width=0.3, resolution=0.0), cost=cost)
    return Found(strategy=strategy, family=family, config=settings.config)


def test_another_device_is_another_clock_for_the_same_growth(found):
    base_ms = found.strategy.cost
    assert apply(found, base_ms)["shape"] == found.family.base.to_dict()
    ours = apply(found, 6 * base_ms)
    for device in ("jetson_nano", "zcu102"):
        latency_of = latency_function(HardwareConfig(device=device))
        there_ms = latency_of(found.family.lower(found.family.base))
        assert apply(found, there_ms, device=device)["shape"] == found.family.base.to_dict()
        other = apply(found, 6 * there_ms, device=device)
        assert other["device"] == device
        shape = VitShape(**other["shape"])
        assert other["cost"] == latency_of(found.family.lower(shape))
        assert abs(other["off"]) < 0.5
        # shapes of one law: what is deeper is not narrower
        theirs = VitShape(**ours["shape"])
        assert (shape.depth - theirs.depth) * (shape.embed_dim - theirs.embed_dim) >= 0


def test_the_device_of_the_study_keeps_its_settings(study):
    fixed = HardwareConfig(device="zcu102", array=(8, 16), backend="dual")
    family = VitFamily(base=study().plan.baseline, space=study().config.space)
    workload = family.lower(family.base)
    assert latency_function(fixed)(workload) > latency_function(HardwareConfig(device="zcu102"))(workload)


def test_what_cannot_be_applied(found):
    with pytest.raises(UsageError, match="unknown device 'jetson_tx3'"):
        apply(found, 1.0, device="jetson_tx3")
    shrinking = Strategy(unit="latency_ms", exponents=Exponents(depth=-1.0, width=0.0, resolution=0.0), cost=0.1)
    with pytest.raises(InfeasibleError, match="no costlier"):
        apply(Found(strategy=shrinking, family=found.family, config=found.config), 1.0)


def test_gains_by_hand():
    def row(what, budget, accuracy, error):
        return {"what": what, "budget": budget, "test_accuracy": accuracy, "test_error": error}

    document = {
        "unit": "macs",
        "budgets": [{"cost": 1e6}, {"cost": 4e6}],
        "comparison": [
            row("baseline", None, 0.80, 0.004),
            row("strategy", 1e6, 0.809, 0.003),
            row("compound", 1e6, 0.78, 0.004),
            row("compound", 4e6, 0.80, 0.003),  # the strategy has no shape there
        ],
    }
    assert findings(document) == [
        "1 M MACs: strategy found against compound scaling: +2.9 ± 0.5 points",
        "1 M MACs: strategy found against the baseline: +0.9 ± 0.5 points, within two standard errors",
    ]
