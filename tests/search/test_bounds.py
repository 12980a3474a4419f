import tracemalloc

import numpy as np

from search.bounds import latency_bounds
from supernet.lowering import lower_many


def test_bounds_are_those_of_the_whole_enumerated_space(make_space, make_cost_model):
    space = make_space(depth=(1, 2), num_heads=(1, 3), mlp_ratio=(1.5, 2), high_precision_ratio=(0, 0.4))
    model = make_cost_model(space)
    two_blocks = np.array(list(np.ndindex(*space.gene_sizes)), dtype=np.int64)
    latency = model.estimate_many(lower_many(space.arrays(space.canonical(two_blocks)))).latency_ms
    bounds = latency_bounds(space, model)
    assert bounds.fastest_ms == latency.min()
    assert bounds.slowest_ms == latency.max()
    extremes = np.stack([bounds.fastest, bounds.slowest])
    reached = model.estimate_many(lower_many(space.arrays(extremes))).latency_ms
    assert reached.tolist() == [bounds.fastest_ms, bounds.slowest_ms]


def test_eleven_ratios_need_no_enumeration(make_space, make_cost_model):
    ratios = tuple(i / 10 for i in range(11))
    space = make_space(depth=(1,), num_heads=(1, 2), mlp_ratio=(1.5, 2), high_precision_ratio=ratios)
    model = make_cost_model(space)
    tracemalloc.start()
    bounds = latency_bounds(space, model)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 10**7
    # one block: all its 2 * 2 * 11**4 variants, for both image sizes and widths
    whole = np.array(list(np.ndindex(*space.gene_sizes)), dtype=np.int64)
    latency = model.estimate_many(lower_many(space.arrays(whole))).latency_ms
    assert (bounds.fastest_ms, bounds.slowest_ms) == (latency.min(), latency.max())


def test_random_subnets_lie_within_the_bounds(space, cost_model, bounds, rng):
    latency = cost_model.estimate_many(lower_many(space.arrays(space.sample(rng, 500)))).latency_ms
    assert bounds.fastest_ms <= latency.min()
    assert latency.max() <= bounds.slowest_ms
