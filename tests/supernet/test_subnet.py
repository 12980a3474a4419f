import dataclasses
import hashlib
import json

import pytest

from hwmodel.errors import DamagedInputError, UsageError
from supernet.subnet import BlockChoice, Subnet, hidden_units, high_precision_rows

BLOCK = BlockChoice(
    num_heads=2, mlp_ratio=4, operator="attention", qkv_ratio=0.5, proj_ratio=0.5, fc1_ratio=0, fc2_ratio=1
)
SUBNET = Subnet(
    image_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=64, head_dim=16, blocks=(BLOCK, BLOCK)
)


def test_tokens_are_patches_and_the_class_token():
    assert SUBNET.tokens == 17
    assert SUBNET.depth == 2


@pytest.mark.parametrize(
    ("ratio", "rows", "expected"),
    [(0, 10, 0), (1, 10, 10), (0.25, 10, 3), (0.5, 7, 4), (0.1, 30, 3), (0.7, 10, 7), (1e-6, 10, 1)],
)
def test_high_precision_rows_round_up(ratio, rows, expected):
    assert high_precision_rows(ratio, rows) == expected


def test_hidden_units_are_the_nearest_integer():
    assert hidden_units(3.5, 192) == 672
    assert hidden_units(1 / 3, 10) == 3


def test_digest_ignores_how_numbers_are_written():
    same = dataclasses.replace(SUBNET, blocks=(dataclasses.replace(BLOCK, mlp_ratio=4.0, fc1_ratio=0.0), BLOCK))
    other = dataclasses.replace(SUBNET, blocks=(dataclasses.replace(BLOCK, fc1_ratio=0.25), BLOCK))
    assert same.digest == SUBNET.digest != other.digest


def test_round_trip_through_yaml_and_json(tmp_path):
    SUBNET.save(tmp_path / "s.yaml")
    (tmp_path / "s.json").write_text(json.dumps(SUBNET.to_dict()))
    assert Subnet.load(tmp_path / "s.yaml") == SUBNET == Subnet.load(tmp_path / "s.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(patchsize=3), "unknown key 'patchsize': did you mean 'patch_size'"),
        (lambda d: d.pop("embed_dim"), "key 'embed_dim' is missing"),
        (lambda d: d["blocks"][0].update(num_head=3), r"unknown key 'blocks\[0\]\.num_head': did you mean 'num_heads'"),
        (lambda d: d.update(embed_dim="wide"), "embed_dim: .*integer"),
        (lambda d: d.update(image_size=7), "patch_size 2 does not divide image_size 7"),
        (lambda d: d["blocks"][1].update(fc1_ratio=2), r"blocks\[1\]: fc1_ratio must lie in \[0, 1\], not 2"),
        (lambda d: d.update(blocks=[]), "blocks is empty"),
        (lambda d: d.update(low_bits=1), "2 <= low_bits <= high_bits <= 8"),
    ],
)
def test_a_bad_file_is_named_with_the_key(tmp_path, change, message):
    data = SUBNET.to_dict()
    change(data)
    path = tmp_path / "subnet.json"
    path.write_text(json.dumps(data))
    with pytest.raises(DamagedInputError, match=rf"subnet\.json: .*{message}"):
        Subnet.load(path)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(UsageError, match="no such subnet file"):
        Subnet.load(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1, 2")
    with pytest.raises(DamagedInputError, match=r"broken\.yaml: cannot be read"):
        Subnet.load(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(DamagedInputError, match="expected keys and values, found list"):
        Subnet.load(tmp_path / "list.yaml")


def test_the_digest_is_that_of_the_canonical_json(space, rng):
    subnets = [space.decode(genotype) for genotype in space.sample(rng, 20)]
    odd = dataclasses.replace(subnets[0].blocks[0], operator='quoted "ü"', mlp_ratio=3, fc1_ratio=1, qkv_ratio=1e-7)
    subnets.append(dataclasses.replace(subnets[0], blocks=(odd,)))
    for subnet in subnets:
        canonical = json.dumps(subnet.to_dict(), sort_keys=True, separators=(",", ":"))
        assert subnet.digest == hashlib.sha256(canonical.encode()).hexdigest()[:16]
