"""Configuration files: overrides, what a mistake is told, and the way to YAML and back."""

import dataclasses

import pytest
import yaml

from hwmodel.errors import DamagedInputError, UsageError
from quasar.config import CONFIG_FILE, apply_override, differing_keys, load_config


def message(config, *overrides, error=UsageError):
    with pytest.raises(error) as caught:
        load_config(config, overrides)
    text = str(caught.value)
    assert "\n" not in text
    assert str(config) in text
    return text


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("seed=7", 7),
            ("train.lr=1e-3", 1e-3),  # a string in YAML 1.1, a number to whoever types it
            ("name=other", "other"),
            ("space.depth=[3, 1]", (1, 3)),
            ("space.num_heads=embed", "embed"),
            ("hardware.array=[4, 8]", (4, 8)),
            ("hardware.clock_mhz=null", None),
            ("supernet.layer_scale=null", None),
            ("threads=", None),
        ],
    )
    def test_sets_one_key(self, config, override, expected):
        settings = load_config(config, [override])
        value = settings
        for key in override.partition("=")[0].split("."):
            value = getattr(value, key)
        assert value == expected
        assert differing_keys(settings, load_config(config)) in ([override.partition("=")[0]], [])

    def test_the_last_one_wins(self, config):
        assert load_config(config, ["seed=1", "seed=2"]).seed == 2

    def test_makes_missing_sections(self):
        data = {}
        apply_override(data, "a.b.c=[1, {d: 2}]")
        assert data == {"a": {"b": {"c": [1, {"d": 2}]}}}

    def test_an_equals_sign_may_be_in_the_value(self):
        data = {}
        apply_override(data, "a=b=c")
        assert data == {"a": "b=c"}

    @pytest.mark.parametrize("override", ["", "train.lr", "=3", "a..b=1", ".a=1", "a.=1"])
    def test_bad_form(self, override):
        with pytest.raises(UsageError, match=r"is not of the form key\.sub=value"):
            apply_override({}, override)

    @pytest.mark.parametrize("override", ["name.sub=1", "search.targets.0=1", "search.targets.0.fps=1"])
    def test_a_key_under_something_that_has_none(self, config, override):
        with pytest.raises(UsageError, match="has no keys of its own"):
            load_config(config, [override])

    def test_value_that_is_no_yaml(self, config):
        with pytest.raises(UsageError, match=r"'\[1' is not a YAML value"):
            load_config(config, ["train.lr=[1"])


