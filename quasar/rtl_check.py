"""Operations of a network on the RTL in simulation, against the cycle model and the integer reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.integer import IntegerGemm
from hwmodel.integer_vector import IntegerLayerNorm, IntegerResidual, IntegerSoftmax, IntegerVector, Operation
from hwmodel.simulate import SimulationJob, SimulationResult, simulate
from hwmodel.simulate_vector import VectorJob, simulate_vector
from hwmodel.workload import Workload

#: how the engine runs a product, by its kind; see `IntegerGemm`
_WIDE: Mapping[str, bool] = {"wide": True}
_MODES: Mapping[str, Mapping[str, bool]] = {
    "patch_embed": _WIDE,
    "proj": _WIDE,
    "fc1": {"table": True},
    "fc2": _WIDE,
    "head": _WIDE,
    "merge": _WIDE,
    "depthwise": _WIDE,
    "mix": {"unsigned_activations": True, "token_factors": True},
}

_RANDOM_VECTORS: Mapping[str, Callable[..., IntegerVector]] = {
    "layernorm": IntegerLayerNorm.random,
    "softmax": IntegerSoftmax.random,
    "residual": IntegerResidual.random,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCheck:
    """What the simulation of all executions of one layer gave; `fill_cycles` filled the activation buffer before."""

    shape: str
    executions: int
    predicted_cycles: int
    simulated_cycles: int
    fill_cycles: int
    outputs: int
    mismatching_outputs: int


def check_layers(
    layers: Mapping[str, Sequence[Operation]],
    accelerator: AcceleratorConfig,
    *,
    stall: float,
    seed: int,
    simulator: str,
) -> dict[str, LayerCheck]:
    """Runs every operation of every layer on the engine and the vector unit of one accelerator, in simulation.

    Raises:
        UsageError: a simulator is missing, or an operation does not fit the accelerator.
        QuasarError: a build failed, or an operation exceeded its cycle cap.
    """
    named = [(name, operation) for name, operations in layers.items() for operation in operations]
    gemms = [(name, SimulationJob(gemm=o, stall=stall, seed=seed)) for name, o in named if isinstance(o, IntegerGemm)]
    vectors = [
        (name, VectorJob(operation=o, stall=stall, seed=seed)) for name, o in named if not isinstance(o, IntegerGemm)
    ]
    results: dict[str, list[SimulationResult]] = {name: [] for name in layers}
    if gemms:
        for (name, _), result in zip(
            gemms, simulate(accelerator, [job for _, job in gemms], simulator=simulator), strict=True
        ):
            results[name].append(result)
    if vectors:
        for (name, _), result in zip(
            vectors,
            simulate_vector(
                lanes=accelerator.vector_lanes,
                stream_bits=accelerator.weight_stream_bits,
                max_tokens=accelerator.max_tokens,
                jobs=[job for _, job in vectors],
                simulator=simulator,
            ),
            strict=True,
        ):
            results[name].append(result)
    return {
        name: LayerCheck(
            shape=_shape(layers[name][0]),
            executions=len(own),
            predicted_cycles=sum(result.predicted_cycles for result in own),
            simulated_cycles=sum(result.simulated_cycles for result in own),
            fill_cycles=sum(result.fill_cycles for result in own),
            outputs=sum(result.outputs for result in own),
            mismatching_outputs=sum(result.mismatching_outputs for result in own),
        )
        for name, own in results.items()
    }


def random_layers(workload: Workload, *, seed: int) -> dict[str, list[Operation]]:
    """One operation with random codes for each different shape and mode of a network, named by the first layer."""
    rng = np.random.default_rng(seed)
    layers: dict[str, list[Operation]] = {}
    seen = set()
    for g in workload.gemms:
        modes = _MODES.get(g.kind, {})
        shape: tuple[object, ...] = (g.tokens, g.inputs, g.rows_high, g.rows_low, *modes)
        if shape not in seen:
            layers[g.name] = [
                IntegerGemm.random(
                    rng, tokens=g.tokens, inputs=g.inputs, rows_high=g.rows_high, rows_low=g.rows_low, **modes
                )
            ]
        seen.add(shape)
    for v in workload.vectors:
        shape = (v.kind, v.tokens, v.width)
        if shape not in seen:
            layers[v.name] = [_RANDOM_VECTORS[v.kind](rng, rows=v.tokens, width=v.width)]
        seen.add(shape)
    return layers


def _shape(operation: Operation) -> str:
    if isinstance(operation, IntegerGemm):
        rows_low = operation.rows - operation.rows_high
        return f"{operation.tokens}x{operation.inputs}x({operation.rows_high}+{rows_low})"
    return f"{operation.rows}x{operation.width}"
