"""Commands about hardware: the roofline picture, and calibration by Vivado reports."""

import itertools
import json
import shutil

import pytest
import yaml
from matplotlib import image

from hwmodel import simulate as simulation
from hwmodel.cost import FpgaCostModel
from hwmodel.device import device_names, load_device
from hwmodel.explore import best_accelerator
from hwmodel.roofline import roofline
from quasar.figures import roofline_figure
from supernet.lowering import lower

FLAGS = ("--array", "16x32", "--backend", "dual")


@pytest.fixture
def subnet(here, space):
    path = here / "subnet.yaml"
    path.write_text(yaml.safe_dump(space.largest().to_dict()))
    return path


@pytest.fixture
def reports(here, vivado_reports):
    def write(name="design", **counts):
        return [str(path) for path in vivado_reports(here, name, **counts)]

    return write


def test_devices_name_their_memory(cli):
    result = cli("hw", "devices", "--json")
    devices = json.loads(result.out)
    assert set(devices) >= {"zcu102", "zcu104", "kv260", "ultra96v2", "u50"} <= set(device_names())
    assert devices["u50"]["memory"] == "HBM2"
    assert devices["zcu102"]["gb_per_s"] == pytest.approx(14.4)
    assert "LPDDR4-1066" in cli("hw", "devices").out


class TestPlot:
    def test_a_picture_is_written(self, cli, subnet, here):
        result = cli("hw", "estimate", subnet, "--plot", "roof.png", "--json")
        assert result.code == 0, result
        assert json.loads(result.out)["plot"] == "roof.png"
        pixels = image.imread(here / "roof.png")
        assert pixels.shape[0] > 600
        assert pixels.shape[1] > 1200
        assert len({tuple(pixel) for pixel in pixels[::4, ::4].reshape(-1, pixels.shape[2]).round(2)}) > 20

    def test_svg_names_the_layers_and_what_binds_them(self, cli, subnet, here):
        result = cli("hw", "estimate", subnet, "--device", "ultra96v2", "--activations", "ddr", "--plot", "roof.svg")
        assert result.code == 0, result
        assert "roofline: roof.svg" in result.out
        text = (here / "roof.svg").read_text()
        for word in ("qkv", "fc1", "subnet.yaml on ultra96v2", "waits for", "activations", "LPDDR4-1066"):
            assert word in text

    @pytest.mark.parametrize("name", ["roof.pdf", "roof", "png"])
    def test_other_formats_are_refused(self, cli, subnet, here, name):
        result = cli("hw", "estimate", subnet, "--plot", name)
        assert (result.code, result.out) == (2, "")
        assert result.error.strip() == f"error: --plot must end in .png or .svg, not '{name}'"
        assert not (here / name).exists()

    def test_the_table_says_what_binds(self, cli, subnet):
        out = cli("hw", "estimate", subnet).out
        assert "bound by" in out
        assert "vector" in out

    def test_marks_are_merged_and_labels_kept_apart(self, space, zcu102):
        workload = lower(space.largest())
        accelerator = best_accelerator([workload], zcu102)
        cost = FpgaCostModel(zcu102, accelerator).estimate(workload)
        chart = roofline(workload, cost, accelerator, zcu102)
        figure = roofline_figure(chart, title="a title")
        names = [text for text in figure.axes[-1].texts if "%" in text.get_text()]
        assert len(names) == len({point.kind for point in chart.points})
        places = sorted(text.get_position()[1] for text in names)
        assert all(upper - lower > 0.03 for lower, upper in itertools.pairwise(places))
        # equal blocks of the network are one mark
        assert len(figure.axes[0].collections) - 1 < len(chart.points)


@pytest.fixture
def zcu102():
    return load_device("zcu102")


