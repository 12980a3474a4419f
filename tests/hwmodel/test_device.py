import copy
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml

import hwmodel.device
from hwmodel.device import DEVICE_FOLDER, Factor, device_names, load_device, load_hardware
from hwmodel.errors import DamagedInputError, UsageError
from hwmodel.resources import resources_of

ZCU102 = yaml.safe_load((DEVICE_FOLDER / "zcu102.yaml").read_text())


@pytest.fixture
def board(tmp_path):
    """Writes a board that differs from the ZCU102 by `edit(document)` and gives its path."""

    def write(edit=lambda document: None):
        document = copy.deepcopy(ZCU102)
        edit(document)
        path = tmp_path / "board.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    return write


@pytest.fixture
def plug_ins(monkeypatch):
    """Replaces the entry points of installed packages; values name attributes of this module."""

    def install(**points):
        found = [EntryPoint(name=name, value=value, group="quasar.devices") for name, value in points.items()]
        monkeypatch.setattr("hwmodel.registry.entry_points", lambda group: found)
        hwmodel.device._devices.cache_clear()

    yield install
    hwmodel.device._devices.cache_clear()


PLUGGED_PATH = DEVICE_FOLDER / "zcu102.yaml"


def plugged_callable():
    return PLUGGED_PATH


def broken_callable():
    raise RuntimeError("no licence")


def wrong_callable():
    return "zcu102.yaml"


def test_zcu102_is_known_by_name_and_by_path():
    device = load_device("zcu102")
    assert (device.dsp, device.bram18, device.lut, device.ff, device.uram) == (2520, 1824, 274080, 548160, 0)
    assert device.clock_mhz == 150
    assert device.ddr_gb_per_s * device.ddr_efficiency == pytest.approx(14.4)
    assert device.limits.lut == 0.70
    assert load_device(DEVICE_FOLDER / "zcu102.yaml") == device
    assert load_device(str(DEVICE_FOLDER / "zcu102.yaml")) == device
    assert "zcu102" in device_names()


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UsageError, match="unknown device 'zcu_102': did you mean 'zcu102'"):
        load_device("zcu_102")


def test_missing_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.yml' cannot be read: No such file.*zcu102"):
        load_device(tmp_path / "nowhere.yml")


def test_broken_yaml_names_the_line(tmp_path):
    path = tmp_path / "board.yaml"
    path.write_text("name: board\ntitle: [open\npart: x\n")
    with pytest.raises(DamagedInputError, match=r"board\.yaml: not valid YAML at line 3"):
        load_device(path)


@pytest.mark.parametrize(("content", "problem"), [(b"\xff\xfe\x00", "not UTF-8"), (b"", "expected a mapping")])
def test_a_file_that_is_no_mapping(tmp_path, content, problem):
    path = tmp_path / "board.yaml"
    path.write_bytes(content)
    with pytest.raises(DamagedInputError, match=problem):
        load_device(path)


def _set(key, value):
    def edit(document):
        section, _, name = key.rpartition(".")
        (document[section] if section else document)[name] = value

    return edit


def _figure(value):
    return {"value": value, "source": "here"}


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda d: d.pop("dsp"), r"figure 'dsp' is missing; write 'dsp: \{value"),
        (lambda d: d["limits"].pop("ff"), r"figure 'limits.ff' is missing; write 'ff: "),
        (lambda d: d.pop("energy"), "'energy' must be a mapping"),
        (lambda d: d.pop("part"), "'part' must be a text"),
        (lambda d: d.pop("memory"), "'memory' must be a text"),
        (_set("dsp", 2520), "'dsp' needs exactly a value and a source"),
        (_set("dsp", {"value": 2520, "source": " "}), "'dsp' has no source"),
        (_set("dsp", _figure(-1)), "'dsp' must be above 0, not -1"),
        (_set("uram", _figure(-1)), "'uram' must be at least 0, not -1"),
        (_set("dsp", _figure(0)), "'dsp' must be above 0"),
        (_set("dsp", _figure("many")), "'dsp' must be a whole number, not 'many'"),
        (_set("dsp", _figure(2.5)), "'dsp' must be a whole number"),
        (_set("dsp", _figure(True)), "'dsp' must be a whole number"),
        (_set("clock_mhz", _figure("fast")), "'clock_mhz' must be a number"),
        (_set("clock_mhz", _figure(float("nan"))), "'clock_mhz' must be above 0"),
        (_set("clock_mhz", _figure(400)), "'clock_mhz' 400 exceeds 'max_clock_mhz' 333"),
        (_set("limits.dsp", _figure(80)), "'limits.dsp' is a share, at most 1"),
        (_set("dps", _figure(1)), "unknown key 'dps': did you mean 'dsp'"),
        (_set("limits.lutt", _figure(1)), "unknown key 'limits.lutt': did you mean 'limits.lut'"),
    ],
)
def test_a_bad_figure_is_named_with_its_file(board, edit, problem):
    with pytest.raises(DamagedInputError, match=rf"board\.yaml: .*{problem}"):
        load_device(board(edit))


