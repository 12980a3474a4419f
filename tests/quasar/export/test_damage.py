"""Damaged bundles are refused by the name of the file, networks that cannot be exported by that of the layer."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.errors import DamagedInputError, QuasarError, UsageError
from quasar.export.bundle import files_of, load_bundle
from quasar.export.formats.registry import choose_formats
from quasar.export.write import write_bundle
from supernet.space import SearchSpace


@pytest.fixture(scope="module")
def bundle(make_module, make_info, subnets, tmp_path_factory):
    """A bundle with all forms; whoever changes a file puts it back."""
    module, x = make_module(subnets[0], images=16)
    folder = tmp_path_factory.mktemp("damage") / "bundle"
    return write_bundle(module, folder, info=make_info(module.subnet), images=x)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_changed_byte_is_noticed(bundle, data):
    name = data.draw(st.sampled_from(sorted(files_of(bundle))), label="file")
    path = bundle / name
    content = path.read_bytes()
    changed = bytearray(content)
    position = data.draw(st.integers(0, len(content) - 1), label="byte")
    changed[position] ^= data.draw(st.integers(1, 255), label="flip")
    path.write_bytes(changed)
    try:
        with pytest.raises(DamagedInputError, match=re.escape(name)):
            load_bundle(bundle)
    finally:
        path.write_bytes(content)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_truncated_or_longer_file_is_noticed(bundle, data):
    name = data.draw(st.sampled_from(sorted(files_of(bundle))), label="file")
    path = bundle / name
    content = path.read_bytes()
    kept = data.draw(st.integers(0, len(content)), label="bytes")
    path.write_bytes(content[:kept] if kept < len(content) else content + b"\0")
    try:
        with pytest.raises(DamagedInputError, match=re.escape(name)):
            load_bundle(bundle)
    finally:
        path.write_bytes(content)


def test_any_missing_or_additional_file_is_named(bundle, tmp_path):
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    for name in files_of(bundle):
        (copy / name).rename(tmp_path / "kept")
        with pytest.raises(DamagedInputError, match=f"{re.escape(name)}: is missing"):
            load_bundle(copy)
        (tmp_path / "kept").rename(copy / name)
    for folder in {Path(name).parent for name in files_of(bundle)}:
        (copy / folder / "copy.bin").touch()
        with pytest.raises(DamagedInputError, match=rf"{re.escape(str(folder / 'copy.bin'))}: is not of this bundle"):
            load_bundle(copy)
        (copy / folder / "copy.bin").unlink()
    load_bundle(copy)


@pytest.mark.parametrize(
    ("tensor", "value", "message"),
    [
        ("blocks.0.norm1.weight", torch.nan, "'blocks.0.norm1.weight' of the subnet is not finite"),
        ("blocks.0.mixer.qkv.scale", torch.nan, "'blocks.0.mixer.qkv.scale' of the subnet is not finite"),
        ("blocks.0.mlp.fc1.scale", torch.inf, "'blocks.0.mlp.fc1.scale' of the subnet is not finite"),
        ("blocks.0.mlp.fc2.scale", 0.0, "'blocks.0.mlp.fc2.scale' of the subnet has a scale that is not positive"),
        ("head.scale", -1.0, "'head.scale' of the subnet has a scale that is not positive"),
        ("sites.scale", 0.0, "'sites.scale' of the subnet has a scale that is not positive"),
        ("blocks.0.mixer_sites.scale", torch.nan, "'blocks.0.mixer_sites.scale' of the subnet is not finite"),
    ],
)
def test_numbers_that_no_network_can_have_are_refused(
    make_module, make_info, subnets, tmp_path, tensor, value, message
):
    module, x = make_module(subnets[0], images=8)
    module.state_dict()[tensor][0] = value
    with pytest.raises(QuasarError, match=re.escape(message)):
        write_bundle(module, tmp_path / "bundle", info=make_info(module.subnet), images=x)
    assert not any(tmp_path.iterdir())


def test_a_sum_that_could_overflow_is_refused_by_the_name_of_its_layer(make_module, make_info, tmp_path):
    space = SearchSpace(
        num_classes=2,
        in_chans=3,
        patch_size=256,  # 196,608 inputs
        head_dim=4,
        image_size=(256,),
        embed_dim=(4,),
        depth=(1,),
        num_heads=(1,),
        mlp_ratio=(1.0,),
        high_precision_ratio=(1.0,),
    )
    module, x = make_module(space.largest(), space=space, images=2)
    module.patch_embed.codes[1] = 127
    sums = 128 * 127 * 196_608
    info = make_info(module.subnet)
    with pytest.raises(UsageError, match=r"^patch_embed: a sum can reach [\d,]+, more than the 32 bits") as caught:
        write_bundle(module, tmp_path / "bundle", info=info, images=x, formats=choose_formats(["packed"]))
    (reach,) = re.findall(r"reach ([\d,]+)", str(caught.value))
    assert int(reach.replace(",", "")) >= sums > 2**31
    assert not any(tmp_path.iterdir())
    module.patch_embed.codes[1] = 64
    write_bundle(module, tmp_path / "bundle", info=info, images=x, formats=choose_formats(["packed"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("norm", r"^blocks\.0\.norm2: gain or bias of LayerNorm is too large for an output scale"),
        ("fc1", r"^blocks\.0\.fc1: a requantization factor of .* is beyond the hardware's"),
    ],
)
def test_factors_that_no_command_holds_are_refused_by_the_name_of_their_layer(
    make_module, make_info, subnets, tmp_path, change, message
):
    module, x = make_module(subnets[0], images=8)
    block = module.blocks[0]
    if change == "norm":
        block.norm2.weight[0] = 1e9
    else:
        block.mlp["fc1"].scale[0] = 1e6
    with pytest.raises(UsageError, match=message):
        write_bundle(module, tmp_path / "bundle", info=make_info(module.subnet), images=x)
    assert not any(tmp_path.iterdir())
