"""The profile of any model of timm, from the operators of torch (aten) that one image runs through.

The model has no memory for its weights ("meta" tensors), so nothing is computed and nothing downloaded. Of every
operator that is no view are counted

    FLOPs   of products and convolutions by torch's own formulas (`torch.utils.flop_counter`), two for each
            multiply-accumulate; of all others for each element of the result: softmax 5 and norms 8, as in
            `hwmodel.processor_cost`, a batch norm 2, pooling one for each element that it reads, activation and
            element-wise functions 1, data movement none
    bytes   all tensors that it takes and gives, once

On a CPU or GPU the time of an operator is its roofline,

    max(FLOPs / (peak * e_c), bytes / (bandwidth * e_m)) + launch,

with products and convolutions at the precision of the processor and the rest in fp32 on numbers of 2 bytes (of 4 where
there is no fp16), as there. That is how torch runs a model operator by operator: nothing is fused, unlike in the model
of plain ViTs, where bias, GELU and scaling ride on the product before them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from hwmodel.device import Device
from hwmodel.errors import UsageError
from hwmodel.measured import MeasuredHost
from hwmodel.processor import PRECISION_BYTES, Processor
from hwmodel.registry import unknown_name
from quasar.profiling.rows import Profile, Row, rows_of

#: type of operator by its name in aten; all others are element-wise functions, or data movement if they give what they
#: got in another order
_KINDS = {
    "attention products": ("bmm", "baddbmm"),
    "linear": ("mm", "addmm"),
    "softmax": ("_softmax", "_safe_softmax"),
    "layer norm": ("native_layer_norm",),
    "batch norm": ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"),
    "other norm": ("native_group_norm", "linalg_vector_norm", "var_mean", "_fused_rms_norm"),
    "GELU": ("gelu",),
    "other activation": (
        *("relu", "relu_", "silu", "silu_", "hardswish", "hardswish_", "sigmoid", "sigmoid_", "hardsigmoid"),
        *("hardsigmoid_", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_", "elu", "elu_", "mish", "mish_", "tanh"),
    ),
    "pooling": ("mean", "avg_pool2d", "max_pool2d_with_indices", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "amax"),
    "addition": ("add", "add_"),
    "data movement": (
        *("cat", "clone", "copy_", "index", "constant_pad_nd", "roll", "_to_copy", "stack", "repeat", "gather"),
        *(
            "index_select",
            "reflection_pad2d",
            "fill_",
            "zeros",
            "ones",
            "arange",
            "im2col",
            "col2im",
            "flip",
            "scatter",
        ),
        *(
            "upsample_bilinear2d",
            "upsample_bicubic2d",
            "_upsample_bicubic2d_aa",
            "upsample_nearest2d",
            "pixel_unshuffle",
        ),
    ),
}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}
_OTHER = "other element-wise"
#: poolings that read a window for each element of the result; the others read each element once
_WINDOW_POOLING = {"avg_pool2d", "max_pool2d_with_indices"}
#: FLOPs for each element of the result
_WORK = {"softmax": 5, "layer norm": 8, "other norm": 8, "batch norm": 2, "data movement": 0}
#: operators that give memory without writing it, or the same memory under another shape
_FREE = {"empty", "empty_like", "new_empty", "new_empty_strided", "empty_strided", "_unsafe_view", "detach", "alias"}
#: what the accelerator of a board can run; a pointwise convolution and a patch embedding are linears there
ON_BOARD = frozenset(
    {"linear", "pointwise convolution", "patch embedding", "attention products", "softmax", "layer norm", "addition"}
    | {"GELU", "data movement"}
)
_PRODUCTS = frozenset(
    {"linear", "attention products", "convolution", "depthwise convolution", "pointwise convolution", "patch embedding"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """One operator: its type, FLOPs, and numbers that it reads and writes."""

    kind: str
    flops: int
    numbers: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a product or convolution."""
        return self.flops // 2 if self.kind in _PRODUCTS else 0


class OperatorCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operator that runs inside its context; see the module's docstring."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[Counted] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operator and notes it."""
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.is_view or name in _FREE:
            return result
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not results:
            return result
        kind = _convolution(args) if name == "convolution" else _KIND_OF.get(name, _OTHER)
        numbers = sum(tensor.numel() for tensor in (*given, *results))
        formula = flop_registry.get(func.overloadpacket)
        if kind in _PRODUCTS and formula is not None:
            flops = int(formula(*args, **(kwargs or {}), out_val=result))
        else:
            of_window = name in _WINDOW_POOLING
            worked_on = given[0] if kind == "pooling" and not of_window else results[0]
            flops = worked_on.numel() * (_window(args) if of_window else _WORK.get(kind, 1))
        self.operators.append(Counted(kind=kind, flops=flops, numbers=numbers))
        return result


