import dataclasses

import numpy as np
import pytest
import yaml

from hwmodel.accelerator import AcceleratorColumns
from hwmodel.calibrate import (
    Design,
    calibrate,
    design_config,
    design_of,
    part_names,
    read_designs,
    write_overlay,
)
from hwmodel.cost import FpgaCostModel
from hwmodel.device import DEVICE_FOLDER, load_device
from hwmodel.errors import DamagedInputError, UsageError
from hwmodel.explore import best_accelerator
from hwmodel.resources import demands, resources_of
from hwmodel.vivado import Timing, Utilization, read_report


@pytest.fixture
def reports(tmp_path, vivado_reports):
    def write(name="design", **counts):
        return vivado_reports(tmp_path, name, **counts)

    return write


class TestReports:
    def test_counts_of_a_utilization_report(self, reports):
        path, _ = reports()
        assert read_report(path) == Utilization(
            path=path, part="xczu9eg-ffvb1156-2-e", state="Routed", lut=50000, ff=90000, bram18=121, dsp=560
        )

    def test_clock_of_a_timing_report(self, reports):
        _, path = reports()
        timing = read_report(path)
        # clk_debug has no timed paths, only pulse widths
        assert timing == Timing(path=path, part="xczu9eg-ffvb1156", clock="clk_pl_0", period_ns=5.0, slack_ns=0.25)
        assert timing.clock_mhz == pytest.approx(1000 / 4.75)

    def test_negative_slack_slows_the_clock(self, reports):
        _, path = reports(slack="-1.667", period="5.000")
        assert read_report(path).clock_mhz == pytest.approx(150, abs=0.01)

    def test_old_releases_and_synthesis_mark_rows_differently(self, reports):
        path, _ = reports()
        text = path.read_text().replace("| CLB LUTs  ", "| CLB LUTs* ").replace(" 0 |          0 |", " 0 |")
        path.write_text(text.replace("Routed", "Synthesized"))
        report = read_report(path)
        assert (report.lut, report.state) == (50000, "Synthesized")

    def test_of_several_clocks_one_is_named(self, reports):
        _, path = reports()
        row = "  clk_debug           9.500        0.000                      0                  100        0.010"
        lines = path.read_text().splitlines()
        path.write_text(
            "\n".join(row if line.startswith("  clk_debug   ") and "18.431" in line else line for line in lines)
        )
        with pytest.raises(
            UsageError, match="several clocks: clk_pl_0, clk_debug; name that of the engine with --clock"
        ):
            read_report(path)
        assert read_report(path, clock="clk_debug").slack_ns == 9.5
        with pytest.raises(UsageError, match="did you mean 'clk_pl_0'"):
            read_report(path, clock="clk_pl0")

    @pytest.mark.parametrize(
        ("which", "old", "new", "problem"),
        [
            (0, "CLB LUTs", "Slice LUTs", "no row 'CLB LUTs' in its tables"),
            (0, "CLB Registers", "x", "no row 'CLB Registers'"),
            (0, "Block RAM Tile", "x", "no row 'Block RAM Tile'"),
            (0, "| DSPs  ", "| x ", "no row 'DSPs'"),
            (0, "| Device ", "| Board ", r"no line '\| Device :' in its head"),
            (0, "Site Type", "Resource", "neither a utilization nor a timing report of Vivado"),
            (1, "Design Timing Summary", "x", "neither a utilization nor a timing report"),
            (1, "{", "[", "no clock in its 'Clock Summary'"),
            (1, "Intra Clock Table", "x", "no 'Intra Clock Table'"),
            (1, "  0.250  ", "     NA  ", "no slack in its 'Intra Clock Table'"),
            (1, "  0.250  ", "  5.250  ", "has a slack of 5.25 ns in 5 ns"),
        ],
    )
    def test_another_format_is_named_with_what_is_missing(self, reports, which, old, new, problem):
        path = reports()[which]
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
        with pytest.raises(DamagedInputError, match=problem) as caught:
            read_report(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_missing_report_is_a_usage_error(self, tmp_path):
        with pytest.raises(UsageError, match="cannot be read: No such file"):
            read_report(tmp_path / "nowhere.rpt")

    def test_bytes_that_are_no_text_are_another_format(self, tmp_path):
        path = tmp_path / "picture.rpt"
        path.write_bytes(bytes(range(256)))
        with pytest.raises(DamagedInputError, match="neither"):
            read_report(path)


class TestDesign:
    def test_reports_come_in_any_order(self, reports, zcu102):
        config = design_config(array=(16, 32))
        one, two = (design_of(order, config, zcu102) for order in (reports(), reports()[::-1]))
        assert one == two
        assert one.parts == part_names()

    @pytest.mark.parametrize("keep", [slice(1, 2), slice(0, 0)])
    def test_a_design_needs_its_utilization(self, reports, zcu102, keep):
        with pytest.raises(UsageError, match="needs one utilization report and at most one timing report, not 0"):
            design_of(reports()[keep], design_config(array=(8, 8)), zcu102)

    def test_two_designs_are_not_one(self, reports, zcu102):
        with pytest.raises(UsageError, match=r"not 2 and 0.*--designs"):
            design_of([reports("a")[0], reports("b")[0]], design_config(array=(8, 8)), zcu102)

    def test_reports_of_another_part_are_refused(self, reports):
        with pytest.raises(UsageError, match="is of xczu9eg-ffvb1156-2-e, but kv260 has xck26"):
            design_of(reports(), design_config(array=(8, 8)), load_device("kv260"))

    def test_an_unknown_part_suggests_the_nearest(self, reports, zcu102):
        with pytest.raises(UsageError, match="unknown part 'aray': did you mean 'array'"):
            design_of(reports(), design_config(array=(8, 8)), zcu102, parts=["aray"])


def exact_design(reports, device, array, *, factors, noise=0.0, name=None, **keys):
    """A design whose reports count what the model estimates, each part times its factor."""
    config = design_config(array=array, **keys)
    plain = Design(accelerator=config, parts=part_names(), utilization=None, timing=None)
    counts = {
        resource: round(
            (1 + noise) * sum(factors.get(part, 1) * count for part, count in plain.estimates(resource).items())
        )
        for resource in ("lut", "ff")
    }
    return design_of(reports(name or f"{array[0]}x{array[1]}", **counts), config, device)


class TestFit:
    def test_one_design_gives_a_factor_without_an_error_bar(self, reports, zcu102):
        config = design_config(array=(16, 32))
        design = design_of(reports(lut=50000), config, zcu102)
        fitted = calibrate([design], zcu102).lut
        estimate = resources_of(config).lut
        assert [*{factor.value for factor in fitted.fit.factors.values()}] == [pytest.approx(50000 / estimate)]
        assert {factor.error for factor in fitted.fit.factors.values()} == {None}
        assert fitted.fit.error_percent is None
        assert fitted.before_percent == (pytest.approx(100 * (estimate / 50000 - 1)),)
        assert fitted.after_percent == (pytest.approx(0),)

    def test_two_designs_by_hand(self, reports, zcu102):
        # estimate / report is 0.8 and 1.25: f = (0.8 + 1.25) / (0.8^2 + 1.25^2), one spare design
        configs = [design_config(array=(8, 8)), design_config(array=(32, 32))]
        counts = [round(resources_of(c).lut / share) for c, share in zip(configs, (0.8, 1.25), strict=True)]
        designs = [design_of(reports(f"d{i}", lut=counts[i]), configs[i], zcu102) for i in range(2)]
        fit = calibrate(designs, zcu102).lut.fit
        squares = 0.8**2 + 1.25**2
        value = 2.05 / squares
        left = (1 - 0.8 * value) ** 2 + (1 - 1.25 * value) ** 2
        factor = fit.factors["array"]
        assert factor.value == pytest.approx(value, rel=1e-4)
        assert factor.error == pytest.approx((left / squares) ** 0.5, rel=1e-3)
        assert fit.error_percent == pytest.approx(100 * left**0.5, rel=1e-3)

    def test_known_factors_by_part_are_recovered(self, reports, zcu102):
        # what is constant in all designs is one factor
        factors = dict.fromkeys(part_names(), 1.1) | {"array": 1.4, "accumulators": 0.6}
        arrays = [(8, 8), (8, 64), (64, 8), (32, 32), (16, 64), (64, 16), (48, 24)]
        result = calibrate([exact_design(reports, zcu102, a, factors=factors) for a in arrays], zcu102)
        for fitted in (result.lut, result.ff):
            assert fitted.method.startswith("3 factors for ")
            assert {"array", "accumulators", "vector unit"} < set(fitted.fit.factors)
            for part, factor in fitted.fit.factors.items():
                assert factor.value == pytest.approx(factors[part], rel=0.02)
                assert abs(factor.value - factors[part]) < 4 * factor.error + 0.01
            assert max(map(abs, fitted.after_percent)) < 0.5
            assert max(map(abs, fitted.before_percent)) > 10

    def test_few_designs_get_one_factor(self, reports, zcu102):
        designs = [exact_design(reports, zcu102, a, factors={"array": 1.4}) for a in [(8, 8), (16, 16), (32, 32)]]
        assert calibrate(designs, zcu102).lut.method == "one factor for all parts"

    def test_a_single_factor_that_explains_all_is_kept(self, reports, zcu102):
        everything = dict.fromkeys(part_names(), 1.5)
        arrays = [(8, 8), (8, 64), (64, 8), (32, 32), (16, 64), (64, 16)]
        fitted = calibrate([exact_design(reports, zcu102, a, factors=everything) for a in arrays], zcu102).ff
        assert fitted.method == "one factor for all parts"
        assert fitted.fit.factors["array"].value == pytest.approx(1.5, rel=1e-3)

    def test_designs_of_one_shape_do_not_determine_parts(self, reports, zcu102):
        noise = np.random.default_rng(0).normal(0, 0.05, 8)
        designs = [
            exact_design(reports, zcu102, (16, 16), factors={}, noise=n, name=f"run{i}") for i, n in enumerate(noise)
        ]
        fitted = calibrate(designs, zcu102).lut
        assert fitted.method == "one factor for all parts"
        assert 1 < fitted.fit.error_percent < 15

    def test_parts_that_a_design_lacks_keep_their_estimate(self, reports, zcu102):
        design = design_of(reports(lut=20000), design_config(array=(8, 8)), zcu102, parts=["array", "accumulators"])
        fit = calibrate([design], zcu102).lut.fit
        assert set(fit.factors) == {"array", "accumulators"}

    def test_the_clock_is_the_lowest(self, reports, zcu102):
        config = design_config(array=(8, 8))
        designs = [
            design_of(reports(f"d{i}", slack=slack), config, zcu102) for i, slack in enumerate(["0.000", "-1.000"])
        ]
        result = calibrate(designs, zcu102)
        assert result.clock_mhz == 166.66
        assert result.clock_error_mhz == pytest.approx(np.std([200, 1000 / 6], ddof=1))

    def test_the_clock_stays_below_the_most_of_the_board(self, reports, zcu102):
        design = design_of(reports(slack="4.000"), design_config(array=(8, 8)), zcu102)
        assert calibrate([design], zcu102).clock_mhz == 333

    def test_without_timing_there_is_no_clock(self, reports, zcu102):
        design = design_of(reports()[:1], design_config(array=(8, 8)), zcu102)
        assert calibrate([design], zcu102).clock_mhz is None

    def test_an_empty_design_is_refused(self, reports, zcu102):
        design = design_of(reports(lut=0), design_config(array=(8, 8)), zcu102)
        with pytest.raises(DamagedInputError, match="counts no LUT"):
            calibrate([design], zcu102)
        with pytest.raises(UsageError, match="at least one design"):
            calibrate([], zcu102)


class TestOverlay:
    @pytest.fixture
    def written(self, tmp_path, reports, zcu102):
        config = design_config(array=(16, 32))
        path = tmp_path / "my-zcu102.yaml"
        result = calibrate([design_of(reports(), config, zcu102)], zcu102)
        write_overlay(path, result, base="zcu102", device=zcu102, overwrite=False)
        return path, config

    def test_the_model_gives_what_was_measured(self, written):
        path, config = written
        device = load_device(path)
        corrected = resources_of(config, device.calibration)
        assert (corrected.lut, corrected.ff) == (pytest.approx(50000, abs=2), pytest.approx(90000, abs=2))
        assert (corrected.dsp, corrected.bram18) == (resources_of(config).dsp, resources_of(config).bram18)
        assert (device.name, device.clock_mhz) == ("my-zcu102", 210.52)
        assert "design_timing.rpt" in device.sources["clock_mhz"]
        assert yaml.safe_load(path.read_text())["calibration"]["designs"][0]["lut"] == 50000

    def test_cost_model_and_exploration_use_it(self, written, deit):
        device = load_device(written[0])
        network = deit(depth=2)
        best = best_accelerator([network], device, array=(16, 32), backend="dual")
        estimate = FpgaCostModel(device, best).estimate(network)
        assert best.clock_mhz == 210.52
        assert estimate.resources == resources_of(best, device.calibration)
        assert estimate.resources.lut < resources_of(best).lut

    def test_a_limit_is_checked_against_the_corrected_count(self, written, config):
        device = load_device(written[0])
        factors = {part: dataclasses.replace(f, value=50.0) for part, f in device.calibration.lut.factors.items()}
        large = dataclasses.replace(device.calibration.lut, factors=factors)
        device = dataclasses.replace(device, calibration=dataclasses.replace(device.calibration, lut=large))
        columns = AcceleratorColumns.one(config(array_rows=32, array_inputs=32))
        assert any(demand.violation for demand in demands(columns, device) if demand.name == "LUT")

    def test_it_is_not_overwritten_unasked(self, written, reports, zcu102):
        path, config = written
        before = path.read_bytes()
        result = calibrate([design_of(reports(), config, zcu102)], zcu102)
        with pytest.raises(UsageError, match="exists; give another --out, or --overwrite"):
            write_overlay(path, result, base="zcu102", device=zcu102, overwrite=False)
        assert path.read_bytes() == before
        write_overlay(path, result, base="zcu102", device=zcu102, overwrite=True)
        with pytest.raises(UsageError, match=r"must end in \.yaml or \.yml"):
            write_overlay(path.with_suffix(".txt"), result, base="zcu102", device=zcu102, overwrite=True)

    def test_a_calibrated_device_is_no_base(self, written, reports):
        path, config = written
        device = load_device(path)
        with pytest.raises(UsageError, match="calibrated already; give its base"):
            calibrate([design_of(reports(), config, device)], device)

    def test_a_base_given_by_path_is_found_from_the_overlay(self, tmp_path, reports, zcu102, monkeypatch):
        (tmp_path / "boards").mkdir()
        source = yaml.safe_load((DEVICE_FOLDER / "zcu102.yaml").read_text())
        (tmp_path / "boards" / "own.yaml").write_text(yaml.safe_dump(source | {"name": "own"}))
        monkeypatch.chdir(tmp_path)
        device = load_device("boards/own.yaml")
        result = calibrate([design_of(reports(), design_config(array=(16, 32)), device)], device)
        own = tmp_path / "boards" / "own.yaml"
        with pytest.raises(UsageError, match="is the device to calibrate"):
            write_overlay(own, result, base="boards/own.yaml", device=device, overwrite=True)
        (tmp_path / "out").mkdir()
        path = tmp_path / "out" / "mine.yaml"
        write_overlay(path, result, base="boards/own.yaml", device=device, overwrite=False)
        monkeypatch.chdir("/")
        assert load_device(path).dsp == zcu102.dsp


class TestList:
    def write(self, folder, entries):
        path = folder / "designs.yaml"
        path.write_text(yaml.safe_dump(entries))
        return path

    def test_designs_are_listed_with_their_configurations(self, tmp_path, reports, zcu102):
        reports("a")
        reports("b", lut=30000)
        path = self.write(
            tmp_path,
            [
                {"reports": ["a_utilization.rpt", "a_timing.rpt"], "array": "16x32", "backend": "dual"},
                {
                    "reports": ["b_utilization.rpt"],
                    "array": "8x8",
                    "backend": "atomic",
                    "vector_lanes": 32,
                    "parts": ["array"],
                },
            ],
        )
        one, two = read_designs(path, zcu102)
        assert one.accelerator == design_config(array=(16, 32))
        assert two.accelerator == design_config(array=(8, 8), backend="atomic", vector_lanes=32)
        assert (two.parts, two.timing, two.utilization.lut) == (("array",), None, 30000)

    @pytest.mark.parametrize(
        ("entries", "problem"),
        [
            ({}, "expected a list of designs"),
            ([], "expected a list of designs"),
            (["a"], "design 1 is no mapping"),
            ([{"reports": [], "array": "8x8"}], "design 1 lacks 'backend'"),
            ([{"reports": "a.rpt", "array": "8x8", "backend": "dual"}], "'reports' must be a list of texts"),
            ([{"reports": [], "array": "8", "backend": "dual"}], "design 1: an array must look like 32x32, not '8'"),
            ([{"reports": [], "array": "8x8", "backend": "dul"}], "design 1: unknown backend 'dul'"),
            ([{"reports": [], "array": "8x8", "backend": "dual", "lanes": 3}], "design 1: unknown accelerator key"),
            ([{"reports": [], "array": "8x8", "backend": "dual", "clock": 3}], "'clock' must be the name of a clock"),
        ],
    )
    def test_a_bad_list_names_the_design(self, tmp_path, zcu102, entries, problem):
        with pytest.raises(DamagedInputError, match=rf"designs\.yaml.*{problem}"):
            read_designs(self.write(tmp_path, entries), zcu102)

    def test_unreadable_lists(self, tmp_path, zcu102):
        with pytest.raises(UsageError, match="cannot be read"):
            read_designs(tmp_path / "nowhere.yaml", zcu102)
        path = tmp_path / "designs.yaml"
        path.write_text("- [")
        with pytest.raises(DamagedInputError, match="not valid YAML"):
            read_designs(path, zcu102)
