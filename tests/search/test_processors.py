"""Searching for a CPU or GPU: bounds, profile and result, with one cost model for all subnets and no resources."""

import json

import numpy as np
import pytest
from measured_hosts import measured_host

from hwmodel.device import load_hardware
from hwmodel.measured_cost import MeasuredCostModel
from hwmodel.processor_cost import RooflineCostModel
from search.bounds import extremes, latency_bounds
from search.config import Limits, SearchConfig, Target
from search.evaluator import Direct
from search.limits import Feasibility
from search.profile import profile
from search.run import run_search
from supernet.lowering import lower, lower_many


def measured(**settings):
    return MeasuredCostModel(measured_host(**settings))


MODELS = {"roofline": RooflineCostModel(load_hardware("jetson_tx2")), "measured": measured()}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


def test_bounds_are_those_of_the_whole_enumerated_space(make_space, model):
    space = make_space(depth=(1, 2), num_heads=(1, 3), mlp_ratio=(1.5, 2), high_precision_ratio=(0, 0.4))
    whole = space.canonical(np.array(list(np.ndindex(*space.gene_sizes)), dtype=np.int64))
    latency = model.estimate_many(lower_many(space.arrays(whole))).latency_ms
    bounds = latency_bounds(space, model)
    assert (bounds.fastest_ms, bounds.slowest_ms) == (latency.min(), latency.max())
    assert model.estimate(lower(space.decode(bounds.fastest))).latency_ms == bounds.fastest_ms


def test_a_profile_has_no_resources(space, model):
    slowest = latency_bounds(space, model).slowest_ms
    config = SearchConfig(targets=(Target(latency_ms=slowest), Target(latency_ms=1e-9)))
    document = json.loads(json.dumps(profile(space, model, config, seed=0)))
    assert document["device"] == model.device.name
    assert (document["resources"], document["accelerator"], document["accelerators"]) == ({}, None, None)
    assert ("energy_mj" in document["figures"]) == isinstance(model, RooflineCostModel)
    met, missed = document["targets"]
    assert (met["status"], met["share_of_random_subnets"]) == ("ok", 1.0)
    assert missed["status"] == "infeasible"


def test_what_the_fastest_subnet_waits_for_is_told(space):
    reason = Feasibility.of(space, MODELS["roofline"], Limits()).reason(Target(latency_ms=1e-9))
    assert "of its time goes to launching operators: fewer blocks help" in reason


def test_energy_is_bounded_where_the_power_is_known(space):
    model = measured(power_w=10.0)
    found = extremes(space, model, "energy_mj")
    assert found.least == 10 * latency_bounds(space, model).fastest_ms
    assert "energy_mj" in Feasibility.of(space, model, Limits(energy_mj=found.least / 2)).broken


def test_a_search_finds_the_best_under_its_targets(space, model, evaluator, tmp_path):
    bounds = latency_bounds(space, model)
    limit_ms = (bounds.fastest_ms + bounds.slowest_ms) / 2
    result = run_search(
        space=space,
        model=model,
        config=SearchConfig(targets=(Target(latency_ms=limit_ms),), evaluations=40, algorithm="evolution"),
        evaluator=Direct(evaluator),
        journal=tmp_path / "trials.jsonl",
        seed=0,
        progress=lambda done, total, text: None,
    )
    (choice,) = result.choices
    assert choice.trial.latency_ms <= limit_ms
    assert choice.trial.latency_ms == model.estimate(lower(choice.subnet)).latency_ms
    assert result.model is model


def test_subnets_outside_of_what_was_measured_are_left_out(space, evaluator, tmp_path):
    model = measured(most_tokens=12.0)  # images of 6 pixels have 10 tokens, those of 8 have 17
    slowest = latency_bounds(space, model).slowest_ms
    result = run_search(
        space=space,
        model=model,
        config=SearchConfig(targets=(Target(latency_ms=slowest),), evaluations=30, algorithm="random"),
        evaluator=Direct(evaluator),
        journal=tmp_path / "trials.jsonl",
        seed=0,
        progress=lambda done, total, text: None,
    )
    sizes = {space.image_size[trial.genotype[0]] for trial in result.trials}
    assert sizes == {6}