def test_plug_ins_give_a_path_or_a_callable(plug_ins):
    plug_ins(plain=f"{__name__}:PLUGGED_PATH", called=f"{__name__}:plugged_callable")
    assert load_device("plain") == load_device("called") == load_device("zcu102")
    assert {"called", "plain", "zcu102"} <= set(device_names())


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("no_such_module:x", "plug-in 'acme' .* cannot be loaded"),
        (f"{__name__}:broken_callable", "device 'acme' failed: RuntimeError: no licence"),
        (f"{__name__}:wrong_callable", "device 'acme' must give a Path, not str"),
    ],
)
def test_a_broken_plug_in_is_named(plug_ins, value, problem):
    plug_ins(acme=value)
    with pytest.raises(UsageError, match=problem):
        load_device("acme")


FIT = {"error_percent": 2.5, "factors": {"array": {"value": 1.25, "error": 0.02}}}


@pytest.fixture
def overlay(tmp_path):
    """Writes an overlay of the ZCU102 with these keys and gives its path."""

    def write(**keys):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({"name": "mine", "base": "zcu102"} | keys))
        return path

    return write


def test_an_overlay_holds_what_differs(overlay):
    device = load_device(overlay(clock_mhz=_figure(210.5), limits={"ff": _figure(0.4)}))
    base = load_device("zcu102")
    assert (device.name, device.clock_mhz, device.limits.ff) == ("mine", 210.5, 0.4)
    assert device.limits.lut == base.limits.lut
    assert (device.sources["clock_mhz"], device.sources["dsp"]) == ("here", base.sources["dsp"])
    assert device.calibration is base.calibration is None


def test_a_base_may_be_a_path_beside_the_overlay(overlay, board):
    board(lambda document: document.update(dsp=_figure(100)))
    assert load_device(overlay(base="board.yaml")).dsp == 100


def test_an_overlay_may_carry_a_calibration(overlay):
    calibration = load_device(overlay(calibration={"lut": FIT, "ff": FIT | {"error_percent": None}})).calibration
    assert calibration.lut.factors["array"] == Factor(value=1.25, error=0.02)
    assert (calibration.lut.error_percent, calibration.ff.error_percent) == (2.5, None)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"base": 3}, "'base' must be the name of a device"),
        ({"base": "mine.yaml"}, r"its base 'mine\.yaml' is an overlay itself"),
        ({"dps": _figure(1)}, "unknown key 'dps': did you mean 'dsp'"),
        ({"clock_mhz": _figure(400)}, "'clock_mhz' 400 exceeds"),
        ({"calibration": 1}, "'calibration' must be a mapping"),
        ({"calibration": {"lut": FIT}}, "'calibration.ff' needs 'factors' and 'error_percent'"),
        ({"calibration": {"lut": FIT, "ff": FIT, "lute": FIT}}, "unknown key 'calibration.lute'"),
        ({"calibration": {"lut": FIT | {"factors": {"array": 1.2}}, "ff": FIT}}, "needs a value and an error"),
        (
            {"calibration": {"lut": FIT | {"factors": {"array": {"value": 0, "error": None}}}, "ff": FIT}},
            "'calibration.lut.factors.array.value' must be a number above 0, not 0",
        ),
        ({"calibration": {"lut": FIT | {"error_percent": -1}, "ff": FIT}}, "must be a number of at least 0, or null"),
    ],
)
def test_a_bad_overlay_is_named(overlay, keys, problem):
    with pytest.raises(DamagedInputError, match=rf"mine\.yaml: .*{problem}"):
        load_device(overlay(**keys))


