import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodel.accelerator import AcceleratorColumns
from hwmodel.resources import (
    DISTRIBUTED_WORDS,
    FIT_ERRORS,
    activation_memory,
    bram18,
    demands,
    lutram,
    resource_terms,
    resources_of,
)


@pytest.mark.parametrize(
    ("width", "depth", "blocks"),
    [
        (32, 197, 1),  # 512 x 36
        (36, 512, 1),
        (36, 513, 2),  # 1K x 18, twice
        (64, 400, 2),  # the activation tiles of an 8-wide W8A8 engine: one RAMB36 in synthesis
        (128, 400, 4),  # of a 16-wide one: two RAMB36
        (8, 2048, 1),  # 2K x 9
        (1, 16384, 1),
        (2, 8192, 1),
        (4, 4096, 1),
        (4, 4097, 2),  # 8K x 2, twice
        (18, 1024, 1),
        (1, 65, 1),  # a block, however narrow
        (512, 64, 0),  # distributed, however wide
    ],
)
def test_blocks_of_a_bank(width, depth, blocks):
    assert bram18(width, depth) == blocks


def test_banks_of_a_synthesised_engine():
    # open synthesis of W8A8 engines with double-buffered 32-bit sums: 8 rows -> 16 RAMB18, 16 rows -> 32
    assert [2 * rows * bram18(32, 197) for rows in (8, 16)] == [16, 32]


@given(width=st.integers(1, 600), depth=st.integers(1, 20000))
def test_blocks_hold_the_bank_and_are_elementwise(width, depth):
    blocks = bram18(width, depth)
    if depth <= DISTRIBUTED_WORDS:
        assert blocks == 0
        assert 64 * lutram(width, depth) >= width * depth
    else:
        assert blocks * 18 * 1024 >= width * depth
        assert lutram(width, depth) == 0
    assert bram18(np.array([width, 36]), np.array([depth, 512])).tolist() == [blocks, 1]


def test_dsps_by_hand(config):
    # array 2*4, requantization 2 * 32/8 lanes, vector unit 3 * 4 lanes and 6
    assert resources_of(config()).dsp == 8 + 8 + 18


def test_block_rams_by_hand(config):
    accelerator = config(array_inputs=8, array_rows=8, activation_buffer_bytes=32768, output_stream_bits=64)
    # accumulators 2*3*8 banks; buffer 64 x 4096 -> 16; token factors 22 x 256 -> 1; bias 8 words: distributed;
    # vector unit 64 x 512 -> 2, 32 x 128 -> 1, gains and biases 192 x 256 -> 6; weight stream 64 x 512 -> 2
    assert resources_of(accelerator).bram18 == 48 + 16 + 1 + 9 + 2
    # in ddr mode the buffer has 64 x 512 -> 2, and the two other streams are buffered as well: 16 x 512 -> 1,
    # 16-bit outputs 128 x 512 -> 4
    assert resources_of(dataclasses.replace(accelerator, activations="ddr")).bram18 == 76 - 14 + 5


def test_distributed_memories():
    # 14 bits of up to 32 words in 8 LUTs, 7 bits of up to 64
    assert [int(lutram(32, depth)) for depth in (32, 33, 64, 65)] == [24, 40, 40, 0]


@pytest.mark.parametrize(
    ("changes", "memory"),
    [
        ({"activation_buffer_bytes": 4096}, (32, 1024, 1)),
        ({"activation_buffer_bytes": 4097}, (32, 1024, 1)),
        ({"activation_buffer_bytes": 4100}, (32, 1026, 1)),  # halves of 513 words
        ({"activations": "ddr", "max_tokens": 101}, (32, 202, 1)),
        # four words a beat, halves of 26 beats
        ({"activations": "ddr", "max_tokens": 101, "activation_stream_bits": 128}, (128, 52, 4)),
    ],
)
def test_memory_of_the_activations(config, changes, memory):
    assert tuple(map(int, activation_memory(AcceleratorColumns.one(config(**changes))))) == memory


def test_the_choice_between_rows_of_blocks_is_counted(config):
    # 32 bits: 1,024 words are two blocks of 18 x 1024; of 3,072 words, six in three rows: 2 LUTs a bit
    small, large = (
        {term.name: term for term in resource_terms(AcceleratorColumns.one(config(activation_buffer_bytes=size)))}
        for size in (4096, 3 * 4096)
    )
    assert [int(t["activation buffer"].bram18) for t in (small, large)] == [2, 6]
    assert [int(t["activation buffer"].lut) for t in (small, large)] == [0, 64]


def test_the_fit_says_how_far_it_is_off():
    assert set(FIT_ERRORS) == {"lut", "ff"}
    assert all(0 < error.std_percent <= error.worst_percent for error in FIT_ERRORS.values())


def test_every_term_names_its_source(config):
    terms = resource_terms(AcceleratorColumns.one(config()))
    assert all(term.name and term.source for term in terms)


def test_totals_of_many_are_those_of_each(config):
    configs = [config(), config(backend="atomic", array_rows=40), config(max_tokens=2000, vector_lanes=64)]
    for index, demand in enumerate(demands(AcceleratorColumns.of(configs), _device())[:4]):
        each = [dataclasses.astuple(resources_of(accelerator))[index] for accelerator in configs]
        assert np.ravel(demand.used).tolist() == each


def _device():
    from hwmodel.device import load_device

    return load_device("zcu102")


def test_violations_are_sentences(config, zcu102):
    huge = config(
        array_rows=40,
        array_inputs=66,
        weight_stream_bits=1024,
        clock_mhz=400,
        max_tokens=4096,
        activation_buffer_bytes=4_000_000,
    )
    sentences = [demand.violation for demand in demands(AcceleratorColumns.one(huge), zcu102)]
    assert sentences[0] == "DSP 2666 exceeds 2016 (80 % of 2520)"
    assert sentences[1].startswith("BRAM18 ")
    assert sentences[3].endswith("exceeds 274080 (50 % of 548160)")
    assert sentences[4] == "memory bandwidth in GB/s 51.2 exceeds 14.4 (75 % of 19.2; narrow the streams)"
    assert sentences[5] == "memory stream bits per cycle 1024 exceeds 512 (4 ports of 128 bits)"
    assert sentences[6] is None
    assert sentences[7] == "clock in MHz 400 exceeds 333 (the most that zcu102 supports)"
    assert [d.violation for d in demands(AcceleratorColumns.one(config()), zcu102)] == [None] * 8


@pytest.mark.parametrize(
    ("bits", "fits"),
    [(8, True), (16, True), (48, True), (96, True), (192, True), (32, True), (64, False), (288, False)],
)
def test_beats_and_words_are_whole_parts_of_each_other_in_memory_mode(config, zcu102, bits, fits):
    changes = {"array_inputs": 12, "activation_stream_bits": bits, "activation_buffer_bytes": 8192}

    def found(activations):
        accelerator = config(**changes, activations=activations)
        return [d.violation for d in demands(AcceleratorColumns.one(accelerator), zcu102)]

    sentence = "activation_stream_bits must divide 8 * array_inputs or be a power of two times it"
    assert (sentence in found("ddr")) == (not fits)
    assert sentence not in found("onchip")
