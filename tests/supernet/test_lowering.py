import dataclasses
import subprocess
import sys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from hwmodel.workload import Gemm
from supernet.lowering import lower, lower_many
from supernet.operators.registry import OPERATORS, TokenMixer
from supernet.plan import attention_plan, head_plan, mlp_plan, patch_plan
from supernet.space import SearchSpace


def test_a_small_subnet_by_hand(make_space):
    space = make_space(depth=(1,))
    subnet = dataclasses.replace(
        space.largest(), blocks=(dataclasses.replace(space.largest().blocks[0], qkv_ratio=0.3, fc1_ratio=0.3),)
    )
    workload = lower(subnet)
    gemms = {gemm.kind: gemm for gemm in workload.gemms}
    # 8 x 8 pixels in patches of 2 x 2: 16 patches and the class token; 3 heads of 4; 16 channels; 32 hidden units
    assert gemms["patch_embed"] == Gemm(
        name="patch_embed", kind="patch_embed", tokens=16, inputs=4, rows_high=16, rows_low=0
    )
    # ceil(0.3 * 4) = 2 of the 4 rows of each head, in each of q, k and v
    assert (gemms["qkv"].tokens, gemms["qkv"].inputs) == (17, 16)
    assert (gemms["qkv"].rows_high, gemms["qkv"].rows_low) == (3 * 3 * 2, 3 * 3 * 2)
    assert (gemms["scores"].inputs, gemms["scores"].rows, gemms["scores"].count) == (4, 17, 3)
    assert (gemms["mix"].inputs, gemms["mix"].rows, gemms["mix"].count) == (17, 4, 3)
    assert not gemms["scores"].stored
    assert (gemms["fc1"].rows_high, gemms["fc1"].rows_low) == (10, 22)
    assert (gemms["fc2"].inputs, gemms["fc2"].rows_high) == (32, 16)
    assert (gemms["head"].tokens, gemms["head"].rows) == (1, 10)
    assert sum(v.kind == "layernorm" for v in workload.vectors) == 3
    # at its peak: 17 tokens of (16 in, 32 hidden) or (36 q, k, v; 12 mixed; 17 scores), and 16-bit residuals
    assert workload.activation_bytes == 17 * (36 + 17 + 12) + 2 * 17 * 16


def choices(values, most=4):
    return st.lists(values, min_size=1, max_size=most, unique=True).map(tuple)


@st.composite
def spaces(draw):
    """Random spaces; a third of them with more shares of rows than are told apart one by one."""
    ratios = choices(st.floats(0, 1)) | choices(st.integers(0, 50).map(lambda i: i / 50), most=51)
    return SearchSpace(
        num_classes=draw(st.integers(1, 20)),
        in_chans=draw(st.integers(1, 3)),
        patch_size=2,
        head_dim=4,
        image_size=draw(choices(st.integers(1, 8).map(lambda i: 2 * i))),
        embed_dim=draw(choices(st.integers(1, 12).map(lambda i: 4 * i))),
        depth=draw(choices(st.integers(1, 6))),
        num_heads=draw(st.just("embed") | choices(st.integers(1, 5))),
        mlp_ratio=draw(choices(st.floats(0.5, 5))),
        high_precision_ratio=draw(ratios),
        weight_bits=draw(st.sampled_from([(4, 8), (2, 6), (8, 8)])),
    )


@settings(deadline=None)
@given(
    space=spaces(),
    seed=st.integers(0, 2**32 - 1),
    count=st.sampled_from([1, 3, 200]),
    rows=st.integers(1, 20),
    inputs=st.sampled_from([1, 2, 4, 8, 12, 20]),  # words that fit the activation stream
    backend=st.sampled_from(["dual", "atomic"]),
    activations=st.sampled_from(["onchip", "ddr"]),
)
def test_a_subnet_costs_alone_what_it_costs_in_a_population(*, space, seed, count, rows, inputs, backend, activations):
    accelerator = AcceleratorConfig(
        array_rows=rows,
        array_inputs=inputs,
        backend=backend,
        clock_mhz=150,
        weight_stream_bits=64,
        activation_stream_bits=32,
        output_stream_bits=16,
        activations=activations,
        activation_buffer_bytes=5000,
        max_tokens=50,
        vector_lanes=3,
    )
    model = FpgaCostModel(load_device("zcu102"), accelerator)
    genotypes = space.sample(np.random.default_rng(seed), count)
    batch = model.estimate_many(lower_many(space.arrays(genotypes)))
    for index in range(0, count, 40):
        alone = model.estimate(lower(space.decode(genotypes[index])))
        assert alone.cycles == batch.cycles[index]
        assert alone.latency_ms == batch.latency_ms[index]
        assert alone.energy_mj == batch.energy_mj[index]
        assert (alone.violations == ()) == batch.fits[index]