def _convolution(args: tuple[Any, ...]) -> str:
    """The type of a convolution by its arguments in aten."""
    weight, stride, padding, groups = args[1], list(args[3]), list(args[4]), args[8]
    kernel = list(weight.shape[2:])
    if groups > 1 and weight.shape[1] == 1:
        return "depthwise convolution"
    if math.prod(kernel) == 1:
        return "pointwise convolution"
    patches = groups == 1 and kernel == stride and not any(padding)
    return "patch embedding" if patches else "convolution"


def _window(args: tuple[Any, ...]) -> int:
    """Elements that a pooling reads for one of its result."""
    size = args[1]
    return math.prod(size) if len(size) == 2 else size[0] ** 2


def count_operators(name: str) -> list[Counted]:
    """The operators that one image runs through in a model of timm, in order.

    Raises:
        UsageError: timm has no such model, or it cannot run without data.
    """
    import timm

    if not timm.is_model(name):
        raise unknown_name("timm model", name, timm.list_models())
    try:
        with torch.device("meta"), torch.no_grad(), OperatorCounter() as counter:
            model: Any = timm.create_model(name, pretrained=False).eval()
            image = torch.empty(1, *model.pretrained_cfg["input_size"])
            counter.operators.clear()  # of the initialisation
            model(image)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"'{name}' cannot be profiled: it does not run on shapes alone ({first})") from error
    operators: list[Counted] = counter.operators
    return operators


def profile_operators(name: str, device: Device | Processor | MeasuredHost) -> Profile:
    """The profile of a model of timm; see the module's docstring.

    A board gets no latency and no energy: its accelerator runs plain Vision Transformers as a whole or not at all.

    Raises:
        UsageError: see `count_operators`; or the device is a measured host, whose table has other operators.
    """
    if isinstance(device, MeasuredHost):
        raise UsageError(
            f"{device.name} was measured on the operators of plain Vision Transformers, and '{name}' is none; give "
            "--device of a processor that is known by its data sheet, such as h100"
        )
    counted = count_operators(name)
    board = isinstance(device, Device)
    return Profile(
        network=name,
        device=device.name,
        title=device.title,
        basis="operators of torch, none fused"
        + (", numbers of 1 byte" if board else "; a roofline of data sheets and assumed efficiencies"),
        rows=rows_of(map(_on_processor(device) if isinstance(device, Processor) else _on_board, counted)),
        left_out=_left_out(counted, device) if board else None,
    )


def _on_board(operator: Counted) -> Row:
    return Row(
        kind=operator.kind,
        operators=1,
        macs=operator.macs,
        flops=operator.flops,
        bytes=operator.numbers,
        latency_ms=None,
        energy_mj=None,
    )


def _on_processor(processor: Processor) -> Callable[[Counted], Row]:
    other = "fp32" if processor.peak_gops.fp16 is None else "fp16"
    peak = processor.peak_gops.at(processor.precision)
    assert peak is not None  # `load_hardware` sees to that

    def row(operator: Counted) -> Row:
        product = operator.kind in _PRODUCTS
        moved = operator.numbers * PRECISION_BYTES[processor.precision if product else other]
        arithmetic_ns = operator.flops / (
            (peak if product else processor.peak_gops.fp32) * processor.compute_efficiency
        )
        memory_ns = moved / (processor.memory_gb_per_s * processor.memory_efficiency)
        latency_ms = max(arithmetic_ns, memory_ns) / 1e6 + processor.launch_us / 1e3
        return Row(
            kind=operator.kind,
            operators=1,
            macs=operator.macs,
            flops=operator.flops,
            bytes=moved,
            latency_ms=latency_ms,
            energy_mj=latency_ms * processor.power_w,
        )

    return row


def _left_out(counted: list[Counted], device: Device | Processor) -> str | None:
    """A sentence about the operators that the accelerator of a board lacks."""
    missing = {operator.kind: 0 for operator in counted if operator.kind not in ON_BOARD}
    if not missing:
        return f"no latency or energy: the accelerator on {device.name} is modelled for plain Vision Transformers alone"
    total = sum(operator.flops for operator in counted)
    for operator in counted:
        if operator.kind in missing:
            missing[operator.kind] += operator.flops
    names = ", ".join(sorted(missing, key=lambda kind: -missing[kind]))
    return (
        f"no latency or energy: the accelerator on {device.name} has no operator for {names} "
        f"({sum(missing.values()) / total:.1%} of the FLOPs)"
    )