class TestCalibrate:
    def test_one_design(self, cli, reports, subnet, here):
        result = cli("hw", "calibrate", *reports(), *FLAGS, "--out", "mine.yaml")
        assert result.code == 0, result
        for words in ("assumed: weight_stream_bits 64", "16x32 dual", "error unknown from one design", "210.52 MHz"):
            assert words in result.out
        estimate = cli("hw", "estimate", subnet, "--device", "mine.yaml")
        assert estimate.code == 0, estimate
        assert "calibrated, one design" in estimate.out
        assert "at 210.52 MHz" in estimate.out
        assert cli("hw", "explore", subnet, "--device", "mine.yaml").code == 0

    def test_several_designs_from_a_list(self, cli, reports, here):
        entries = []
        for rows, lut in ((8, 30000), (16, 50000), (32, 95000)):
            paths = reports(f"d{rows}", lut=lut, slack=f"{-rows / 100:.3f}")
            entries.append({"reports": [p.split("/")[-1] for p in paths], "array": f"{rows}x32", "backend": "dual"})
        (here / "designs.yaml").write_text(yaml.safe_dump(entries))
        result = cli("hw", "calibrate", "--designs", "designs.yaml", "--out", "mine.yaml", "--json")
        assert result.code == 0, result
        document = json.loads(result.out)
        assert len(document["lut"]["before_percent"]) == 3
        assert document["lut"]["fit"]["error_percent"] > 0
        assert document["clock_mhz"] == pytest.approx(1000 / 5.32, abs=0.01)
        assert load_device(here / "mine.yaml").calibration.lut.error_percent > 0
        assert "±" in cli("hw", "calibrate", "--designs", "designs.yaml", "--out", "b.yaml").out

    def test_the_accelerator_of_an_estimate(self, cli, reports, subnet, here):
        (here / "cost.json").write_text(cli("hw", "estimate", subnet, "--json").out)
        result = cli("hw", "calibrate", *reports(), "--accelerator", "cost.json", "--out", "mine.yaml")
        assert result.code == 0, result
        accelerator = json.loads((here / "cost.json").read_text())["accelerator"]
        written = yaml.safe_load((here / "mine.yaml").read_text())["calibration"]["designs"][0]
        assert written["accelerator"] == accelerator

    def test_what_does_not_match_is_noted(self, cli, reports, here):
        paths = reports(dsp=900)
        text = (here / "design_utilization.rpt").read_text()
        (here / "design_utilization.rpt").write_text(text.replace("Routed", "Synthesized"))
        out = cli("hw", "calibrate", *paths, *FLAGS, "--out", "mine.yaml").out
        assert "note: 16x32 dual: 900 DSPs reported, 582 by the model" in out
        assert "design state Synthesized, not Routed" in out
        assert "all designs are dual: for the other backend" in out

    @pytest.mark.parametrize(
        ("arguments", "code", "problem"),
        [
            (["--out", "mine.yaml"], 2, "give the Vivado reports of a design, or --designs"),
            (["{util}", "--out", "mine.yaml"], 2, "give --array and --backend of the design, or --accelerator"),
            (["{util}", "--array", "16", "--backend", "dual", "--out", "mine.yaml"], 2, "must look like 32x32"),
            (["{util}", "--array", "8x8", "--backend", "dul", "--out", "mine.yaml"], 2, "did you mean 'dual'"),
            (["{util}", *FLAGS, "--out", "mine.txt"], 2, "must end in .yaml or .yml"),
            (["{util}", *FLAGS, "--out", "there.yaml"], 2, "exists; give another --out, or --overwrite"),
            (["{util}", *FLAGS, "--device", "u50", "--out", "mine.yaml"], 2, "give its --device"),
            (["{util}", *FLAGS, "--parts", "aray", "--out", "mine.yaml"], 2, "did you mean 'array'"),
            (["{util}", *FLAGS, "--accelerator", "cost.json", "--out", "mine.yaml"], 2, "leave out --array"),
            (["{util}", "--accelerator", "nowhere.json", "--out", "mine.yaml"], 2, "cannot be read"),
            (["{util}", "--accelerator", "there.yaml", "--out", "mine.yaml"], 3, "there.yaml: not JSON"),
            (["{util}", "--accelerator", "empty.json", "--out", "mine.yaml"], 3, "has no key 'accelerator'"),
            (["{util}", "--designs", "there.yaml", "--out", "mine.yaml"], 2, "--designs lists reports"),
            (["--designs", "there.yaml", "--out", "mine.yaml"], 3, "there.yaml: expected a list of designs"),
            (["nowhere.rpt", *FLAGS, "--out", "mine.yaml"], 2, "report 'nowhere.rpt' cannot be read"),
            (["there.yaml", *FLAGS, "--out", "mine.yaml"], 3, "there.yaml: neither a utilization nor a timing report"),
        ],
    )
    def test_mistakes(self, cli, reports, here, arguments, code, problem):
        util, _ = reports()
        (here / "there.yaml").write_text("name: x\n")
        (here / "empty.json").write_text("{}")
        before = sorted(path.name for path in here.iterdir())
        result = cli("hw", "calibrate", *(argument.format(util=util) for argument in arguments))
        assert (result.code, result.out) == (code, ""), result
        assert problem in result.error
        assert len(result.error.strip().splitlines()) == 1
        assert sorted(path.name for path in here.iterdir()) == before
        assert (here / "there.yaml").read_text() == "name: x\n"


