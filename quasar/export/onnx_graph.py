"""Collects the nodes and constants of an ONNX graph. Every node has one output, which has the node's name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quasar.export.optional import require

if TYPE_CHECKING:
    from onnx import ModelProto

#: the first with 4-bit integers
OPSET = 21
#: the file format of that opset; by default the onnx package writes newer ones, which runtimes refuse
IR_VERSION = 10

#: sizes of a tensor; a text names a size that is known at run time only
Shape = tuple[int | str, ...]


class GraphBuilder:
    """A graph under construction. Names are those of the layers, so that a reader of the graph finds his way."""

    def __init__(self) -> None:
        self._onnx = require("onnx")
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}

    def op(self, kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        """Adds a node and gives its output."""
        self._nodes.append(self._onnx.helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Adds a constant; a name that is used again must mean the same values."""
        self._constants[name] = self._onnx.numpy_helper.from_array(array, name)
        return name

    def int4(self, name: str, codes: NDArray[np.int8]) -> str:
        """Adds a constant of 4-bit integers, two to a byte, the first in the low half."""
        nibbles = codes.reshape(-1).astype(np.uint8) & 0xF
        pairs = np.pad(nibbles, (0, nibbles.size % 2)).reshape(-1, 2)
        packed = pairs[:, 0] | pairs[:, 1] << 4
        self._constants[name] = self._onnx.helper.make_tensor(
            name, self._onnx.TensorProto.INT4, codes.shape, packed.tobytes(), raw=True
        )
        return name

    def cast(self, x: str, kind: str, *, name: str) -> str:
        """Adds a cast to a type by its name in ONNX, such as "INT8"."""
        return self.op("Cast", x, name=name, to=self._onnx.TensorProto.DataType.Value(kind))

    def double(self, x: str, *, name: str) -> str:
        """Adds a cast to float64."""
        return self.cast(x, "DOUBLE", name=name)

    def reshape(self, x: str, shape: tuple[int, ...], *, name: str) -> str:
        """Adds a reshape; -1 stands for what is left."""
        sizes = self.constant(f"shape.{'x'.join(map(str, shape))}", np.array(shape, dtype=np.int64))
        return self.op("Reshape", x, sizes, name=name)

    def model(
        self,
        *,
        name: str,
        inputs: dict[str, Shape],
        outputs: dict[str, Shape],
        metadata: dict[str, str],
        input_type: str = "FLOAT",
        output_type: str = "FLOAT",
        domains: Mapping[str, int] | None = None,
    ) -> ModelProto:
        """The model with inputs and outputs of these shapes, and of types by name, after onnx has checked it.

        Args:
            domains: versions of domains beside ONNX's own, by name.
        """
        helper, types = self._onnx.helper, self._onnx.TensorProto.DataType
        ends = [
            [helper.make_tensor_value_info(key, types.Value(kind), shape) for key, shape in values.items()]
            for values, kind in ((inputs, input_type), (outputs, output_type))
        ]
        model: ModelProto = helper.make_model(
            helper.make_graph(self._nodes, name, *ends, initializer=list(self._constants.values())),
            opset_imports=[helper.make_opsetid(*domain) for domain in {"": OPSET, **(domains or {})}.items()],
            ir_version=IR_VERSION,
            producer_name="quasar",
            producer_version=version("quasar-nas"),
        )
        helper.set_model_props(model, metadata)
        self._onnx.checker.check_model(model, full_check=True)
        return model
