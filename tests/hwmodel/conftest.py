"""Small networks and accelerators that the tests of this package share."""

import dataclasses

import pytest

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.device import load_device
from hwmodel.workload import Gemm, VectorOp, Workload

SMALL = AcceleratorConfig(
    array_rows=2,
    array_inputs=4,
    backend="dual",
    clock_mhz=150,
    weight_stream_bits=64,
    activation_stream_bits=16,
    output_stream_bits=32,
    activations="onchip",
    activation_buffer_bytes=4096,
    max_tokens=256,
    vector_lanes=4,
)


def _make_config(**changes):
    return dataclasses.replace(SMALL, **changes)


def _make_gemm(tokens, inputs, rows_high, rows_low=0, *, name="layer", count=1, stored=True):
    return Gemm(
        name=name,
        kind=name,
        tokens=tokens,
        inputs=inputs,
        rows_high=rows_high,
        rows_low=rows_low,
        count=count,
        stored=stored,
    )


def _make_workload(*gemms, vectors=(), activation_bytes=1024, **bits):
    return Workload(name="test", gemms=gemms, vectors=tuple(vectors), activation_bytes=activation_bytes, **bits)


def _make_deit(*, width=192, heads=3, depth=12, high=1.0, tokens=197):
    """A DeiT: 1.25 G multiply-accumulates at the defaults (DeiT-tiny); `high` is the share of 8-bit rows."""

    def linear(name, inputs, rows):
        eight = round(high * rows)
        return _make_gemm(tokens, inputs, eight, rows - eight, name=name)

    head_dim = width // heads
    gemms = [_make_gemm(tokens - 1, 768, width, name="patch_embed")]
    vectors = []
    for _ in range(depth):
        gemms += [
            linear("qkv", width, 3 * width),
            _make_gemm(tokens, head_dim, tokens, name="scores", count=heads, stored=False),
            _make_gemm(tokens, tokens, head_dim, name="mix", count=heads, stored=False),
            linear("proj", width, width),
            linear("fc1", width, 4 * width),
            linear("fc2", 4 * width, width),
        ]
        vectors += [
            VectorOp(name="norm", kind="layernorm", tokens=tokens, width=width, count=2),
            VectorOp(name="softmax", kind="softmax", tokens=tokens, width=tokens, count=heads),
            VectorOp(name="residual", kind="residual", tokens=tokens, width=width, count=2),
        ]
    gemms.append(_make_gemm(1, width, 1000, name="head"))
    return _make_workload(*gemms, vectors=vectors, activation_bytes=7 * tokens * width)


@pytest.fixture(scope="session")
def config():
    return _make_config


@pytest.fixture(scope="session")
def gemm():
    return _make_gemm


@pytest.fixture(scope="session")
def workload():
    return _make_workload


@pytest.fixture(scope="session")
def deit():
    return _make_deit


@pytest.fixture(scope="session")
def zcu102():
    return load_device("zcu102")
