"""Fits the LUT and FF figures of `hwmodel.resources` and `hwmodel.accelerator` to open syntheses of the shipped RTL.

    python experiments/fit_resources.py            about 10 minutes on an idle core; 2 seconds where all are kept

It prints what model and synthesis say of each configuration, then the figures and the differences that they leave: copy
those into `FABRIC`, `FIT_ERRORS` and `BACKENDS`. DSP and BRAM18 are not fitted: they must be equal, or the exit code
is 1. Least squares of relative differences; no figure below 0.
"""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
from scipy.optimize import nnls

from hwmodel.accelerator import BACKENDS, AcceleratorColumns, AcceleratorConfig
from hwmodel.calibrate import design_config
from hwmodel.resources import FABRIC, Fabric, resource_terms
from hwmodel.synth import ENGINE, PARTS, VECTOR_UNIT, Counts, synthesize_top


def engine(rows: int, inputs: int, backend: str, **keys: object) -> AcceleratorConfig:
    defaults = {"activation_stream_bits": 8 * inputs, "activation_buffer_bytes": 512 * inputs, "max_tokens": 197}
    return design_config(array=(rows, inputs), backend=backend, **(defaults | keys))


def streamed(rows: int, inputs: int, backend: str, **keys: object) -> AcceleratorConfig:
    return engine(rows, inputs, backend, activations="ddr", activation_buffer_bytes=2**20, **keys)


ENGINES = (
    engine(4, 4, "dual", output_stream_bits=32),
    engine(4, 4, "atomic", output_stream_bits=32),
    engine(2, 4, "dual", output_stream_bits=16, max_tokens=64),
    streamed(2, 8, "atomic", output_stream_bits=16, activation_stream_bits=32, max_tokens=50),
    engine(6, 6, "dual", output_stream_bits=32, max_tokens=600),
    streamed(8, 8, "atomic", weight_stream_bits=128, activation_stream_bits=128, max_tokens=64),
    engine(8, 8, "dual", activation_buffer_bytes=8 * 5000),
    engine(8, 8, "atomic", output_stream_bits=128, max_tokens=600),
    streamed(4, 16, "dual", weight_stream_bits=128, max_tokens=300),
    engine(16, 8, "atomic", output_stream_bits=256),
    engine(8, 16, "dual", weight_stream_bits=256),
    engine(8, 16, "atomic"),
    engine(16, 16, "atomic", output_stream_bits=128, activation_buffer_bytes=151_296),
    engine(16, 16, "dual", weight_stream_bits=256, output_stream_bits=128),
)
VECTOR_UNITS = tuple(engine(4, 4, "dual", vector_lanes=lanes, max_tokens=256) for lanes in (2, 4, 8, 16))


def modelled(config: AcceleratorConfig, top: str, columns: AcceleratorColumns, fabric: Fabric = FABRIC) -> Counts:
    terms = [term for term in resource_terms(columns, fabric) if term.name in PARTS[top]]
    names = [field.name for field in dataclasses.fields(Counts)]
    return Counts(**{name: sum(int(getattr(term, name)) for term in terms) for name in names})


def label(config: AcceleratorConfig, top: str) -> str:
    c = config
    if top == VECTOR_UNIT:
        return f"vector unit, {c.vector_lanes} lanes"
    return (
        f"{c.array_rows}x{c.array_inputs} {c.backend} {c.activations} "
        f"w{c.weight_stream_bits} o{c.output_stream_bits} t{c.max_tokens}"
    )


def probe(config: AcceleratorConfig, top: str, resource: str, figures: dict[str, float]) -> float:
    """The model with `figures` (of Fabric, or 'dual' and 'atomic' for a DSP) and 0 for all others."""
    fabric = Fabric(**{field.name: figures.get(field.name, 0.0) for field in dataclasses.fields(Fabric)})
    per_dsp = figures.get(config.backend, 0.0)
    columns = dataclasses.replace(AcceleratorColumns.one(config), lut_per_dsp=per_dsp, ff_per_dsp=per_dsp)
    return float(getattr(modelled(config, top, columns, fabric), resource))


def fit(cases: list[tuple[AcceleratorConfig, str, Counts]], resource: str) -> tuple[dict[str, float], np.ndarray]:
    """The figures by name, and the relative differences that they leave (model / synthesis - 1)."""
    unknown = [*BACKENDS, *(field.name for field in dataclasses.fields(Fabric) if field.name.endswith("_" + resource))]
    measured = np.array([getattr(counts, resource) for _, _, counts in cases], dtype=np.float64)
    known = np.array([probe(config, top, resource, {}) for config, top, _ in cases])
    scale = 1000.0  # the model rounds to whole numbers
    shares = np.array(
        [
            [(probe(c, top, resource, {name: scale}) - k) / scale for name in unknown]
            for (c, top, _), k in zip(cases, known, strict=True)
        ]
    )
    values, _ = nnls(shares / measured[:, None], 1 - known / measured)
    values = np.array([float(f"{value:.4g}") for value in values])
    return dict(zip(unknown, values, strict=True)), (known + shares @ values) / measured - 1


def main() -> int:
    print(f"{'configuration':36} {'DSP':>11} {'BRAM18':>11} {'LUT':>15} {'':>7} {'FF':>15}")
    cases, wrong = [], 0
    for top, configs in ((ENGINE, ENGINES), (VECTOR_UNIT, VECTOR_UNITS)):
        for config in configs:
            found = synthesize_top(config, top)
            model = modelled(config, top, AcceleratorColumns.one(config))
            cases.append((config, top, found))
            wrong += (model.dsp, model.bram18) != (found.dsp, found.bram18)
            print(
                f"{label(config, top):36} {model.dsp:5} {found.dsp:5} {model.bram18:5} {found.bram18:5} "
                f"{model.lut:7} {found.lut:7} {model.lut / found.lut - 1:+7.1%} "
                f"{model.ff:7} {found.ff:7} {model.ff / found.ff - 1:+7.1%}",
                flush=True,
            )
    print("each column: model, synthesis")
    for resource in ("lut", "ff"):
        figures, errors = fit(cases, resource)
        print(f"{resource}: " + ", ".join(f"{name} {value:g}" for name, value in figures.items()))
        print(f"    std {100 * errors.std():.1f} %, worst {100 * abs(errors).max():.1f} %, {len(cases)} syntheses")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
