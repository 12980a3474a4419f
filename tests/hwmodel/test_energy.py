import pytest

from hwmodel.accelerator import AcceleratorColumns
from hwmodel.cycles import GemmTerms
from hwmodel.device import EnergyConstants
from hwmodel.energy import energy_counts, energy_mj
from hwmodel.workload import Population, VectorOp

NOTHING = {
    "mac_8bit_pj": 0,
    "mac_4bit_pj": 0,
    "buffer_pj_per_byte": 0,
    "ddr_pj_per_byte": 0,
    "static_w": 0,
}


def energy_of(config, network, *, latency_ms=0.0, **constants):
    terms = GemmTerms(AcceleratorColumns.one(config), Population.of(network))
    of_gemms, of_vectors = energy_counts(terms)
    constants = EnergyConstants(**NOTHING | constants)
    return energy_mj(terms, of_gemms.sum(axis=1).tolist(), int(of_vectors.sum()), constants, latency_ms)


@pytest.mark.parametrize(
    ("constant", "activations", "expected"),
    [
        ("mac_8bit_pj", "onchip", 10 * 8 * 4),
        ("mac_4bit_pj", "onchip", 10 * 8 * 7),
        # read 10*8 for each of 1 + 2 row tiles; sums 8 bytes * 10*11 for 2 k tiles; 10*11 written; softmax 4*5*6
        ("buffer_pj_per_byte", "onchip", 240 + 1760 + 110 + 120),
        # weights 8*(4*8 + 7*4)/8 = 60 bytes
        ("ddr_pj_per_byte", "onchip", 60),
        ("ddr_pj_per_byte", "ddr", 60 + 240 + 110),
    ],
)
def test_counts_by_hand(*, config, gemm, workload, constant, activations, expected):
    network = workload(gemm(10, 8, 4, 7), vectors=[VectorOp(name="s", kind="softmax", tokens=5, width=6)])
    energy = energy_of(config(activations=activations), network, **{constant: 1})
    assert energy == pytest.approx(expected * 1e-9)


def test_the_second_operand_of_attention_comes_from_where_activations_live(config, gemm, workload):
    network = workload(gemm(10, 8, 4, count=2, stored=False))

    def bytes_moved(activations):
        return energy_of(config(activations=activations), network, ddr_pj_per_byte=1) * 1e9

    assert bytes_moved("onchip") == 0
    assert bytes_moved("ddr") == pytest.approx(2 * (10 * 8 + 8 * 4 + 10 * 4))


def test_static_power_times_latency(config, workload):
    assert energy_of(config(), workload(), latency_ms=4.0, static_w=0.5) == 2.0
