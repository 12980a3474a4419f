import dataclasses
import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hwmodel.workload import Gemm
from supernet.lowering import lower, lower_many
from supernet.plan import attention_plan, head_plan, mlp_plan, patch_plan


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
