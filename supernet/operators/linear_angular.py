"""Linear-angular attention after Castling-ViT (You et al., CVPR 2023, arXiv:2211.10526).

Two vectors with an angle theta between them have the similarity 1 - theta / pi. With unit vectors q and k its expansion
begins with 1/2 + (q . k) / pi, which is kept; twice that, averaged over the T tokens, mixes the values:

    out_i = 1/T sum_j (1 + 2/pi q_i . k_j) v_j

Similarities need not be computed one by one: sum_j (k_j v_j) is a matrix of head_dim x head_dim, whatever T is.

How that becomes operations of the hardware. Unit vectors come from the LayerNorm unit, over the channels of a head:
it takes the mean out, so theta is the angle between centred vectors, and what it gives is sqrt(head_dim) long. Its bias
carries the constant term: for centred q and k and any number b, (q + b) . (k + b) = q . k + b^2 head_dim. So with
x' = LayerNorm(x) + sqrt(pi / 2) in every channel,

    q_i' . k_j' = head_dim (unit q_i . unit k_j) + head_dim pi / 2 = head_dim pi / 2 (1 + 2/pi unit q_i . unit k_j)
    context     = 1/T K'^T V                        (head_dim, head_dim), codes of 8 bits
    out         = 2 / (head_dim pi) Q' context

and the constant costs neither a row nor an input: a 65th input would take half as long again in an array of 32.

The codes of q and k go into the upper bytes of the LayerNorm unit's 16-bit elements, so that its integer root is exact
enough for short vectors; that is a matter of wires.

In training alone, softmax attention on the same q, k and v helps (`auxiliary` is its weight, which falls to 0, see
`supernet.step`), with those shares only that are above the mean of their row, 1/T; the paper's code has a threshold of
0.02, which is the mean for 50 tokens. Evaluation, extraction and export are without it.

Different from the paper: angles are of centred vectors; the constant term averages the values (the paper's code adds
half of a token's own value instead, next to which the sum over T tokens is large), and so T divides it all (the code
normalises the length of each output instead). Left out: the depthwise convolution over the values, since the
accelerator has no unit for it. Masks do not learn: the weight of the whole branch falls by a schedule.

Shape suffixes as in `supernet.functional`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hwmodel.integer import FloatArray, Int8Array, IntegerGemm
from hwmodel.workload import IntArray
from supernet.operators.attention import lower_proj, lower_qkv
from supernet.operators.integer import LAYER_NORM_EPSILON, Factors, IntegerNorm, Recorder, naming, requantization
from supernet.operators.registry import OPERATORS, LayerColumns, MixerShapes, TokenMixer

if TYPE_CHECKING:
    from torch import Tensor

    from supernet.functional import Linear, Quantizer

SITES = ("q", "k", "v", "q_unit", "k_unit", "context", "mixed")
#: the constant term of the similarity, as the bias of the LayerNorms
BIAS = math.sqrt(math.pi / 2)
#: the codes of q and k are this many bits up in the elements of the LayerNorm unit
UPPER_BYTE = 8


def lower_linear_angular(layers: LayerColumns, shapes: MixerShapes, active: IntArray) -> IntArray:
    """Lowers qkv, the LayerNorms of all queries and of all keys, both products of each head, and proj."""
    name, tokens, heads = shapes.name, shapes.tokens, shapes.num_heads
    head_dim = np.full_like(tokens, shapes.head_dim)
    none = np.zeros_like(tokens)
    lower_qkv(layers, shapes, active)
    for part in ("q", "k"):
        layers.vector(f"{name}.{part}_unit", "layernorm", tokens=heads * tokens, width=head_dim, count=active)
    for product, rows, inputs in (("context", head_dim, tokens), ("readout", tokens, head_dim)):
        layers.gemm(
            f"{name}.{product}",
            product,
            tokens=rows,
            inputs=inputs,
            rows_high=head_dim,
            rows_low=none,
            count=heads * active,
            stored=False,
        )
    lower_proj(layers, shapes, active)
    # The normalised input beside q, k and v; or those, of which units take the place, beside the mixed values and the
    # context of a head; or the mixed values beside the 16-bit outputs of proj.
    inner = heads * head_dim
    in_block = np.maximum(3 * inner + shapes.embed_dim, inner + 2 * shapes.embed_dim)
    return np.asarray(np.maximum(tokens * in_block, 4 * tokens * inner + head_dim**2))


def linear_angular(
    x_BTD: Tensor, linears: dict[str, Linear], *, head_dim: int, quantizer: Quantizer, auxiliary: float = 0.0
) -> Tensor:
    """The operator on effective weights; see `supernet.functional.Mix` and the module's docstring."""
    from torch.nn.functional import layer_norm

    from supernet.functional import heads_of, project

    q_BHTN, k_BHTN, v_BHTN = heads_of(x_BTD, linears, head_dim=head_dim, quantizer=quantizer)
    q_unit, k_unit = (
        quantizer(f"{site}_unit", layer_norm(part, (head_dim,), eps=LAYER_NORM_EPSILON) + BIAS)
        for site, part in (("q", q_BHTN), ("k", k_BHTN))
    )
    context_BHNN = quantizer("context", k_unit.transpose(-2, -1) @ v_BHTN / x_BTD.shape[1])
    mixed_BHTN = q_unit @ context_BHNN / (head_dim * BIAS**2)
    if auxiliary:
        mixed_BHTN = mixed_BHTN + auxiliary * _masked_softmax(q_BHTN, k_BHTN) @ v_BHTN
    return project(mixed_BHTN, linears, quantizer=quantizer)


