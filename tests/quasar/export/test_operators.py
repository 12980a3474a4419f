"""Every form of a network with both operators that come with the program, and operators that forms do not know."""

import dataclasses

import pytest

from hwmodel.errors import UsageError
from quasar.export.bundle import load_bundle
from quasar.export.formats.registry import FORMATS, choose_formats, left_out
from quasar.export.verify import verify_bundle
from quasar.export.write import write_bundle
from supernet.data.config import DataConfig
from supernet.data.splits import open_test
from supernet.operators.attention import IntegerAttention
from supernet.operators.registry import OPERATORS, TokenMixer
from supernet.space import SearchSpace

#: a head wider than its 17 tokens are many, and one that fills no tile
HEAD_DIMS = (20, 6)


def space_of(head_dim, *operators):
    return SearchSpace(
        num_classes=10,
        in_chans=1,
        patch_size=2,
        head_dim=head_dim,
        image_size=(8,),
        embed_dim=(24,),
        depth=(3,),
        num_heads=(2,),
        mlp_ratio=(2.0,),
        high_precision_ratio=(0.5,),
        operator=operators,
    )


def alternating(space):
    """The largest subnet, with the space's operators by turns, the last one first."""
    subnet, names = space.largest(), space.operator[::-1]
    blocks = tuple(
        dataclasses.replace(block, operator=names[index % len(names)]) for index, block in enumerate(subnet.blocks)
    )
    return dataclasses.replace(subnet, blocks=blocks)


@pytest.fixture(scope="module")
def split():
    return open_test(DataConfig(name="digits"), image_size=8)


@pytest.fixture(scope="module")
def bundle_of(make_module, make_info, split, tmp_path_factory):
    """Makes the bundle of the alternating subnet of a space."""
    folder = tmp_path_factory.mktemp("bundles")

    def bundle(space, name, formats=None):
        module, x = make_module(alternating(space), space=space)
        mean, std = split.normalization
        info = make_info(module.subnet, mean=mean, std=std, data_digests={"test": split.digest})
        return load_bundle(write_bundle(module, folder / name, info=info, images=x, formats=formats))

    return bundle


def assert_passed(report, *skipped):
    for name, check in report.checks.items():
        if check.status == "not checked":
            assert name in skipped or "install" in check.detail, (name, check)
        else:
            assert check.status == "passed", (name, check)


@pytest.mark.parametrize("head_dim", [HEAD_DIMS[0], pytest.param(HEAD_DIMS[1], marks=pytest.mark.slow)])
def test_all_forms_hold_and_agree(bundle_of, split, head_dim):
    bundle = bundle_of(space_of(head_dim, "attention", "linear-angular"), f"heads of {head_dim}")
    assert bundle.manifest.formats.keys() == FORMATS.keys() - left_out().keys()
    assert_passed(verify_bundle(bundle, split), "RTL")


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_the_rtl_gives_its_integers_in_the_cycles_of_the_cost_model(bundle_of, split, head_dim):
    bundle = bundle_of(
        space_of(head_dim, "attention", "linear-angular"), f"RTL, heads of {head_dim}", choose_formats(["rtl"])
    )
    check = verify_bundle(bundle, split, simulate=True).checks["RTL"]
    if check.status == "not checked":
        pytest.skip(check.detail)
    assert check.status == "passed", check
    layers = bundle.operations()
    assert {"blocks.0.q_unit", "blocks.0.context", "blocks.1.softmax", "blocks.2.readout"} <= layers.keys()


def test_weights_of_either_operator_come_back_as_they_were(bundle_of):
    bundle = bundle_of(space_of(6, "linear-angular"), "packed", choose_formats(["packed"]))
    codes = bundle.manifest.codes
    assert {"blocks.0.q_unit", "blocks.0.k_unit", "blocks.0.context"} <= codes.keys()
    assert "blocks.0.scores" not in codes
    assert bundle.config.integer.scores == (None,) * 3


@pytest.fixture
def foreign(monkeypatch):
    """A plug-in's operator: softmax attention by another name, with integers of a class that no form knows."""

    class Foreign(IntegerAttention):
        pass

    attention = OPERATORS.get("attention")
    mixer = TokenMixer(lower=attention.lower, module=attention.module, integer=Foreign)
    monkeypatch.setitem(OPERATORS._entries, "foreign", mixer)
    return "foreign"


def test_forms_that_do_not_know_an_operator_are_left_out_and_say_so(bundle_of, split, foreign):
    space = space_of(6, "attention", foreign)
    bundle = bundle_of(space, "foreign")
    assert bundle.manifest.formats == {}
    assert bundle.manifest.weights is None
    checks = verify_bundle(bundle, split).checks
    for form in FORMATS.values():
        for name in form.checks:
            assert checks[name].status == "not checked"
            assert checks[name].detail == (
                "not available for the operator 'foreign', only for attention, linear-angular"
            )
    assert checks["timm module"].status == checks["integer top-1"].status == "passed"
    for name in FORMATS:
        with pytest.raises(UsageError, match=rf"^format '{name}' is not available for the operator 'foreign'"):
            bundle_of(space, f"foreign {name}", [FORMATS[name]])