class TestSimulate:
    needs_verilator = pytest.mark.skipif(shutil.which("verilator") is None, reason="verilator is not installed")

    @needs_verilator
    def test_one_product_agrees_with_the_model(self, cli):
        one = ("hw", "simulate", "--gemm", "9x10x11", "--rows8", "4", "--array", "4x4", "--json")
        result = cli(*one)
        assert result.code == 0, result
        product = json.loads(result.out)["layers"]["gemm"]
        assert product["predicted_cycles"] == product["simulated_cycles"] > 9 * 3
        assert (product["outputs"], product["mismatching_outputs"]) == (99, 0)
        stalled = cli(
            "hw", "simulate", "--gemm", "9x10x11", "--rows8", "4", "--array", "4x4", "--stall", "0.3", "--json"
        )
        product = json.loads(stalled.out)["layers"]["gemm"]
        assert product["simulated_cycles"] > product["predicted_cycles"]
        assert product["mismatching_outputs"] == 0

    @pytest.mark.slow
    @needs_verilator
    def test_every_operation_of_a_subnet_agrees(self, cli, subnet, space):
        result = cli("hw", "simulate", subnet, "--array", "4x4", "--lanes", "4", "--json")
        assert result.code == 0, result
        document = json.loads(result.out)
        workload = lower(space.largest())
        shapes = {(g.tokens, g.inputs, g.rows_high, g.rows_low) for g in workload.gemms}
        shapes |= {(v.kind, v.tokens, v.width) for v in workload.vectors}
        assert len(document["layers"]) == len(shapes)
        assert document["predicted_cycles"] == document["simulated_cycles"] > 0
        assert {"patch_embed", "blocks.0.softmax", "blocks.0.norm1", "pos_embed"} <= document["layers"].keys()

    @needs_verilator
    def test_a_difference_fails_but_is_printed(self, cli, monkeypatch):
        monkeypatch.setattr(simulation, "predicted_cycles", lambda config, gemm: 1)
        result = cli("hw", "simulate", "--gemm", "3x4x5", "--array", "4x4", "--json")
        assert result.code == 1
        assert json.loads(result.out)["layers"]["gemm"]["predicted_cycles"] == 1
        assert "cycles of ['gemm']" in result.error

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((), "give one of a network, --gemm and --bundle"),
            (("--gemm", "3x4"), "--gemm must look like 17x64x96"),
            (("--gemm", "0x3x4"), "a product needs tokens, inputs and rows"),
            (("--gemm", "3x4x5", "--rows8", "9"), "--rows8 must be from 0 to the 5 rows"),
            (("--gemm", "3x4x5", "--backend", "dul"), "unknown backend 'dul': did you mean 'dual'"),
            (("--gemm", "3x4x5", "--stall", "2"), "stall must be a probability"),
            (("--gemm", "3x4x5", "--seed", "-1"), "--seed must not be negative"),
            (("--gemm", "99999999x4x5"), "--gemm has sizes above 65535"),
            (("--gemm", "3x4x5", "--bundle", "here"), "give one of a network, --gemm and --bundle"),
            (("--bundle", "nowhere"), "nowhere: no such bundle"),
            (("--gemm", "3x4x5", "--array", "64x64"), "too large to simulate"),
            (("--gemm", "3x4x5", "--array", "4"), "an array must look like 32x32"),
        ],
    )
    def test_bad_input_gets_one_line(self, cli, arguments, message):
        result = cli("hw", "simulate", *arguments)
        assert (result.code, result.out) == (2, "")
        assert message in result.error
        assert len(result.error.strip().splitlines()) == 1
