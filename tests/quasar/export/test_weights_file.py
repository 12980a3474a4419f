import dataclasses
import json
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from hwmodel.errors import DamagedInputError
from quasar.export.formats.registry import FORMATS
from quasar.export.manifest import CORE_FILES, MANIFEST_SCHEMA, BundleConfig
from quasar.export.weights_file import (
    ALIGNMENT,
    WeightsIndex,
    first_difference,
    pack_weights,
    unpack_weights,
)
from supernet.integer_vit import IntegerViT, find_ranges
from supernet.validation import validate

DOCS = Path(__file__).resolve().parents[3] / "docs" / "bundle.md"


@pytest.fixture(scope="module")
def networks(make_module, subnets):
    modules = [make_module(subnet, seed=seed, images=8) for seed, subnet in enumerate(subnets[:3])]
    return [IntegerViT.of(module, find_ranges(module, x)) for module, x in modules]


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("changes", [{}, {"backend": "atomic", "array_rows": 3, "array_inputs": 5, "vector_lanes": 2}])
def test_the_network_comes_back(networks, make_info, index, changes):
    network = networks[index]
    accelerator = dataclasses.replace(make_info(network.subnet).accelerator, **changes)
    content, written = pack_weights(network, accelerator)
    # the index as a manifest gives it back
    read = validate(WeightsIndex, json.loads(json.dumps(dataclasses.asdict(written))), source="index")
    assert read == written
    again = unpack_weights(content, read, network.subnet, source="weights.bin")
    assert first_difference(network, again) is None
    images = np.random.default_rng(0).integers(-127, 128, (2, 3, *2 * [network.subnet.image_size]), dtype=np.int8)
    np.testing.assert_array_equal(network(images), again(images))


def test_sections_are_aligned_and_fill_the_file(networks, make_info):
    content, index = pack_weights(networks[0], make_info(networks[0].subnet).accelerator)
    end = 0
    for section in index.sections:
        assert section.offset % ALIGNMENT == 0
        assert content[end : section.offset] == bytes(section.offset - end)
        assert section.offset - end < ALIGNMENT
        end = section.offset + section.bytes
    assert end == len(content)


def test_the_reader_in_the_docs_reads_it(networks, make_info, tmp_path, monkeypatch):
    """Of every linear, by NumPy alone."""
    snippet = re.search("```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL).group(1)
    network = networks[2]
    content, index = pack_weights(network, make_info(network.subnet).accelerator)
    (tmp_path / "weights.bin").write_bytes(content)
    (tmp_path / "manifest.json").write_text(json.dumps({"weights": dataclasses.asdict(index)}))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(snippet, names)
    block = network.blocks[0]
    for linear in (network.patch_embed, block.qkv, block.proj, block.fc1, block.fc2, network.head):
        codes, parameters = names["read_rows"](linear.name)
        np.testing.assert_array_equal(codes, linear.weights)
        for name in ("bias", "mantissa", "shift"):
            np.testing.assert_array_equal(parameters[name], getattr(linear, name))


def test_the_docs_name_every_key_content_and_form():
    schema = json.loads(files("quasar.export").joinpath(MANIFEST_SCHEMA).read_text())
    weights = schema["$defs"]["weights"]["properties"]
    contents = weights["sections"]["items"]["properties"]["content"]["enum"]
    text = DOCS.read_text(encoding="utf-8")
    configuration = [field.name for field in dataclasses.fields(BundleConfig)]
    names = (*schema["properties"], *weights["order"]["properties"], *contents, *configuration, *CORE_FILES, *FORMATS)
    assert not [name for name in names if f"`{name}`" not in text]


def test_a_changed_integer_is_found(networks):
    network = networks[0]
    for path, change in {
        ".head.bias": lambda n: dataclasses.replace(n, head=dataclasses.replace(n.head, bias=n.head.bias + 1)),
        ".position": lambda n: dataclasses.replace(n, position=n.position.astype(np.int32)),
        ".logit_scale": lambda n: dataclasses.replace(n, logit_scale=2.0),
        ".blocks": lambda n: dataclasses.replace(n, blocks=n.blocks + n.blocks),
        ".blocks[0].mixer.mix_factor[1]": lambda n: dataclasses.replace(
            n,
            blocks=(
                dataclasses.replace(
                    n.blocks[0],
                    mixer=dataclasses.replace(n.blocks[0].mixer, mix_factor=(n.blocks[0].mixer.mix_factor[0], 1)),
                ),
                *n.blocks[1:],
            ),
        ),
        ".head.table": lambda n: dataclasses.replace(n, head=dataclasses.replace(n.head, table=np.zeros(256, np.int8))),
    }.items():
        assert first_difference(network, change(network)) == path


def test_what_does_not_fit_its_index_is_named(networks, make_info):
    network = networks[0]
    content, index = pack_weights(network, make_info(network.subnet).accelerator)

    def refused(message, content=content, index=index):
        with pytest.raises(DamagedInputError, match=rf"^weights\.bin: cannot be read as packed weights \({message}"):
            unpack_weights(content, index, network.subnet, source="weights.bin")

    for kept in (0, len(content) // 2, len(content) - 1):
        refused(r"\S+: \w+ ends at byte \d+, the file before\); export again$", content=content[:kept])
    refused(r"\('head', 'rows'\) is not in", index=dataclasses.replace(index, sections=index.sections[:-2]))
    commands = {name: own for name, own in index.commands.items() if name != "norm"}
    refused("'norm' is not in", index=dataclasses.replace(index, commands=commands))
    order = dataclasses.replace(index.order, tile_inputs=index.order.tile_inputs + 1)
    refused("", index=dataclasses.replace(index, order=order))
