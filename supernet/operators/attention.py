"""Multi-head softmax attention: its cost on the hardware, and the name of its torch module."""

from __future__ import annotations

import numpy as np

from hwmodel.workload import IntArray
from supernet.operators.registry import OPERATORS, LayerColumns, MixerShapes, TokenMixer
from supernet.subnet import high_precision_rows


def lower_attention(layers: LayerColumns, shapes: MixerShapes, active: IntArray) -> IntArray:
    """Lowers qkv, the two products of each head, the softmax between them, and the output projection.

    The 8-bit rows of qkv are the first of each head in each of q, k and v, so their number is a multiple of heads.
    """
    name, tokens, heads = shapes.name, shapes.tokens, shapes.num_heads
    head_dim = np.full_like(tokens, shapes.head_dim)
    inner = heads * head_dim
    qkv_high = 3 * heads * high_precision_rows(shapes.qkv_ratio, head_dim)
    layers.gemm(
        f"{name}.qkv",
        "qkv",
        tokens=tokens,
        inputs=shapes.embed_dim,
        rows_high=qkv_high,
        rows_low=3 * inner - qkv_high,
        count=active,
    )
    none = np.zeros_like(tokens)
    layers.gemm(
        f"{name}.scores",
        "scores",
        tokens=tokens,
        inputs=head_dim,
        rows_high=tokens,
        rows_low=none,
        count=heads * active,
        stored=False,
    )
    layers.vector(f"{name}.softmax", "softmax", tokens=tokens, width=tokens, count=heads * active)
    layers.gemm(
        f"{name}.mix",
        "mix",
        tokens=tokens,
        inputs=tokens,
        rows_high=head_dim,
        rows_low=none,
        count=heads * active,
        stored=False,
    )
    proj_high = high_precision_rows(shapes.proj_ratio, shapes.embed_dim)
    layers.gemm(
        f"{name}.proj",
        "proj",
        tokens=tokens,
        inputs=inner,
        rows_high=proj_high,
        rows_low=shapes.embed_dim - proj_high,
        count=active,
    )
    # The normalised input beside q, k and v; or those beside one head's scores and the mixed output; or that beside
    # the 16-bit outputs of proj.
    before = 3 * inner + np.maximum(shapes.embed_dim, tokens + inner)
    return np.asarray(tokens * np.maximum(before, inner + 2 * shapes.embed_dim))


OPERATORS.register("attention")(TokenMixer(lower=lower_attention, module="supernet.vit:ElasticAttention"))
