import copy
import dataclasses

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import hwmodel.measured
from hwmodel.device import load_device, load_hardware
from hwmodel.errors import DamagedInputError, UsageError
from hwmodel.measured import OPERATORS, CheckedNetwork, Host, InNetwork, MeasuredHost, OperatorGrid
from hwmodel.measured_cost import MeasuredCostModel
from hwmodel.workload import Population, VectorOp

AXES = {
    "tokens": (1, 10),
    "inputs": (1, 100),
    "rows": (1, 400),
    "heads": (1, 4),
    "head_dim": (1, 64),
    "width": (1, 400),
}
LAYERS = {
    "patch_embed": {"patch_embed": 1, "call": 1},
    "qkv": {"linear_up": 3},
    "scores": {"attention": 1},
    "mix": {},
    "softmax": {},
    "fc1": {"linear_up": 1, "gelu": 1},
    "layernorm": {"layernorm": 1},
}
#: microseconds of each operator, from its sizes
TIMES = {
    "call": lambda: 5.0,
    "patch_embed": lambda f, k, m: 1.0,
    "linear_up": lambda f, k, m: 2 + f * k * m / 1000,
    "linear_down": lambda f, k, m: 1 + f * k * m / 2000,
    "attention": lambda f, heads, size: 3 + f * heads * size / 10,
    "layernorm": lambda f, width: f * width / 10,
    "gelu": lambda f, width: 1 + f * width / 100,
    "residual": lambda f, width: 0.5,
}


def grid(operator):
    axes = tuple(np.array(AXES[size], dtype=np.float64) for size in OPERATORS[operator])
    values = np.meshgrid(*axes, indexing="ij")
    time_us = np.vectorize(TIMES[operator], otypes=[np.float64])(*values) if axes else np.array(TIMES[operator]())
    return OperatorGrid(axes=axes, time_us=time_us)


@pytest.fixture
def host():
    return MeasuredHost(
        name="host",
        title="a host",
        form="a form",
        clock="a clock",
        host=Host(cpu="a CPU", cores=2, threads=1, runtime="torch", versions={"torch": "2.0"}),
        power_w=None,
        noise=0.01,
        layers=LAYERS,
        operators={operator: grid(operator) for operator in OPERATORS},
        in_network=InNetwork(layer_us=0.25, weight_ns=0.5),
        check=(
            CheckedNetwork(digest="a", measured_ms=2.0, predicted_ms=2.2),
            CheckedNetwork(digest="b", measured_ms=4.0, predicted_ms=3.8),
        ),
    )


