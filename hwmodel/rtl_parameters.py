"""The parameters of the RTL's top modules for an accelerator: one source for simulation and synthesis."""

from __future__ import annotations

from hwmodel.accelerator import BACKENDS, AcceleratorColumns, AcceleratorConfig
from hwmodel.errors import UsageError
from hwmodel.integer_vector import LARGEST_WIDTH
from hwmodel.resources import activation_memory, fits_words

ENGINE, VECTOR_UNIT = "quasar_gemm", "quasar_vector"
#: both side by side
ACCELERATOR = "quasar_accelerator"


def engine_parameters(config: AcceleratorConfig) -> dict[str, int]:
    """Parameters of `quasar_gemm`.

    Raises:
        UsageError: a stream width does not fit the array (see `quasar_activations.sv`).
    """
    word_bits = 8 * config.array_inputs
    stream_bits = config.activation_stream_bits if config.activations == "ddr" else word_bits
    columns = AcceleratorColumns.one(config)
    if config.activations == "ddr" and not fits_words(columns):
        raise UsageError(
            f"activation_stream_bits {stream_bits} must divide {word_bits} (8 * array_inputs) or be a power of two "
            "times it for the RTL"
        )
    _, lines, beat_words = activation_memory(columns)
    return {
        "P_M": config.array_rows,
        "P_K": config.array_inputs,
        "BACKEND": list(BACKENDS).index(config.backend),
        "PW": config.weight_stream_bits,
        "PA": stream_bits,
        "PO": config.output_stream_bits,
        "MAX_TOKENS": config.max_tokens,
        "ACT_WORDS": int(lines) * int(beat_words),
    }


def vector_parameters(*, lanes: int, stream_bits: int, max_tokens: int) -> dict[str, int]:
    """Parameters of `quasar_vector`."""
    return {"LANES": lanes, "PW": stream_bits, "MAX_TOKENS": max_tokens, "MAX_WIDTH": LARGEST_WIDTH}


def accelerator_parameters(config: AcceleratorConfig) -> dict[str, int]:
    """Parameters of `quasar_accelerator`; raises as `engine_parameters` does."""
    return engine_parameters(config) | vector_parameters(
        lanes=config.vector_lanes, stream_bits=config.weight_stream_bits, max_tokens=config.max_tokens
    )