def test_a_mistake_in_the_base_is_reported_for_the_base(overlay, board):
    board(lambda document: document.pop("dsp"))
    with pytest.raises(DamagedInputError, match=r"board\.yaml: figure 'dsp' is missing"):
        load_device(overlay(base="board.yaml", dsp=_figure(1)))


def test_an_unknown_base_suggests_the_nearest(overlay):
    with pytest.raises(UsageError, match="did you mean 'zcu102'"):
        load_device(overlay(base="zcu_102"))


def test_a_calibration_names_no_part_that_there_is_not(overlay, config):
    fit = FIT | {"factors": {"aray": {"value": 1, "error": None}}}
    device = load_device(overlay(calibration={"lut": fit, "ff": fit}))
    with pytest.raises(DamagedInputError, match="unknown part 'aray': did you mean 'array'"):
        resources_of(config(), device.calibration)


def test_boards_are_listed_without_numpy():
    code = "import sys, hwmodel.device; hwmodel.device.device_names(); sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(hwmodel.device.__file__).parents[1])


TX2 = yaml.safe_load((DEVICE_FOLDER / "jetson_tx2.yaml").read_text())


class TestProcessors:
    @pytest.fixture
    def chip(self, tmp_path):
        """Writes a processor that differs from the Jetson TX2 by `edit(document)` and gives its path."""

        def write(edit=lambda document: None):
            document = copy.deepcopy(TX2)
            edit(document)
            path = tmp_path / "chip.yaml"
            path.write_text(yaml.safe_dump(document))
            return path

        return write

    def test_a_processor_is_known_by_name_and_by_path(self, chip):
        device = load_hardware("jetson_tx2")
        assert (device.peak_gops.fp16, device.peak_gops.int8, device.memory_gb_per_s) == (1331.2, None, 59.7)
        assert device.peak_gops.at("fp32") == 665.6
        assert load_hardware(chip()) == device
        assert load_hardware("zcu102") == load_device("zcu102")

    def test_what_needs_a_board_says_so(self):
        with pytest.raises(UsageError, match=r"jetson_tx2 is no FPGA board .*such as zcu102"):
            load_device("jetson_tx2")

    @pytest.mark.parametrize(
        ("edit", "problem"),
        [
            (_set("kind", "rooflin"), "unknown kind 'rooflin': did you mean 'roofline'"),
            (_set("kind", ["a"]), "unknown kind"),
            (_set("precision", "fp61"), "unknown precision 'fp61': did you mean 'fp16'"),
            (_set("precision", "int8"), "'precision' is int8, for which 'peak_gops' has no figure"),
            (lambda d: d.pop("precision"), "'precision' must be a text"),
            (lambda d: d.pop("power_w"), r"figure 'power_w' is missing; write 'power_w: \{value"),
            (lambda d: d["peak_gops"].pop("fp32"), "figure 'peak_gops.fp32' is missing"),
            (_set("peak_gops.fp8", _figure(1)), "unknown key 'peak_gops.fp8'"),
            (_set("compute_efficiency", _figure(60)), "'compute_efficiency' is a share, at most 1"),
            (_set("launch_us", _figure(-1)), "'launch_us' must be at least 0"),
            (_set("dsp", _figure(1)), "unknown key 'dsp'"),
        ],
    )
    def test_a_mistake_is_named_with_its_file(self, chip, edit, problem):
        with pytest.raises(DamagedInputError, match=rf"chip\.yaml: .*{problem}"):
            load_hardware(chip(edit))

    def test_an_overlay_changes_the_precision_or_a_figure(self, tmp_path):
        path = tmp_path / "mine.yaml"
        path.write_text(
            yaml.safe_dump({"base": "h100", "name": "mine", "precision": "fp16", "peak_gops": {"fp16": _figure(5e5)}})
        )
        mine, base = load_hardware(path), load_hardware("h100")
        assert (mine.precision, mine.peak_gops.fp16, mine.peak_gops.int8) == ("fp16", 5e5, base.peak_gops.int8)

    def test_only_boards_are_calibrated(self, tmp_path):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({"base": "h100", "name": "mine", "calibration": {"lut": FIT, "ff": FIT}}))
        with pytest.raises(DamagedInputError, match="unknown key 'calibration'"):
            load_hardware(path)