@given(data=st.data())
def test_sums_of_products_of_sizes_are_interpolated_exactly(data):
    axes = [
        np.array(sorted(data.draw(st.sets(st.integers(1, 1000), min_size=1, max_size=4))), dtype=np.float64)
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    coefficients = rng.uniform(0, 5, 2 ** len(axes))

    def time_us(*sizes):
        terms = [np.ones_like(np.asarray(sizes[0], dtype=np.float64))]
        for size in sizes:
            terms += [term * size for term in terms]
        return sum(coefficient * term for coefficient, term in zip(coefficients, terms, strict=True))

    table = OperatorGrid(axes=tuple(axes), time_us=time_us(*np.meshgrid(*axes, indexing="ij")))
    # beyond the ends of an axis too, unless it has one value only
    sizes = np.array([rng.uniform(0.5, 2000, 20) if len(axis) > 1 else np.full(20, axis[0]) for axis in axes])
    assert table.times(sizes) == pytest.approx(time_us(*sizes), rel=1e-6)
    outside = [(values < axis[0]) | (values > axis[-1]) for axis, values in zip(axes, sizes, strict=True)]
    assert (table.outside(sizes) == np.array(outside)).all()


def test_no_operator_takes_less_than_no_time():
    falling = OperatorGrid(axes=(np.array([1.0, 2.0]),), time_us=np.array([1.0, 0.5]))
    assert falling.times(np.array([[1.5, 2, 9]])).tolist() == [0.75, 0.5, 0.0]


def test_layers_by_hand(host, gemm, workload):
    network = workload(
        gemm(9, 12, 20, name="patch_embed"),
        gemm(10, 20, 30, 60, name="qkv"),
        gemm(10, 16, 10, name="scores", count=3, stored=False),
        gemm(10, 10, 16, name="mix", count=3, stored=False),
        gemm(10, 20, 80, name="fc1"),
        vectors=[
            VectorOp(name="norm", kind="layernorm", tokens=10, width=20, count=2),
            VectorOp(name="softmax", kind="softmax", tokens=10, width=10, count=3),
        ],
    )
    estimate = MeasuredCostModel(host).estimate(network)
    time_us = {layer.name: layer.latency_us for layer in estimate.layers}
    assert time_us == pytest.approx(
        {
            "patch_embed": 1 + 5 + 0.25 + 0.12,  # 240 weights of half a nanosecond
            "qkv": 3 * (2 + 10 * 20 * 30 / 1000) + 0.25 + 0.9,
            "scores": 3 + 10 * 3 * 16 / 10 + 0.25,
            "mix": 0,
            "fc1": 2 + 10 * 20 * 80 / 1000 + 1 + 10 * 80 / 100 + 0.25 + 0.8,
            "norm": 2 * 20 + 0.25,
            "softmax": 0,
        }
    )
    assert estimate.latency_ms == pytest.approx(sum(time_us.values()) / 1000)
    assert estimate.violations == ()
    assert estimate.energy_mj is None
    assert "energy_mj" not in estimate.to_dict()
    assert {layer.name: layer.bound for layer in estimate.layers}["softmax"] == "in another layer"


def test_bits_of_rows_do_not_matter(host, gemm, workload):
    model = MeasuredCostModel(host)
    eight, four = (model.estimate(workload(gemm(10, 20, *rows, name="fc1"))) for rows in ((80, 0), (0, 80)))
    assert eight.latency_ms == four.latency_ms


def test_energy_where_the_power_is_known(host, gemm, workload):
    network = workload(gemm(10, 20, 80, name="fc1"))
    without, known = (MeasuredCostModel(dataclasses.replace(host, power_w=w)) for w in (None, 7.0))
    assert np.isnan(without.estimate_many(Population.of(network)).energy_mj[0])
    assert known.estimate(network).energy_mj == 7 * known.estimate(network).latency_ms


class TestOutside:
    def test_a_network_beyond_what_was_measured_has_a_violation(self, host, gemm, workload):
        model = MeasuredCostModel(host)
        network = workload(gemm(11, 20, 80, name="fc1"), gemm(10, 20, 500, name="fc1"))
        assert model.estimate(network).violations == (
            "tokens 11 of fc1 lie outside 1 to 10, where linear_up was measured on host",
            "rows 500 of fc1 lie outside 1 to 400, where linear_up was measured on host",
            "tokens 11 of fc1 lie outside 1 to 10, where gelu was measured on host",
            "width 500 of fc1 lie outside 1 to 400, where gelu was measured on host",
        )
        assert not model.estimate_many(Population.of(network)).fits[0]
        assert model.estimate_many(Population.of(network)).latency_ms[0] > 0

    def test_an_absent_layer_does_not_spoil_the_fit(self, host, gemm, workload):
        population = Population.of(workload(gemm(10, 20, 80, name="fc1"), gemm(999, 20, 80, name="fc1")))
        gemms = dataclasses.replace(population.gemms, count=np.array([[1, 0]]))
        batch = MeasuredCostModel(host).estimate_many(dataclasses.replace(population, gemms=gemms))
        assert batch.fits[0]

    def test_a_kind_of_layer_that_was_not_measured_is_named(self, host, gemm, workload):
        with pytest.raises(UsageError, match="layers of kind 'conv' were not measured on host; known: patch_embed"):
            MeasuredCostModel(host).estimate(workload(gemm(1, 2, 3, name="conv")))

    def test_an_operator_that_a_layer_has_no_sizes_for_is_named(self, host, workload):
        wrong = MeasuredCostModel(dataclasses.replace(host, layers={"layernorm": {"linear_up": 1}}))
        with pytest.raises(UsageError, match="'layernorm' have no sizes for the operator 'linear_up'"):
            wrong.estimate(workload(vectors=[VectorOp(name="n", kind="layernorm", tokens=1, width=2)]))


class TestFile:
    def test_what_is_written_is_read(self, host, tmp_path):
        path = tmp_path / "host.yaml"
        host.save(path)
        again = load_hardware(path)
        assert isinstance(again, MeasuredHost)
        for name, own in host.operators.items():
            assert again.operators[name].time_us == pytest.approx(own.time_us, abs=1e-3)
            assert [axis.tolist() for axis in again.operators[name].axes] == [axis.tolist() for axis in own.axes]
        kept = [field.name for field in dataclasses.fields(MeasuredHost) if field.name != "operators"]
        assert all(getattr(again, key) == getattr(host, key) for key in kept)
        assert again.median_error == pytest.approx(0.075)

    def test_an_overlay_adds_the_power(self, host, tmp_path):
        host.save(tmp_path / "host.yaml")
        (tmp_path / "mine.yaml").write_text("base: host.yaml\nname: mine\npower_w: 12.5\n")
        assert load_hardware(tmp_path / "mine.yaml").power_w == 12.5

    def test_it_is_no_fpga_board(self, host, tmp_path):
        host.save(tmp_path / "host.yaml")
        with pytest.raises(UsageError, match=r"host is no FPGA board \(a host\)"):
            load_device(tmp_path / "host.yaml")

    @pytest.mark.parametrize(
        ("place", "value", "problem"),
        [
            (("title",), None, "'title' must be a text"),
            (("noise",), -1, "'noise' must be a number of at least 0"),
            (("power_w",), "much", "'power_w' must be a number of at least 0"),
            (("host",), [], "'host' must be a mapping"),
            (("host", "cpu"), 7, "'host.cpu' must be a text"),
            (("operators", "gelu"), None, "'operators.gelu' must be a mapping"),
            (("operators", "gelu", "axes", "width"), [3, 2], "'operators.gelu.axes.width' must be a list of ascending"),
            (("operators", "gelu", "axes", "width"), 3, "'operators.gelu.axes.width' must be a list of ascending"),
            (
                ("operators", "gelu", "time_us"),
                [[1, 2], [3, -4]],
                "'operators.gelu.time_us' must be numbers of at least",
            ),
            (("operators", "gelu", "time_us"), [[1, 2], [3]], "'operators.gelu.time_us' must be numbers of at least 0"),
            (("operators", "gelu", "time_us"), [[1, 2]], r"'operators.gelu.time_us' must be times of shape \(2, 2\)"),
            (("layers", "qkv"), {"linear": 1}, "'layers.qkv' must be a number for each of some operators"),
            (("in_network",), None, "'in_network' must be a mapping"),
            (("in_network", "layer_us"), "x", "'in_network.layer_us' must be a number"),
            (("check",), [{"digest": "a"}], "'check' must be a list of networks"),
        ],
    )
    def test_damage_is_named(self, host, tmp_path, place, value, problem):
        path = tmp_path / "host.yaml"
        host.save(path)
        document = yaml.safe_load(path.read_text())
        inner = document
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = copy.deepcopy(value)
        path.write_text(yaml.safe_dump(document))
        with pytest.raises(DamagedInputError, match=rf"host\.yaml: {problem}.*measure again with 'quasar hw measure'"):
            load_hardware(path)


class TestHost:
    @pytest.fixture(autouse=True)
    def this_host(self, monkeypatch):
        monkeypatch.setattr(hwmodel.measured, "_cpu_model", lambda: "a CPU")
        monkeypatch.setattr(hwmodel.measured, "_version", lambda package: "2.0")
        monkeypatch.setattr("os.cpu_count", lambda: 2)

    def test_the_same_host_has_no_difference(self, host):
        assert host.host.difference() is None
        assert Host.here(runtime="torch", threads=1, packages=("torch",)) == host.host

    @pytest.mark.parametrize(
        ("changes", "difference"),
        [
            ({"cpu": "another"}, "on another with 2 cores, and this is a CPU with 2"),
            ({"cores": 8}, "on a CPU with 8 cores, and this is a CPU with 2"),
            ({"versions": {"torch": "1.9"}}, "with torch 1.9, and here is 2.0"),
            ({"threads": 7}, None),  # that of the runtime, wherever it is
        ],
    )
    def test_another_host_is_told(self, host, changes, difference):
        assert dataclasses.replace(host.host, **changes).difference() == difference


def test_this_machine_is_known():
    here = Host.here(runtime="torch", threads=1, packages=("numpy", "no-such-package"))
    assert here.cpu
    assert here.cores >= 1
    assert here.versions == {"numpy": np.__version__, "no-such-package": "none"}
