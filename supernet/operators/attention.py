"""Multi-head softmax attention: its cost on the hardware, its integer form, and the name of its torch module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel.integer import FloatArray, Int8Array, IntegerGemm
from hwmodel.integer_vector import IntegerSoftmax, exponential_table, softmax_constants
from hwmodel.workload import IntArray
from supernet.operators.integer import Factors, Recorder, requantization
from supernet.operators.registry import OPERATORS, LayerColumns, MixerShapes, TokenMixer
from supernet.subnet import high_precision_rows


def lower_qkv(layers: LayerColumns, shapes: MixerShapes, active: IntArray) -> None:
    """Lowers qkv. Its 8-bit rows are the first of each head in each of q, k and v: a multiple of heads."""
    heads, head_dim = shapes.num_heads, np.full_like(shapes.tokens, shapes.head_dim)
    high = 3 * heads * high_precision_rows(shapes.qkv_ratio, head_dim)
    layers.gemm(
        f"{shapes.name}.qkv",
        "qkv",
        tokens=shapes.tokens,
        inputs=shapes.embed_dim,
        rows_high=high,
        rows_low=3 * heads * head_dim - high,
        count=active,
    )


def lower_proj(layers: LayerColumns, shapes: MixerShapes, active: IntArray) -> None:
    """Lowers the output projection."""
    high = high_precision_rows(shapes.proj_ratio, shapes.embed_dim)
    layers.gemm(
        f"{shapes.name}.proj",
        "proj",
        tokens=shapes.tokens,
        inputs=shapes.num_heads * shapes.head_dim,
        rows_high=high,
        rows_low=shapes.embed_dim - high,
        count=active,
    )


def lower_attention(layers: LayerColumns, shapes: MixerShapes, active: IntArray) -> IntArray:
    """Lowers qkv, the two products of each head, the softmax between them, and the output projection."""
    name, tokens, heads = shapes.name, shapes.tokens, shapes.num_heads
    head_dim, none = np.full_like(tokens, shapes.head_dim), np.zeros_like(tokens)
    lower_qkv(layers, shapes, active)
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
    lower_proj(layers, shapes, active)
    # The normalised input beside q, k and v; or those beside one head's scores and the mixed output; or that beside
    # the 16-bit outputs of proj.
    inner = heads * head_dim
    before = 3 * inner + np.maximum(shapes.embed_dim, tokens + inner)
    return np.asarray(tokens * np.maximum(before, inner + 2 * shapes.embed_dim))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class IntegerAttention:
    """Softmax attention between qkv and proj: scores, numerators and their sums, mixed values, head by head.

    `score_factor` requantizes q @ k.T, `exponentials` is the softmax's table, `mix_factor` is what a mixed value is
    multiplied by beside one over the sum; factors are mantissa and shift.
    """

    name: str
    head_dim: int
    score_factor: Factors  # (1,) each
    exponentials: NDArray[np.uint8]
    mix_factor: tuple[int, int]

    @staticmethod
    def own_scale(values: Mapping[str, FloatArray]) -> float | None:
        """See `IntegerMixer`: of the scores, which training keeps as floats."""
        q_BHTN, k_BHTN = values["q"], values["k"]
        largest = float(np.abs(q_BHTN @ k_BHTN.swapaxes(-2, -1)).max())
        return largest / math.sqrt(q_BHTN.shape[-1]) / 127

    @classmethod
    def of(
        cls, name: str, scales: Mapping[str, float], *, head_dim: int, tokens: int, own_scale: float | None
    ) -> IntegerAttention:
        """See `IntegerMixer`."""
        assert own_scale is not None
        q, k, v, mixed = (scales[site] for site in ("q", "k", "v", "mixed"))
        return cls(
            name=name,
            head_dim=head_dim,
            score_factor=requantization(np.array([q * k * head_dim**-0.5 / own_scale])),
            exponentials=exponential_table(own_scale),
            mix_factor=softmax_constants(v / mixed),
        )

    def __call__(self, qkv_BTH3N: Int8Array, record: Recorder | None) -> Int8Array:
        """See `IntegerMixer`."""
        batch, tokens, heads, _, head_dim = qkv_BTH3N.shape
        mixed = np.empty((batch, tokens, heads, head_dim), dtype=np.int8)
        for image in range(batch):
            for head in range(heads):
                q_TN, k_TN, v_TN = qkv_BTH3N[image, :, head].transpose(1, 0, 2)
                mixed[image, :, head] = self._head(q_TN, k_TN, v_TN, record)
        return mixed

    def largest_sums(self, tokens: int) -> Mapping[str, int]:
        """See `IntegerMixer`."""
        return {f"{self.name}.scores": self.head_dim * 128 * 128, f"{self.name}.mix": tokens * 255 * 128}

    def _head(self, q_TN: Int8Array, k_TN: Int8Array, v_TN: Int8Array, record: Recorder | None) -> Int8Array:
        tokens = len(q_TN)
        scores = IntegerGemm(
            activations=q_TN,
            weights=k_TN,
            rows_high=tokens,
            bias=np.zeros(tokens, dtype=np.int32),
            mantissa=self.score_factor[0].repeat(tokens),
            shift=self.score_factor[1].repeat(tokens),
            least=-127,
        )
        softmax = IntegerSoftmax(
            scores=scores.outputs(),
            table=self.exponentials,
            numerator=self.mix_factor[0],
            exponent=self.mix_factor[1],
        )
        mix = IntegerGemm(
            activations=softmax.outputs(),
            unsigned_activations=True,
            weights=np.ascontiguousarray(v_TN.T),
            rows_high=self.head_dim,
            bias=np.zeros(self.head_dim, dtype=np.int32),
            mantissa=np.full(self.head_dim, 2**15),
            shift=np.full(self.head_dim, 1),
            token_factors=softmax.factors(),
            least=-127,
        )
        if record is not None:
            record(f"{self.name}.scores", scores)
            record(f"{self.name}.softmax", softmax)
            record(f"{self.name}.mix", mix)
        return mix.outputs()


OPERATORS.register("attention")(
    TokenMixer(lower=lower_attention, module="supernet.vit:ElasticAttention", integer=IntegerAttention)
)
