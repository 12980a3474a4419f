import numpy as np
import pytest

from hwmodel.errors import UsageError
from supernet.sampling import STRATEGIES


@pytest.mark.parametrize(
    ("name", "fixed"), [("single", ()), ("sandwich", ("largest", "smallest")), ("max_random", ("largest",))]
)
def test_strategies(space, name, fixed):
    strategy = STRATEGIES.get(name)
    subnets = strategy(space, np.random.default_rng(3), 2)
    assert subnets[: len(fixed)] == [getattr(space, which)() for which in fixed]
    drawn = space.sample(np.random.default_rng(3), 2)
    assert subnets[len(fixed) :] == [space.decode(genotype) for genotype in drawn]


def test_every_strategy_draws_from_its_generator_alone(space):
    for name in STRATEGIES.names():
        first, second = (STRATEGIES.get(name)(space, np.random.default_rng(0), 3) for _ in range(2))
        assert first == second
        for subnet in first:
            space.encode(subnet)  # raises if it is outside


def test_unknown_strategy_suggests_the_nearest():
    with pytest.raises(UsageError, match="unknown sampling strategy 'sandwhich': did you mean 'sandwich'"):
        STRATEGIES.get("sandwhich")