def test_genes_of_inactive_blocks_have_no_meaning(make_space, rng):
    space = make_space()
    arrays = space.arrays(space.sample(rng, 20))
    beyond = np.arange(space.max_depth) >= arrays.depth[:, None]
    spoilt = dataclasses.replace(
        arrays,
        num_heads=np.where(beyond, -7, arrays.num_heads),
        operator=np.where(beyond, -1, arrays.operator),
        mlp_ratio=np.where(beyond, np.nan, arrays.mlp_ratio),
    )
    for index in range(20):
        assert lower_many(spoilt).workload(index, name="") == lower_many(arrays).workload(index, name="")


def test_another_operator_is_lowered_for_the_blocks_that_have_it(make_space, rng, monkeypatch):
    def lower_pooling(layers, shapes, active):
        layers.vector(f"{shapes.name}.pool", "residual", tokens=shapes.tokens, width=shapes.embed_dim, count=2 * active)
        return shapes.tokens * shapes.embed_dim

    monkeypatch.setattr(
        OPERATORS, "_entries", {**OPERATORS._entries, "pooling": TokenMixer(lower=lower_pooling, module="")}
    )
    space = make_space(operator=("pooling", "attention"))
    genotypes = space.sample(rng, 50)
    population = lower_many(space.arrays(genotypes))
    for index, genotype in enumerate(genotypes):
        subnet = space.decode(genotype)
        workload = population.workload(index, name=subnet.digest)
        assert workload == lower(subnet)
        names = {layer.name for layer in (*workload.gemms, *workload.vectors)}
        for b, block in enumerate(subnet.blocks):
            pools = block.operator == "pooling"
            assert (f"blocks.{b}.pool" in names, f"blocks.{b}.qkv" in names) == (pools, not pools)


@given(seed=st.integers(0, 2**32 - 1))
def test_one_and_many_agree(make_space, seed):
    space = make_space()
    genotypes = space.sample(np.random.default_rng(seed), 4)
    population = lower_many(space.arrays(genotypes))
    for index, genotype in enumerate(genotypes):
        subnet = space.decode(genotype)
        workload = lower(subnet)
        assert population.workload(index, name=subnet.digest) == workload
        assert population.macs()[index] == workload.macs
        assert population.weight_bytes()[index] == workload.weight_bytes


@given(seed=st.integers(0, 2**32 - 1))
def test_the_hardware_runs_the_rows_that_the_network_has(make_space, seed):
    space = make_space()
    subnet = space.decode(space.sample(np.random.default_rng(seed), 1)[0])
    plans = {"patch_embed": patch_plan(subnet), "head": head_plan(subnet)}
    for index, block in enumerate(subnet.blocks):
        linears = attention_plan(subnet, block) | mlp_plan(subnet, block)
        plans |= {f"blocks.{index}.{name}": plan for name, plan in linears.items()}
    stored = {gemm.name: gemm for gemm in lower(subnet).gemms if gemm.stored}
    assert stored.keys() == plans.keys()
    for name, plan in plans.items():
        assert (stored[name].inputs, stored[name].rows) == (plan.inputs, plan.rows)
        assert stored[name].rows_high == plan.rows_high == plan.is_high.sum()


def test_space_subnet_and_lowering_load_without_torch():
    code = (
        "import sys, supernet.space, supernet.subnet, supernet.lowering, supernet.operators.attention, quasar.config;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
