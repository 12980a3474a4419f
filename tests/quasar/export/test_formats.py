"""What holds for every form of an exported network: it is written alone, verified, and not confused with another's."""

import shutil
from pathlib import Path

import pytest

from hwmodel.errors import DamagedInputError
from quasar.export.bundle import load_bundle
from quasar.export.formats.registry import FORMATS, choose_formats
from quasar.export.verify import verify_bundle
from quasar.export.write import write_bundle
from supernet.data.config import DataConfig
from supernet.data.splits import open_test
from supernet.space import SearchSpace

SPACE = SearchSpace(
    num_classes=10,
    in_chans=1,
    patch_size=2,
    head_dim=8,
    image_size=(8,),
    embed_dim=(24,),
    depth=(1,),
    num_heads=(3,),
    mlp_ratio=(2.0,),
    high_precision_ratio=(0.5,),
)


@pytest.fixture(scope="module")
def split():
    return open_test(DataConfig(name="digits"), image_size=8)


@pytest.fixture(scope="module")
def modules(make_module):
    """Two networks of the same shape and what calibrated each."""
    return [make_module(SPACE.largest(), space=SPACE, seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def bundles(modules, make_info, split, tmp_path_factory):
    """Makes the bundle of either network with one form; each is made once."""
    folder, made = tmp_path_factory.mktemp("formats"), {}

    def bundle(name, index):
        if (name, index) not in made:
            module, x = modules[index]
            mean, std = split.normalization
            info = make_info(module.subnet, mean=mean, std=std, data_digests={"test": split.digest})
            path = folder / f"{name}{index}"
            made[name, index] = load_bundle(
                write_bundle(module, path, info=info, images=x, formats=choose_formats([name]))
            )
        return made[name, index]

    return bundle


@pytest.mark.parametrize("name", FORMATS)
def test_a_bundle_with_one_form_is_whole(bundles, name):
    bundle = bundles(name, 0)
    assert bundle.manifest.formats.keys() == {form.name for form in choose_formats([name])}
    assert all((bundle.folder / file).is_file() for file in bundle.manifest.formats[name])


@pytest.mark.parametrize("name", FORMATS)
def test_its_checks_pass(bundles, split, name):
    found = verify_bundle(bundles(name, 0), split).checks
    for check in FORMATS[name].checks:
        if found[check].status == "not checked":
            pytest.skip(found[check].detail)
        assert found[check].status == "passed", found[check]


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_form_of_another_network_is_found(bundles, signed, split, tmp_path, name):
    ours, theirs = bundles(name, 0), bundles(name, 1)
    folder = Path(shutil.copytree(ours.folder, tmp_path / "bundle"))
    for form in choose_formats([name]):
        for file in ours.manifest.formats[form.name]:
            (folder / file).unlink()
        for file in theirs.manifest.formats[form.name]:
            (folder / file).parent.mkdir(exist_ok=True)
            shutil.copyfile(theirs.folder / file, folder / file)
    assert "FAILED" in judged(signed(folder), split, name)


def judged(bundle, split, name):
    """The statuses of a form's checks; a damaged file is a failure, too."""
    try:
        found = verify_bundle(bundle, split).checks
    except DamagedInputError:
        return {"FAILED"}
    statuses = {found[check].status for check in FORMATS[name].checks}
    if statuses == {"not checked"}:
        pytest.skip("no tool for it is installed")
    return statuses
