"""Subnets that take turns: who answers, on what, and that a switch moves nothing."""

import threading

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hwmodel.errors import UsageError
from quasar.runtime.runtime import Runtime
from supernet.standalone import extract


class Operations(TorchDispatchMode):
    """Counts the operations of torch."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_the_most_accurate_subnet_is_first_and_a_budget_chooses_by_cost(runtime, bundles):
    cost = {bundle.folder.name: bundle.manifest.cost for bundle in bundles}
    assert runtime.current == "s4"
    assert list(runtime.subnets) == sorted(cost, key=lambda name: cost[name]["latency_ms"])
    for limit in ("latency_ms", "energy_mj"):
        for bundle in bundles:
            choice = runtime.set_budget(**{limit: bundle.manifest.cost[limit]})
            within = [name for name in cost if cost[name][limit] <= bundle.manifest.cost[limit]]
            assert choice.met
            assert choice.costs == "modelled"
            assert runtime.current == choice.offer.subnet == max(within, key=lambda name: int(name[1:]))


def test_an_impossible_budget_gives_the_fastest_and_says_so(runtime):
    choice = runtime.set_budget(latency_ms=1e-9)
    assert not choice.met
    assert runtime.current == runtime.subnets[0]
    assert runtime.stats()["choice"]["message"].startswith("no subnet meets 1e-09 ms")


def test_measured_costs_come_from_this_host(runtime):
    with pytest.raises(UsageError, match=r"call calibrate\(\) first"):
        runtime.set_budget(latency_ms=1, costs="measured")
    measured = runtime.calibrate(repeats=2)
    assert set(measured) == set(runtime.subnets)
    assert min(measured.values()) > 0
    fastest = min(measured, key=measured.__getitem__)
    choice = runtime.set_budget(latency_ms=measured[fastest] / 2, costs="measured")
    assert (choice.offer.subnet, choice.offer.latency_ms, choice.met) == (fastest, measured[fastest], False)


def test_a_wrong_budget_changes_nothing(runtime):
    runtime.switch("s2")
    for budget in ({}, {"latency_ms": 0}, {"energy_mj": float("nan")}):
        with pytest.raises(UsageError, match="budget"):
            runtime.set_budget(**budget)
    assert runtime.current == "s2"


def test_unknown_subnets_are_refused_with_the_nearest_name(runtime):
    with pytest.raises(UsageError, match="s1"):
        runtime.switch("s11")


def test_bundles_that_do_not_go_together_are_refused(bundles, shared_supernet, subnets, write, tmp_path):
    with pytest.raises(UsageError, match="at least one bundle"):
        Runtime([])
    with pytest.raises(UsageError, match="s3: another bundle has the same folder name"):
        Runtime([bundles[3], bundles[1], bundles[3]])
    other = write(extract(shared_supernet, subnets[0]), tmp_path / "other", mean=(0.1,))
    with pytest.raises(UsageError, match="do not share one store: mean of their data differ"):
        Runtime([*bundles, other])


def test_without_recorded_accuracies_there_are_no_budgets(bundles, shared_supernet, subnets, write, tmp_path):
    module = extract(shared_supernet, subnets[0])
    only_test = write(module, tmp_path / "only-test", val_accuracy=None)
    neither = write(module, tmp_path / "neither", val_accuracy=None, test_accuracy=None)
    runtime = Runtime([*bundles, only_test])
    assert runtime.accuracy_of == "test"
    runtime = Runtime([*bundles, neither])
    assert runtime.current == runtime.subnets[-1]  # the slowest
    with pytest.raises(UsageError, match="neither: has no recorded validation accuracy"):
        runtime.set_budget(latency_ms=1)


def test_raw_pixels_are_normalised_as_the_bundle_says(runtime):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    normalised = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.3) / 0.4
    assert torch.allclose(runtime.predict(pixels).logits, runtime.predict(normalised).logits, atol=1e-5)
    assert torch.equal(runtime.predict(pixels[0]).logits, runtime.predict(pixels[:1]).logits)


def test_images_of_another_type_or_shape_are_refused(runtime):
    for images, message in (
        (torch.zeros(1, 3, 8, 8), "have 3 channels, the network takes 1"),
        (torch.zeros(1, 8, 8), r"must be float32 \(B, C, H, W\) or uint8"),
        (torch.zeros(0, 1, 8, 8), r"not float32 \(0, 1, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.bfloat16), "not bfloat16"),
        (np.zeros((1, 1, 8, 8)), "not float64"),
        (np.zeros((1, 8, 8, 3), dtype=np.uint8), "has 3 channels"),
        (np.zeros((8, 8), dtype=np.uint8), r"not \(8, 8\)"),
        (np.zeros((1, 1, 8, 8), dtype=np.uint8), "1 or 3 channels"),
    ):
        with pytest.raises(UsageError, match=message):
            runtime.predict(images)


def test_a_switch_does_nothing_with_tensors(runtime):
    image = torch.randn(1, 1, 8, 8)
    with Operations() as operations:
        for name in runtime.subnets:
            runtime.switch(name)
        runtime.set_budget(latency_ms=1)
        assert operations.count == 0
        runtime.predict(image)
        assert operations.count > 0


def test_a_prediction_ends_on_the_subnet_that_it_began_with(runtime, bundles, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    network = runtime._served["s0"].network

    def slow(x, forward=network.forward):
        begun.set()
        assert go_on.wait(30)
        return forward(x)

    monkeypatch.setattr(network, "forward", slow)
    image, results = torch.randn(1, 1, 8, 8), []
    runtime.switch("s0")
    thread = threading.Thread(target=lambda: results.append(runtime.predict(image)))
    thread.start()
    assert begun.wait(30)
    runtime.switch("s4")
    assert runtime.predict(image).subnet == "s4"
    assert runtime.stats()["in_flight"] == 1
    go_on.set()
    thread.join()
    with torch.inference_mode():
        expected = bundles[0].module()(image)
    assert results[0].subnet == "s0"
    assert torch.equal(results[0].logits, expected)
    stats = runtime.stats()
    assert stats["in_flight"] == 0
    assert {name: count for name, count in stats["predictions"].items() if count} == {"s0": 1, "s4": 1}


def _wrong_answers(runtime, bundles, *, switches):
    """Switches at random under 8 clients; counts answers that are not those of the subnet that gave them."""
    images = torch.randn(4, 1, 1, 8, 8)
    with torch.inference_mode():
        expected = {b.folder.name: [b.module()(image) for image in images] for b in bundles}
    done, wrong, answers = threading.Event(), [], []

    def client(seed):
        rng = np.random.default_rng(seed)
        while not done.is_set():
            index = int(rng.integers(len(images)))
            prediction = runtime.predict(images[index])
            answers.append(prediction.subnet)
            if not torch.equal(prediction.logits, expected[prediction.subnet][index]):
                wrong.append(prediction)

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in clients:
        thread.start()
    rng = np.random.default_rng(99)
    for number in range(switches):
        before = len(answers)
        runtime.switch(runtime.subnets[int(rng.integers(len(runtime.subnets)))])
        while number % 10 == 0 and len(answers) == before and all(thread.is_alive() for thread in clients):
            done.wait(0.0005)
    done.set()
    for thread in clients:
        thread.join()
    return len(wrong), answers


def test_no_answer_is_wrong_while_subnets_change(runtime, bundles):
    wrong, answers = _wrong_answers(runtime, bundles, switches=100)
    assert wrong == 0
    assert len(set(answers)) > 1
    assert sum(runtime.stats()["predictions"].values()) == len(answers)


@pytest.mark.slow
def test_no_answer_is_wrong_in_a_thousand_switches(runtime, bundles):
    wrong, answers = _wrong_answers(runtime, bundles, switches=1000)
    assert wrong == 0
    assert set(answers) == set(runtime.subnets)
