"""Who may write into a run folder: new, continued, cleared, foreign or in use."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hwmodel.errors import DamagedInputError, QuasarError, UsageError
from quasar.config import CONFIG_FILE, load_config
from quasar.run_folder import RunFolder, open_run

HOLD = """
import sys, time
from pathlib import Path
from quasar.run_folder import RunFolder

with RunFolder(Path(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def settings(config):
    return load_config(config)


def open_and_close(settings, *, resume=False, overwrite=False):
    with open_run(settings, resume=resume, overwrite=overwrite) as run:
        return run


def refused(settings, contents, *, resume=False, overwrite=False):
    """The message of a refusal that changes nothing."""
    before = contents(Path("runs"))
    with pytest.raises(UsageError) as caught:
        open_and_close(settings, resume=resume, overwrite=overwrite)
    assert contents(Path("runs")) == before
    assert str(settings.folder) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def begun(settings):
    """A run folder in which each stage has left a file, and the user one."""
    run = open_and_close(settings)
    for name in ("train/metrics.jsonl", "search/front.json", "export/fps-1/manifest.json", "report.html", "notes.txt"):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text(name, encoding="utf-8")
    return run


class TestNew:
    @pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
    def test_has_its_configuration_and_environment(self, settings, flags):
        run = open_and_close(settings, **flags)
        assert run.config() == settings
        environment = json.loads((run.path / "env.json").read_text(encoding="utf-8"))
        assert environment["packages"].keys() == {"quasar-nas", "torch", "timm", "numpy"}
        assert environment["cpus"] == os.cpu_count()

    def test_an_empty_folder_will_do(self, settings):
        settings.folder.mkdir(parents=True)
        assert open_and_close(settings).config() == settings

    def test_a_kill_before_the_configuration_leaves_a_new_folder(self, settings):
        run = open_and_close(settings)
        (run.path / CONFIG_FILE).unlink()
        assert open_and_close(settings).config() == settings

    def test_both_flags(self, settings):
        with pytest.raises(UsageError, match="--resume and --overwrite exclude each other"):
            open_and_close(settings, resume=True, overwrite=True)
        assert not settings.folder.exists()


class TestExisting:
    def test_refused_without_a_flag(self, begun, settings, contents):
        message = refused(settings, contents)
        assert "--resume" in message
        assert "--overwrite" in message

    def test_resume_keeps_everything(self, begun, settings, contents):
        before = contents(begun.path)
        open_and_close(settings, resume=True)
        assert contents(begun.path) == before

    def test_overwrite_removes_what_runs_write_and_nothing_else(self, begun, settings):
        open_and_close(settings, overwrite=True)
        left = {path.name for path in begun.path.iterdir()}
        assert left == {CONFIG_FILE, "env.json", ".lock", "notes.txt"}

    def test_overwrite_takes_new_settings(self, begun, config):
        other = load_config(config, ["seed=5"])
        assert open_and_close(other, overwrite=True).config() == other

    def test_resume_with_other_settings(self, begun, config, contents):
        message = refused(load_config(config, ["train.lr=0.5"]), contents, resume=True)
        assert "train.lr differs" in message
        message = refused(load_config(config, ["train.lr=0.5", "seed=5"]), contents, resume=True)
        assert "seed differs" in message
        assert "and 1 more" in message

    def test_resume_removes_what_a_kill_left_of_a_checkpoint(self, begun, settings):
        part = begun.checkpoint.with_name(".last.safetensors.123.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(b"half")
        open_and_close(settings, resume=True)
        assert not part.exists()

    def test_resume_where_the_data_have_moved_or_on_another_machine(self, begun, config, capsys):
        open_and_close(load_config(config, ["data.root=/elsewhere", "data.workers=1"]), resume=True)
        assert begun.config().data.root == "/elsewhere"
        assert capsys.readouterr().err == ""
        open_and_close(load_config(config, ["threads=2"]), resume=True)
        assert "warning: data" not in (told := capsys.readouterr().err)
        assert "warning: threads is not that of the run's start" in told

    @pytest.mark.parametrize("spelt", ["runs/", "./runs", "runs/../runs", "{cwd}/runs"])
    def test_resume_under_another_spelling_of_its_place(self, begun, config, spelt):
        other = load_config(config, [f"output_dir={spelt.format(cwd=Path.cwd())}"])
        open_and_close(other, resume=True)
        assert begun.config().folder == begun.path  # nothing was begun elsewhere

    def test_resume_after_a_move(self, begun, config):
        shutil.move("runs", "moved")
        moved = load_config(config, ["output_dir=moved"])
        open_and_close(moved, resume=True)
        assert RunFolder(moved.folder).config().folder == moved.folder
        assert not Path("runs").exists()

    @pytest.mark.parametrize("content", ["", "a: [1", "- 1"])
    def test_resume_with_a_damaged_configuration(self, begun, settings, contents, content):
        (begun.path / CONFIG_FILE).write_text(content, encoding="utf-8")
        before = contents(begun.path)
        with pytest.raises(QuasarError, match=CONFIG_FILE):
            open_and_close(settings, resume=True)
        assert contents(begun.path) == before


class TestForeign:
    """A folder of something else is left alone, whatever the flag: there is no undo."""

    @pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
    @pytest.mark.parametrize("name", ["train/thesis.tex", "report.html", ".hidden", CONFIG_FILE])
    def test_refused(self, settings, contents, name, flags):
        file = settings.folder / name
        file.parent.mkdir(parents=True)
        file.write_text("mine", encoding="utf-8")
        assert "is not a run folder but holds files" in refused(settings, contents, **flags)
        assert not (settings.folder / ".lock").exists()

    def test_configuration_of_another_program_beside_its_results(self, settings, contents):
        (settings.folder / "train").mkdir(parents=True)
        (settings.folder / CONFIG_FILE).write_text("model: resnet\n", encoding="utf-8")
        (settings.folder / "train" / "weights.pt").write_text("weeks of work", encoding="utf-8")
        assert "is not a run folder" in refused(settings, contents, overwrite=True)

    def test_a_file(self, settings, contents):
        settings.folder.parent.mkdir()
        settings.folder.write_text("mine", encoding="utf-8")
        for flags in ({}, {"resume": True}, {"overwrite": True}):
            assert "is a file" in refused(settings, contents, **flags)


class TestUnwritable:
    @pytest.mark.parametrize("place", ["/proc/quasar", "/dev/null"])
    def test_place_where_no_folder_can_be(self, config, place):
        settings = load_config(config, [f"output_dir={place}"])
        with pytest.raises(QuasarError, match=f"{place}/tiny: cannot be used as a run folder") as caught:
            open_and_close(settings)
        assert caught.value.exit_code == 1

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    @pytest.mark.parametrize("flags", [{"resume": True}, {"overwrite": True}])
    def test_read_only_folder(self, begun, settings, contents, flags):
        before = contents(begun.path)
        begun.path.chmod(0o500)
        try:
            with pytest.raises(QuasarError, match="Permission denied"):
                open_and_close(settings, **flags)
            assert contents(begun.path) == before
        finally:
            begun.path.chmod(0o700)


class TestLock:
    @pytest.fixture
    def holder(self, begun):
        """Another process that holds the folder."""
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(begun.path)], stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()
        process.communicate()

    @pytest.mark.parametrize("flags", [{"resume": True}, {"overwrite": True}])
    def test_another_process_keeps_us_out(self, begun, settings, contents, holder, flags):
        message = refused(settings, contents, **flags)
        assert f"is in use by process {holder.pid}" in message

    def test_a_killed_process_holds_nothing(self, begun, settings, holder):
        holder.kill()
        holder.wait()
        open_and_close(settings, resume=True)
        assert (begun.path / ".lock").read_text(encoding="utf-8") == str(os.getpid())

    def test_is_released_and_taken_again(self, begun):
        for _ in range(2):
            with begun.locked():
                assert (begun.path / ".lock").read_text(encoding="utf-8") == str(os.getpid())


class TestReading:
    def test_folder_without_a_run(self, here):
        for read in (RunFolder(here).config, RunFolder(here / "nowhere").config):
            with pytest.raises(UsageError, match="is not a run folder"):
                read()

    def test_no_front_yet(self, begun):
        begun.front.unlink()
        with pytest.raises(UsageError, match="run `quasar search"):
            begun.read_front()

    def test_front_is_what_the_file_says(self, finished):
        run = RunFolder(finished[0])
        assert run.read_front() == json.loads(run.front.read_text(encoding="utf-8"))

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"targets": [{}]}', '{"device": "zcu102"', "\0", "NaN"])
    def test_damaged_front(self, begun, content):
        begun.front.write_text(content, encoding="utf-8")
        with pytest.raises(DamagedInputError, match=r"front\.json"):
            begun.read_front()

    def test_front_that_is_no_text(self, begun):
        begun.front.write_bytes(b"\xff\xfe")
        with pytest.raises(DamagedInputError, match=r"front\.json"):
            begun.read_front()