class TestMistakes:
    """Each message names the file (`message` looks), the key, and what would be right."""

    @pytest.mark.parametrize(
        ("override", "parts"),
        [
            ("seach.evaluations=3", ["unknown key 'seach'", "'search'"]),
            ("train.epoch=3", ["unknown key 'train.epoch'", "'epochs'"]),
            ("space.embed_dims=[8]", ["unknown key 'space.embed_dims'", "'embed_dim'"]),
            ("hardware.devise=zcu102", ["unknown key 'hardware.devise'", "'device'"]),
            ("search.targets=[{latency: 3}]", ["'search.targets[0].latency'", "'latency_ms'"]),
            ("train.foo_bar_baz=3", ["valid here: epochs, batch_size"]),
        ],
    )
    def test_unknown_key(self, config, override, parts):
        text = message(config, override)
        assert all(part in text for part in parts), text

    @pytest.mark.parametrize(
        ("override", "key"),
        [
            ("train.epochs=many", "train.epochs"),
            ("train.epochs=2.5", "train.epochs"),
            ("train.lr=[1]", "train.lr"),
            ("space.depth=3", "space.depth"),
            ("space.depth=[one]", "space.depth[0]"),
            ("space.num_heads=width", "space.num_heads"),
            ("space.weight_bits=[4]", "space.weight_bits[1]"),
            ("train=3", "train"),
            ("train=null", "train"),
            ("name=3", "name"),
            ("output_dir=null", "output_dir"),
            ("compute=tpu", "compute"),
            ("search.targets=[3]", "search.targets[0]"),
            ("search.targets={fps: 3}", "search.targets"),
        ],
    )
    def test_wrong_type(self, config, override, key):
        assert key in message(config, override).partition(": ")[2]

    @pytest.mark.parametrize("key", ["image_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "operator"])
    def test_empty_list_of_choices(self, config, key):
        assert f"{key}: the list of choices is empty" in message(config, f"space.{key}=[]")

    @pytest.mark.parametrize(
        ("overrides", "parts"),
        [
            (["space.depth=[0]"], ["depth", "positive"]),
            (["space.depth=[1, 1]"], ["depth", "twice"]),
            (["space.num_heads=embed", "space.head_dim=16"], ["embed_dim", "8 is not a multiple of head_dim 16"]),
            (["space.patch_size=3"], ["image_size", "patch_size 3 does not divide 8"]),
            (["space.mlp_ratio=[.inf]"], ["mlp_ratio", "finite"]),
            (["space.mlp_ratio=[.nan]"], ["mlp_ratio", "positive"]),
            (["space.mlp_ratio=[0.01, 2]"], ["mlp_ratio", "at least one hidden unit at embed_dim 8"]),
            (["space.high_precision_ratio=[1.5]"], ["high_precision_ratio", "[0, 1]"]),
            (["space.weight_bits=[8, 4]"], ["weight_bits", "low <= high"]),
            (["space.act_bits=4"], ["act_bits"]),
            (["search.targets=[]"], ["targets", "empty"]),
            (["search.targets=[{}]"], ["targets[0]", "either latency_ms or fps"]),
            (["search.targets=[{fps: 1, latency_ms: 1}]"], ["targets[0]", "either latency_ms or fps"]),
            (["search.targets=[{fps: 1000}, {latency_ms: 1}]"], ["targets", "twice"]),
            (["search.evaluations=0"], ["evaluations", "at least 1"]),
            (["train.warmup_epochs=2"], ["warmup_epochs", "fewer than epochs (2)"]),
            (["train.lr=.nan"], ["lr", "positive"]),
            (["data.val_fraction=1"], ["val_fraction", "between 0 and 1"]),
            (["data.mean=[0.5]"], ["mean and std"]),
            (["hardware.clock_mhz=0"], ["clock_mhz", "positive"]),
            (["hardware.array=[0, 4]"], ["array", "positive"]),
            (["seed=-1"], ["seed", "0..2^63-1"]),
            (["seed=9223372036854775808"], ["seed", "0..2^63-1"]),  # what torch's generators do not take
            (["threads=0"], ["threads", "at least 1"]),
            (["name="], ["name"]),
            (["name=''"], ["name", "plain folder name"]),
            (["name=.."], ["name", "plain folder name"]),  # would be the folder above output_dir
            (["name=."], ["name", "plain folder name"]),
            (["name=a/b"], ["name", "plain folder name"]),
        ],
    )
    def test_impossible_value(self, config, overrides, parts):
        text = message(config, *overrides)
        assert all(part in text for part in parts), text

    @pytest.mark.parametrize("kind", ["latency_ms", "fps"])
    @pytest.mark.parametrize("value", ["0", "-1", ".nan", ".inf", "-.inf"])
    def test_impossible_target(self, config, kind, value):
        text = message(config, f"search.targets=[{{fps: 100}}, {{{kind}: {value}}}]")
        assert f"search.targets[1]: {kind} must be positive and finite" in text

    def test_frame_rate_whose_latency_is_infinite(self, config):
        assert "fps must be positive and finite" in message(config, "search.targets=[{fps: 1e-320}]")

    def test_counts_the_other_mistakes(self, config):
        assert "(and 2 more problems)" in message(config, "train.epochs=a", "train.lr=b", "seed=c")

    def test_missing_keys(self, config):
        config.write_text("name: x\n", encoding="utf-8")
        assert "key 'data' is missing (and 3 more problems)" in message(config)


class TestFiles:
    @pytest.mark.parametrize(
        ("content", "error", "part"),
        [
            (b"", UsageError, "key 'name' is missing"),
            (b"- 1\n", UsageError, "expected keys and values, found list"),
            (b"text", UsageError, "expected keys and values, found str"),
            (b"a: [1", DamagedInputError, "cannot be read as a configuration file"),
            (b"a: 1\n b: 2", DamagedInputError, "cannot be read as a configuration file"),
            (b"\xff\xfe\x00", DamagedInputError, "cannot be read as a configuration file"),
            (b"a: \x00", DamagedInputError, "cannot be read as a configuration file"),
            (b"[" * 5000, DamagedInputError, "cannot be read as a configuration file"),
            (b"a: &x [*x]", UsageError, "unknown key 'a'"),
            (b"!!python/object/apply:os.system [ls]", DamagedInputError, "cannot be read as a configuration file"),
        ],
    )
    def test_no_configuration(self, config, content, error, part):
        config.write_bytes(content)
        assert part in message(config, error=error)

    def test_no_configuration_with_an_override(self, config):
        config.write_text("- 1\n", encoding="utf-8")
        assert "expected keys and values, found list" in message(config, "seed=3")

    def test_missing(self, here):
        assert "no such configuration file" in message(here / "nowhere.yaml")

    def test_folder_that_is_no_run(self, here):
        assert f"is not a run folder (it has no {CONFIG_FILE})" in message(here)

    def test_json_is_yaml(self, config):
        expected = load_config(config)
        config.write_text(expected.to_yaml().replace("'", '"'), encoding="utf-8")
        assert load_config(config) == expected


class TestRoundTrip:
    def test_resolved_configuration_gives_itself_back(self, config, here):
        settings = load_config(
            config,
            [
                "space.num_heads=embed",
                "data.mean=[0.3]",
                "data.std=[0.4]",
                "hardware.array=[8, 16]",
                "search.targets=[{fps: 99.5}, {latency_ms: 1.0e-2}]",
                "threads=null",
                "seed=9223372036854775807",
            ],
        )
        resolved = here / "resolved.yaml"
        resolved.write_text(settings.to_yaml(), encoding="utf-8")
        assert load_config(resolved) == settings
        assert load_config(resolved).to_yaml() == settings.to_yaml()

    def test_names_every_key(self, config):
        """A resolved configuration stays what it is when a default changes."""
        settings = load_config(config)
        data = yaml.safe_load(settings.to_yaml())

        def check(value, instance):
            names = {field.name for field in dataclasses.fields(instance)}
            names -= {"pooling"}  # left out where nothing pools, which it will always mean: files are as before it
            assert set(value) == names
            for name in names:
                if dataclasses.is_dataclass(getattr(instance, name)):
                    check(value[name], getattr(instance, name))

        check(data, settings)

    def test_a_run_folder_is_where_it_is(self, config, here, monkeypatch):
        settings = load_config(config)
        folder = here / "elsewhere" / "renamed"
        folder.mkdir(parents=True)
        (folder / CONFIG_FILE).write_text(settings.to_yaml(), encoding="utf-8")
        assert load_config(folder).folder == folder
        monkeypatch.chdir(folder.parent)
        assert str(load_config(type(folder)("renamed")).folder) == "renamed"
        monkeypatch.chdir(folder)
        assert load_config(type(folder)()).folder == folder
        (folder / "sub").mkdir()
        monkeypatch.chdir(folder / "sub")
        assert load_config(type(folder)("..")).folder == folder


class TestDifferingKeys:
    def test_equal(self, config):
        assert differing_keys(load_config(config), load_config(config)) == []

    def test_order_of_choices_is_no_difference(self, config):
        assert differing_keys(load_config(config), load_config(config, ["space.depth=[2, 1]"])) == []

    def test_dotted_and_sorted(self, config):
        other = load_config(config, ["train.lr=1", "seed=1", "space.depth=[1]", "search.targets=[{fps: 1}]"])
        assert differing_keys(load_config(config), other) == ["search.targets", "seed", "space.depth", "train.lr"]

    def test_in_both_directions(self, config):
        first, second = load_config(config), load_config(config, ["hardware.array=[4, 4]"])
        assert differing_keys(first, second) == differing_keys(second, first) == ["hardware.array"]
