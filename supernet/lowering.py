"""From subnets to what the hardware executes; the same code serves one subnet and a population of thousands.

Biases, LayerScale and requantization ride on the drain of a product, and GELU is a table there, so none of them is a
layer of its own. Activations are `act_bits` wide, the residual stream 16 bits.
"""

from __future__ import annotations

import numpy as np

from hwmodel.workload import Population, Workload
from supernet.operators.registry import LayerColumns, MixerShapes, operator
from supernet.subnet import Subnet, SubnetArrays, hidden_units, high_precision_rows

RESIDUAL_BYTES = 2


def lower(subnet: Subnet) -> Workload:
    """The workload of one subnet for one image."""
    return lower_many(SubnetArrays.of(subnet)).workload(0, name=subnet.digest)


def lower_many(subnets: SubnetArrays) -> Population:
    """The workloads of N subnets, with layers aligned in columns."""
    width, depth = subnets.embed_dim, subnets.depth
    patches = (subnets.image_size // subnets.patch_size) ** 2
    tokens = patches + 1
    one, none = np.ones_like(tokens), np.zeros_like(tokens)
    act_bytes = -(-subnets.act_bits // 8)
    layers = LayerColumns()
    patch_inputs = np.full_like(tokens, subnets.in_chans * subnets.patch_size**2)
    layers.gemm(
        "patch_embed",
        "patch_embed",
        tokens=patches,
        inputs=patch_inputs,
        rows_high=width,
        rows_low=none,
        count=one,
    )
    peak = patches * patch_inputs * act_bytes
    for b in range(int(depth.max())):
        name = f"blocks.{b}"
        active = (depth > b).astype(np.int64)
        ratios = subnets.high_precision_ratio[:, b]
        shapes = MixerShapes(
            name=name,
            tokens=tokens,
            embed_dim=width,
            num_heads=subnets.num_heads[:, b],
            head_dim=subnets.head_dim,
            qkv_ratio=ratios[:, 0],
            proj_ratio=ratios[:, 1],
        )
        layers.vector(f"{name}.norm1", "layernorm", tokens=tokens, width=width, count=active)
        for index, mixer in enumerate(subnets.operators):
            chosen = active * (subnets.operator[:, b] == index)
            peak = np.maximum(peak, operator(mixer).lower(layers, shapes, chosen) * chosen * act_bytes)
        layers.vector(f"{name}.residual1", "residual", tokens=tokens, width=width, count=active)
        layers.vector(f"{name}.norm2", "layernorm", tokens=tokens, width=width, count=active)
        hidden = hidden_units(subnets.mlp_ratio[:, b], width)
        fc1_high = high_precision_rows(ratios[:, 2], hidden)
        layers.gemm(
            f"{name}.fc1",
            "fc1",
            tokens=tokens,
            inputs=width,
            rows_high=fc1_high,
            rows_low=hidden - fc1_high,
            count=active,
        )
        fc2_high = high_precision_rows(ratios[:, 3], width)
        layers.gemm(
            f"{name}.fc2",
            "fc2",
            tokens=tokens,
            inputs=hidden,
            rows_high=fc2_high,
            rows_low=width - fc2_high,
            count=active,
        )
        layers.vector(f"{name}.residual2", "residual", tokens=tokens, width=width, count=active)
        peak = np.maximum(peak, tokens * (width + hidden) * active * act_bytes)
    layers.vector("norm", "layernorm", tokens=one, width=width, count=one)
    classes = np.full_like(tokens, subnets.num_classes)
    layers.gemm("head", "head", tokens=one, inputs=width, rows_high=classes, rows_low=none, count=one)
    return Population(
        gemms=layers.gemm_columns(),
        vectors=layers.vector_columns(),
        activation_bytes=peak + tokens * width * RESIDUAL_BYTES,
        high_bits=subnets.high_bits,
        low_bits=subnets.low_bits,
        act_bits=subnets.act_bits,
    )