def _masked_softmax(q_BHTN: Tensor, k_BHTN: Tensor) -> Tensor:
    """The shares (B, H, T, T) of softmax attention that are above the mean of their row."""
    shares = (q_BHTN @ k_BHTN.transpose(-2, -1) / math.sqrt(q_BHTN.shape[-1])).softmax(dim=-1)
    return shares * (shares > 1 / shares.shape[-1])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class IntegerLinearAngular:
    """The operator between qkv and proj: units of queries and keys, then contexts and mixed values, head by head.

    Factors are mantissa and shift of requantization, (1,) each.
    """

    name: str
    head_dim: int
    q_unit: IntegerNorm
    k_unit: IntegerNorm
    context_factor: Factors
    readout_factor: Factors

    @staticmethod
    def own_scale(values: Mapping[str, FloatArray]) -> float | None:
        """See `IntegerMixer`: every tensor has a site."""
        return None

    @classmethod
    def of(
        cls, name: str, scales: Mapping[str, float], *, head_dim: int, tokens: int, own_scale: float | None
    ) -> IntegerLinearAngular:
        """See `IntegerMixer`."""
        gain, bias = np.ones(head_dim), np.full(head_dim, BIAS)
        q_unit, k_unit = (
            IntegerNorm.of(
                f"{name}.{part}_unit",
                gain,
                bias,
                scale_in=scales[part] / 2**UPPER_BYTE,
                scale_out=scales[f"{part}_unit"],
            )
            for part in ("q", "k")
        )
        context = scales["k_unit"] * scales["v"] / (tokens * scales["context"])
        readout = scales["q_unit"] * scales["context"] / (head_dim * BIAS**2 * scales["mixed"])
        with naming(name):
            factors = [requantization(np.array([factor])) for factor in (context, readout)]
        return cls(
            name=name,
            head_dim=head_dim,
            q_unit=q_unit,
            k_unit=k_unit,
            context_factor=factors[0],
            readout_factor=factors[1],
        )

    def __call__(self, qkv_BTH3N: Int8Array, record: Recorder | None) -> Int8Array:
        """See `IntegerMixer`."""
        return np.stack([self._image(qkv_TH3N, record) for qkv_TH3N in qkv_BTH3N])

    def largest_sums(self, tokens: int) -> Mapping[str, int]:
        """See `IntegerMixer`."""
        return {f"{self.name}.context": tokens * 128 * 128, f"{self.name}.readout": self.head_dim * 128 * 128}

    def _image(self, qkv_TH3N: Int8Array, record: Recorder | None) -> Int8Array:
        """Mixed values (T, H, N) of one image."""
        q_HTN, k_HTN, v_HTN = qkv_TH3N.transpose(2, 1, 0, 3)
        units = []
        for norm, codes in ((self.q_unit, q_HTN), (self.k_unit, k_HTN)):
            elements = codes.astype(np.int16) << UPPER_BYTE
            units.append(norm(elements.reshape(-1, self.head_dim), record).reshape(codes.shape))
        heads = zip(*units, v_HTN, strict=True)
        return np.stack([self._head(q_TN, k_TN, v_TN, record) for q_TN, k_TN, v_TN in heads], axis=1)

    def _head(self, q_TN: Int8Array, k_TN: Int8Array, v_TN: Int8Array, record: Recorder | None) -> Int8Array:
        # A row of the context for each channel of the values: as the rows of the second product lie.
        context = self._product(np.ascontiguousarray(v_TN.T), np.ascontiguousarray(k_TN.T), self.context_factor)
        readout = self._product(q_TN, context.outputs(), self.readout_factor)
        if record is not None:
            record(f"{self.name}.context", context)
            record(f"{self.name}.readout", readout)
        return readout.outputs()

    @staticmethod
    def _product(activations: Int8Array, rows: Int8Array, factor: Factors) -> IntegerGemm:
        return IntegerGemm(
            activations=activations,
            weights=rows,
            rows_high=len(rows),
            bias=np.zeros(len(rows), dtype=np.int32),
            mantissa=factor[0].repeat(len(rows)),
            shift=factor[1].repeat(len(rows)),
            least=-127,
        )


def __getattr__(name: str) -> Any:
    """Makes the torch class when it is asked for first, so that costs are computed without torch."""
    if name != "ElasticLinearAngular":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from supernet.vit import ElasticAttention

    members = {"__module__": __name__, "site_names": SITES, "mix": staticmethod(linear_angular)}
    globals()[name] = made = type(name, (ElasticAttention,), members)
    return made


OPERATORS.register("linear-angular")(
    TokenMixer(lower=lower_linear_angular, module=f"{__name__}:ElasticLinearAngular", integer=IntegerLinearAngular)
)
