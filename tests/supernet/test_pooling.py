"""Subnets that pool their patches between blocks: space, cost, supernet and extraction."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch

from hwmodel.errors import UsageError
from hwmodel.workload import Gemm, VectorOp
from supernet.alone import supernet_of_one
from supernet.calibrate import calibrate, linears_of, recalibrate
from supernet.checkpoint import Checkpoint
from supernet.config import SupernetConfig
from supernet.functional import Observer
from supernet.integer_vit import find_ranges
from supernet.lowering import lower, lower_many
from supernet.prune import check_prunable
from supernet.reorder import reorder
from supernet.space import BLOCK_GENES, SearchSpace
from supernet.standalone import SubnetViT, extract
from supernet.stores import Stores
from supernet.subnet import Subnet, SubnetArrays
from supernet.vit import QuantizedOnce, SupernetViT, unquantized

POOLING = ((), (1,), (2,), (1, 2))


@pytest.fixture
def pooling_space(make_space):
    return make_space(depth=(3, 4), pooling=POOLING)


@pytest.fixture
def pooling_supernet(pooling_space):
    """Calibrated for all ways of pooling."""
    torch.manual_seed(0)
    model = SupernetViT(pooling_space, layer_scale=0.5)
    calibrate(model, [torch.randn(32, 1, 8, 8)])
    return model


def test_spaces_and_files_without_pooling_are_as_before_there_was_any(make_space, tmp_path):
    space = make_space()
    # written down before pooling was added
    assert (space.digest, space.largest().digest) == ("3d41f34575d35a60", "12f3d26e4347ec52")
    assert space.sample(np.random.default_rng(0), 2)[1, :8].tolist() == [1, 1, 0, 1, 1, 0, 1, 0]
    assert "pooling" not in space.to_dict()
    assert "pooling" not in space.largest().to_dict()
    torch.manual_seed(0)
    model = SupernetViT(space, layer_scale=0.5)
    assert len(model.state_dict()) == 78
    path = tmp_path / "checkpoint.safetensors"
    checkpoint = Checkpoint(
        space=space,
        supernet=SupernetConfig(),
        model={},
        epoch=0,
        step=0,
        best_accuracy=0.0,
        train_digest="",
        settings={},
    )
    checkpoint.save(path)
    assert b"pooling" not in path.read_bytes()
    assert Checkpoint.load(path).space == space
    assert make_space(pooling=((),)) == space


def test_a_gene_chooses_where_to_pool(pooling_space, make_space, rng):
    space, plain = pooling_space, make_space(depth=(3, 4))
    assert space.gene_names[:5] == ("image_size", "embed_dim", "depth", "pooling", "blocks.0.num_heads")
    assert space.size == 4 * plain.size
    assert space.digest != plain.digest
    # the more tokens, the larger
    assert space.pooling == ((1, 2), (1,), (2,), ())
    assert space.gene_choices[3] == ("1+2", "1", "2", "none")
    assert (space.smallest().pooling, space.largest().pooling) == ((1, 2), ())
    genotypes = space.sample(rng, 50)
    assert len(set(genotypes[:, 3].tolist())) == 4
    subnets = [space.decode(genotype) for genotype in genotypes]
    for genotype, subnet in zip(genotypes, subnets, strict=True):
        np.testing.assert_array_equal(space.encode(subnet), genotype)
        assert Subnet.from_dict(subnet.to_dict()) == subnet
        assert SearchSpace.of(subnet).smallest().pooling == subnet.pooling
        content = dataclasses.replace(subnet, pooling=())
        assert (subnet.digest == content.digest) == (subnet.pooling == ())
    with pytest.raises(UsageError, match=r"outside the space: pooling is \(1,\), the space has \[\(\)\]"):
        plain.encode(dataclasses.replace(plain.largest(), pooling=(1,)))


def test_the_digest_is_that_of_the_canonical_form(pooling_space):
    import json

    subnet = pooling_space.smallest()
    canonical = json.dumps(subnet.to_dict(), sort_keys=True, separators=(",", ":"))
    assert subnet.digest == hashlib.sha256(canonical.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": ()}, "pooling: the list of choices is empty"),
        ({"pooling": ((1,), (1,))}, r"pooling: a choice is listed twice in \[\[1\], \[1\]\]"),
        ({"pooling": ((2, 1),)}, r"pooling: a choice must name blocks in ascending order, each once, not \[2, 1\]"),
        ({"pooling": ((0,),)}, "must name blocks from 1 to 2, as a network has 3"),
        ({"pooling": ((3,),)}, "must name blocks from 1 to 2, as a network has 3"),
        ({"image_size": (2,), "pooling": ((1,),)}, "would pool a grid of one patch: there are 1 along a side"),
    ],
)
def test_impossible_choices(make_space, changes, message):
    with pytest.raises(UsageError, match=message):
        make_space(**({"depth": (3, 4)} | changes))


def test_costs_by_hand(pooling_space):
    subnet = dataclasses.replace(pooling_space.largest(), pooling=(1, 2))  # 4 x 4 patches of 16 channels
    assert subnet.grids == (4, 2, 1, 1)
    workload = lower(subnet)
    gemms = {gemm.name: gemm for gemm in workload.gemms}
    assert [gemms[f"blocks.{b}.fc1"].tokens for b in range(4)] == [17, 5, 2, 2]
    assert gemms["blocks.2.scores"].rows == 2
    assert gemms["pools.1.merge"] == Gemm(
        name="pools.1.merge", kind="merge", tokens=4, inputs=64, rows_high=16, rows_low=0
    )
    assert gemms["pools.2.merge"].tokens == 1
    assert VectorOp(name="pools.2.norm", kind="layernorm", tokens=4, width=16) in workload.vectors
    plain = lower(pooling_space.largest())
    assert workload.weight_bytes == plain.weight_bytes + 2 * 16 * 64
    # the first block, at full resolution, decides
    assert workload.activation_bytes == plain.activation_bytes


def test_an_odd_grid_rounds_up(pooling_space):
    subnet = dataclasses.replace(pooling_space.largest(), image_size=6, pooling=(1,))  # 3 x 3 patches
    assert subnet.grids == (3, 2, 2, 2)
    assert {g.name: g.tokens for g in lower(subnet).gemms}["pools.1.merge"] == 4


def test_subnets_cost_alone_what_they_cost_in_a_population(pooling_space, rng):
    genotypes = pooling_space.sample(rng, 60)
    population = lower_many(pooling_space.arrays(genotypes))
    for index, genotype in enumerate(genotypes):
        subnet = pooling_space.decode(genotype)
        assert population.workload(index, name=subnet.digest) == lower(subnet)
    unpooled = pooling_space.arrays(genotypes[genotypes[:, 3] == 3])
    nowhere = dataclasses.replace(unpooled, pooled=None)
    for index in range(3):
        assert lower_many(unpooled).workload(index, name="") == lower_many(nowhere).workload(index, name="")


def test_the_linears_that_run_are_those_that_are_priced(pooling_space, pooling_supernet, rng):
    for genotype in pooling_space.sample(rng, 20):
        subnet = pooling_space.decode(genotype)
        plans = [plan for _, plan, _ in linears_of(pooling_supernet, subnet)]
        stored = [gemm for gemm in lower(subnet).gemms if gemm.stored]
        assert sorted((p.rows, p.inputs, p.rows_high) for p in plans) == sorted(
            (gemm.rows, gemm.inputs, gemm.rows_high) for gemm in stored
        )


@pytest.mark.parametrize("layer_scale", [None, 0.3])
@pytest.mark.parametrize("learned", [False, True])
def test_an_extracted_subnet_gives_the_outputs_of_the_supernet(pooling_space, rng, layer_scale, learned):
    torch.manual_seed(1)
    model = SupernetViT(pooling_space, layer_scale=layer_scale)
    images = torch.randn(5, 1, 8, 8)
    calibrate(model, [images])
    if learned:
        model.learn_scales()
    stores, once = Stores(model), QuantizedOnce()
    for pooling in POOLING:
        for genotype in pooling_space.sample(rng, 3):
            subnet = dataclasses.replace(pooling_space.decode(genotype), pooling=pooling)
            module = extract(model, subnet)
            with torch.inference_mode():
                logits = model(images, subnet)
                assert torch.equal(module(images), logits)
                assert torch.equal(model(images, subnet, weights=once), logits)
                assert torch.equal(stores.network(subnet)(images), logits)
            fresh = SubnetViT(subnet, layer_scale=layer_scale is not None)
            fresh.load(module.state_dict(), source="memory")
            assert torch.equal(fresh(images), logits)


def test_a_narrow_subnet_pools_with_a_slice_of_the_codes(pooling_space, pooling_supernet):
    wide = dataclasses.replace(pooling_space.largest(), pooling=(1,))
    narrow = dataclasses.replace(wide, embed_dim=12)
    codes = [extract(pooling_supernet, subnet).pools["1"].merge.codes for subnet in (wide, narrow)]
    assert codes[1].shape == (12, 48)
    assert torch.equal(codes[1], codes[0][:12, :48])


def test_calibration_sees_all_ways_of_pooling(pooling_space):
    torch.manual_seed(0)
    model = SupernetViT(pooling_space, layer_scale=0.5)
    before = {place: float(pool.sites.scale[0]) for place, pool in model.pools.items()}
    calibrate(model, [torch.randn(16, 1, 8, 8)])
    assert before == {"1": 1.0, "2": 1.0}
    assert all(0 < float(pool.sites.scale[0]) < 0.1 for pool in model.pools.values())


def test_a_recalibrated_subnet_has_whole_biases_of_its_own_units(pooling_space, pooling_supernet):
    module = extract(pooling_supernet, dataclasses.replace(pooling_space.largest(), pooling=(2,)))
    pool = module.pools["2"]
    pool.merge.bias += 0.1234
    recalibrate(module, [torch.randn(16, 1, 8, 8)])
    units = pool.merge.bias / (pool.merge.scale * pool.sites.scale[0])
    torch.testing.assert_close(units, units.round(), rtol=0, atol=1e-3)


def test_reordering_leaves_the_float_function(pooling_space, pooling_supernet):
    images, subnets = torch.randn(8, 1, 8, 8), []
    for pooling in POOLING:
        subnets.append(dataclasses.replace(pooling_space.largest(), pooling=pooling))
    observer = Observer(quantize=False)
    with torch.no_grad():
        before = [pooling_supernet(images, subnet, observer, weights=unquantized) for subnet in subnets]
        first = pooling_supernet.cls_token.clone()
    reorder(pooling_supernet, [images], generator=torch.Generator().manual_seed(0))
    assert not torch.equal(first, pooling_supernet.cls_token)
    with torch.no_grad():
        after = [pooling_supernet(images, subnet, observer, weights=unquantized) for subnet in subnets]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_gradients_reach_what_pools_and_only_where_it_does(pooling_space, pooling_supernet):
    subnet = dataclasses.replace(pooling_space.largest(), embed_dim=12, pooling=(2,))
    pooling_supernet(torch.randn(4, 1, 8, 8), subnet).sum().backward()
    used, unused = pooling_supernet.pools["2"].merge.weight.grad, pooling_supernet.pools["1"].merge.weight.grad
    assert unused is None
    assert used[:12, :48].abs().min() > 0
    assert used[12:].abs().max() == used[:, 48:].abs().max() == 0


def test_it_has_no_integer_form_yet(pooling_space, pooling_supernet):
    module = extract(pooling_supernet, pooling_space.smallest())
    with pytest.raises(UsageError, match=r"pooling of patches, here before block 1, 2, has no integer form"):
        find_ranges(module, torch.randn(4, 1, 8, 8))


def test_nothing_is_left_out_of_it(pooling_space):
    with pytest.raises(UsageError, match="run: it pools patches; parts can be left out of networks without pooling"):
        check_prunable(pooling_space.smallest(), source="run")
    check_prunable(pooling_space.largest(), source="run")


def test_it_can_be_trained_alone(pooling_space, rng):
    subnet = dataclasses.replace(pooling_space.decode(pooling_space.sample(rng, 1)[0]), pooling=(1, 2))
    model = supernet_of_one(subnet, layer_scale=0.5, seed=0)
    assert all(linear.weight.shape == (plan.rows, plan.inputs) for linear, plan, _ in linears_of(model, subnet))
    assert model(torch.randn(2, 1, 8, 8), subnet).shape == (2, 10)


def test_arrays_of_one_subnet(pooling_space):
    arrays = SubnetArrays.of(pooling_space.smallest())
    assert arrays.pooled.tolist() == [[False, True, True]]
    assert SubnetArrays.of(pooling_space.largest()).pooled is None
    assert len(BLOCK_GENES) * 4 + 4 == len(pooling_space.gene_sizes)
