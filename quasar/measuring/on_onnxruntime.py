"""Operators and networks in ONNX Runtime, cut out of the QDQ models that an export writes.

What is timed is what would be deployed: `quasar.export.onnx_qdq.build_qdq` makes a model, and an operator is the part
of it between two tensors of codes, with the quantization that belongs to it. Weights are random. ONNX Runtime expands
4-bit weights when it loads a model, so all rows run at 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from quasar.export.onnx_qdq import build_qdq
from quasar.export.onnx_session import session_options
from quasar.export.optional import require
from quasar.measuring.runtime import COPIES, LAYERS, Point, Run, Timed, linear_copies, small_subnet
from supernet.standalone import QuantLinear, SubnetViT
from supernet.subnet import Subnet

if TYPE_CHECKING:
    from onnx import ModelProto

#: tensors of a block by which operators are cut out: what goes in, and what comes out
_CUTS = {
    "linear_up": (["norm2_site.clipped"], ["fc1_site.clipped"]),
    "linear_down": (["gelu_site.codes"], ["fc2"]),
    "attention": (["q_site.clipped", "k_site.clipped", "v_site.clipped"], ["mixed_site.clipped"]),
    "layernorm": (["residual1"], ["norm2_site.clipped"]),
    "gelu": (["fc1_site.clipped"], ["gelu_site.codes"]),
    "residual": (["residual1", "fc2"], ["residual2"]),
}


class OnnxRuntime:
    """See `quasar.measuring.runtime.HostRuntime`."""

    name = "onnxruntime"
    form = "the exported QDQ model: products of 8-bit codes, float32 between them"
    packages = ("onnxruntime",)
    layers = LAYERS | {"qkv": {"linear_up": 3}}  # q, k and v are products of their own

    def __init__(self, threads: int) -> None:
        self._ort = require("onnxruntime")
        self._onnx = require("onnx")
        self._options = session_options()
        self._options.intra_op_num_threads = threads
        self._options.log_severity_level = 3  # cut models have names that it warns of
        self._tensors: dict[tuple[Any, ...], Any] = {}

    def call(self) -> Run:
        """See `HostRuntime`."""
        helper, floats = self._onnx.helper, self._onnx.TensorProto.FLOAT
        ends = [helper.make_tensor_value_info(name, floats, [1, 1]) for name in ("x", "y")]
        node = helper.make_node("Identity", ["x"], ["y"])
        graph = helper.make_graph([node], "call", ends[:1], ends[1:])
        opset = helper.make_opsetid("", 21)
        return self._bound(helper.make_model(graph, opset_imports=[opset], ir_version=10), 1)

    def linears(self, tokens: Sequence[int], *, width: int, hidden: int) -> dict[Point, Timed]:
        """See `HostRuntime`."""
        copies = {count: linear_copies(count, width, hidden) for count in tokens}
        model = self._model(small_subnet(width=width, hidden=hidden, depth=max(copies.values())))
        points: dict[Point, Timed] = {}
        for name, inputs, rows in (("linear_up", width, hidden), ("linear_down", hidden, width)):
            sessions = {number: self._session(self._cut(model, name, number)) for number in set(copies.values())}
            for count, number in copies.items():
                points[Point(name, (count, inputs, rows))] = Timed(self._run(sessions[number], count), number)
        return points

    def elementwise(self, tokens: Sequence[int], *, width: int) -> dict[Point, Timed]:
        """See `HostRuntime`."""
        model = self._model(small_subnet(width=width, hidden=width, depth=COPIES))
        points: dict[Point, Timed] = {}
        for name in ("layernorm", "gelu", "residual"):
            session = self._session(self._cut(model, name, COPIES))
            points |= {Point(name, (count, width)): Timed(self._run(session, count), COPIES) for count in tokens}
        return points

    def attention(self, *, grid: int, heads: int, head_dim: int) -> dict[Point, Timed]:
        """See `HostRuntime`."""
        subnet = small_subnet(heads=heads, head_dim=head_dim, grid=grid, depth=COPIES)
        model = self._cut(self._model(subnet), "attention", COPIES)
        return {Point("attention", (subnet.tokens, heads, head_dim)): Timed(self._bound(model, subnet.tokens), COPIES)}

    def patch_embed(self, *, grid: int, patch_size: int, width: int) -> dict[Point, Timed]:
        """See `HostRuntime`."""
        subnet = small_subnet(width=width, grid=grid, patch_size=patch_size)
        model = self._between(self._model(subnet), ["images"], ["patch_tokens"])
        point = Point("patch_embed", (grid**2, subnet.in_chans * patch_size**2, width))
        return {point: Timed(self._bound(model, 1), 1)}

    def network(self, subnet: Subnet) -> Run:
        """See `HostRuntime`."""
        return self._bound(_model(subnet), 1)

    def _model(self, subnet: Subnet) -> ModelProto:
        """The exported form with the shapes of all tensors, so that it can be cut."""
        model: ModelProto = self._onnx.shape_inference.infer_shapes(_model(subnet), data_prop=True)
        return model

    def _cut(self, model: ModelProto, operator: str, copies: int) -> ModelProto:
        """One operator of each of the first `copies` blocks."""
        inputs, outputs = ([f"blocks.{b}.{end}" for b in range(copies) for end in ends] for ends in _CUTS[operator])
        return self._between(model, inputs, outputs)

    def _between(self, model: ModelProto, inputs: list[str], outputs: list[str]) -> ModelProto:
        from onnx.utils import Extractor

        part: ModelProto = Extractor(model).extract_model(inputs, outputs)
        return part

    def _session(self, model: ModelProto) -> Any:
        return self._ort.InferenceSession(model.SerializeToString(), self._options, providers=["CPUExecutionProvider"])

    def _bound(self, model: ModelProto, rows: int) -> Run:
        return self._run(self._session(model), rows)

    def _run(self, session: Any, rows: int) -> Run:
        """A run on random inputs of which those of unknown length have `rows`, with all memory taken beforehand.

        Tensors of one kind share their memory, as in a network, where each layer reuses what one before it has left.
        """
        binding = session.io_binding()
        for entry in session.get_inputs():
            shape = tuple(size if isinstance(size, int) else rows for size in entry.shape)
            key = ("in", shape, entry.type)
            if key not in self._tensors:
                values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
                if entry.type == "tensor(uint8)":
                    values = np.clip(np.rint(128 + 40 * values), 1, 255).astype(np.uint8)
                self._tensors[key] = self._ort.OrtValue.ortvalue_from_numpy(values)
            binding.bind_ortvalue_input(entry.name, self._tensors[key])
        for entry in session.get_outputs():
            binding.bind_output(entry.name, "cpu")
        session.run_with_iobinding(binding)
        for entry, value in zip(session.get_outputs(), binding.get_outputs(), strict=True):
            tensor = self._tensors.setdefault(("out", tuple(value.shape()), entry.type), value)
            binding.bind_ortvalue_output(entry.name, tensor)
        return partial(session.run_with_iobinding, binding)


def _model(subnet: Subnet) -> ModelProto:
    """The exported form of a subnet with random weights, of a size that keeps activations about 1."""
    module = SubnetViT(subnet, layer_scale=False).eval()
    rng = torch.Generator().manual_seed(0)
    for linear in module.modules():
        if isinstance(linear, QuantLinear):
            plan = linear.plan
            top = 2 ** (plan.low_bits - 1) - 1  # codes that rows of both precisions hold
            linear.codes.copy_(torch.randint(-top, top + 1, linear.codes.shape, generator=rng))
            linear.scale.fill_(1 / (top * plan.inputs**0.5))
    return build_qdq(module)
