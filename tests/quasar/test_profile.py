"""`quasar profile`: totals are those that were published, rows add up, and what cannot be profiled is said."""

import numpy as np
import pytest
import torch
from matplotlib import image
from measured_hosts import measured_host
from torch import nn

from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_hardware
from hwmodel.errors import UsageError
from hwmodel.explore import best_accelerator
from hwmodel.processor_cost import RooflineCostModel
from quasar.profiling.aten import OperatorCounter, count_operators, profile_operators
from quasar.profiling.rows import FIGURES
from quasar.profiling.workload import profile_on_board, profile_on_processor
from supernet.lowering import lower


@pytest.fixture
def subnet(here, space):
    path = here / "subnet.yaml"
    space.largest().save(path)
    return path


def counted(module, *inputs):
    with torch.device("meta"), torch.no_grad(), OperatorCounter() as counter:
        built = module().eval()
        counter.operators.clear()
        built(*(torch.empty(size) for size in inputs))
    return counter.operators


class TestOperators:
    #: 10^9 multiply-accumulates as published: DeiT (arXiv 2012.12877, by timm), PVT v2 (arXiv 2106.13797), Swin
    #: (arXiv 2103.14030), PoolFormer (arXiv 2111.11418), LeViT (arXiv 2104.01136)
    @pytest.mark.parametrize(
        ("model", "gmacs", "within"),
        [
            ("deit_tiny_patch16_224", 1.26, 0.01),
            ("pvt_v2_b0", 0.57, 0.01),
            ("swin_tiny_patch4_window7_224", 4.5, 0.01),
            ("poolformer_s12", 1.8, 0.02),
            ("levit_128s", 0.305, 0.01),
        ],
    )
    def test_macs_are_those_that_were_published(self, model, gmacs, within):
        assert sum(operator.macs for operator in count_operators(model)) / 1e9 == pytest.approx(gmacs, rel=within)

    def test_types_of_convolutions_and_their_macs(self):
        found = counted(
            lambda: nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1),
                nn.Conv2d(8, 8, 3, padding=1, groups=8),
                nn.Conv2d(8, 4, 1),
                nn.Conv2d(4, 5, 2, stride=2),
            ),
            (1, 3, 6, 6),
        )
        assert [(operator.kind, operator.macs) for operator in found] == [
            ("convolution", 36 * 8 * 3 * 9),
            ("depthwise convolution", 36 * 8 * 9),
            ("pointwise convolution", 36 * 4 * 8),
            ("patch embedding", 9 * 5 * 4 * 4),
        ]

    def test_a_linear_by_hand(self):
        (operator,) = counted(lambda: nn.Linear(7, 5), (3, 7))
        assert (operator.kind, operator.macs, operator.flops) == ("linear", 105, 210)
        assert operator.numbers == 3 * 7 + 7 * 5 + 5 + 3 * 5

    def test_norm_softmax_and_pooling_by_hand(self):
        found = counted(
            lambda: nn.Sequential(nn.LayerNorm(6), nn.Softmax(dim=-1), nn.GELU(), nn.AvgPool2d(2)), (1, 3, 4, 6)
        )
        assert [(operator.kind, operator.flops) for operator in found] == [
            ("layer norm", 8 * 72),
            ("softmax", 5 * 72),
            ("GELU", 72),
            ("pooling", 4 * 18),
        ]

    def test_views_cost_nothing(self):
        class Views(nn.Module):
            def forward(self, x):
                return x.transpose(0, 1)[1:].unsqueeze(0).expand(4, -1, -1)

        assert counted(Views, (3, 5)) == []

    def test_roofline_of_an_operator_by_hand(self):
        device = load_hardware("v100")
        profile = profile_operators("levit_128s", device)
        (softmax,) = (row for row in profile.rows if row.kind == "softmax")
        shortest = softmax.operators * device.launch_us / 1e3
        memory = softmax.bytes / (device.memory_gb_per_s * device.memory_efficiency) / 1e6
        assert shortest + memory <= softmax.latency_ms * (1 + 1e-9)
        assert softmax.energy_mj == pytest.approx(softmax.latency_ms * device.power_w)
        assert softmax.bytes == 2 * sum(o.numbers for o in count_operators("levit_128s") if o.kind == "softmax")

    def test_a_board_says_what_it_lacks(self):
        profile = profile_operators("poolformer_s12", load_hardware("zcu102"))
        assert profile.total("latency_ms") is None
        assert "has no operator for convolution, other norm, pooling" in profile.left_out
        assert profile.shares("energy_mj") is None


class TestWorkloads:
    def test_rows_of_a_board_add_up_to_its_cost(self, space):
        workload = lower(space.largest())
        device = load_hardware("zcu102")
        accelerator = best_accelerator(
            [workload], device, clock_mhz=None, backend=None, array=(8, 16), activations="onchip"
        )
        profile = profile_on_board(workload, device, accelerator, network="x")
        cost = FpgaCostModel(device, accelerator).estimate(workload)
        assert profile.total("macs") == workload.macs
        assert profile.total("latency_ms") == pytest.approx(cost.latency_ms, rel=1e-12)
        # Bytes of weights are rounded up for each layer instead of once.
        assert profile.total("energy_mj") == pytest.approx(cost.energy_mj, rel=1e-3)
        assert profile.total("bytes") > workload.weight_bytes
        for figure in FIGURES:
            assert sum(profile.shares(figure)) == pytest.approx(1)

    def test_rows_of_a_processor_add_up_to_its_cost(self, space):
        workload, device = lower(space.largest()), load_hardware("jetson_tx2")
        profile = profile_on_processor(workload, device, network="x")
        cost = RooflineCostModel(device).estimate(workload)
        assert profile.total("latency_ms") == pytest.approx(cost.latency_ms)
        assert profile.total("energy_mj") == pytest.approx(cost.energy_mj)

    def test_a_measured_host_without_its_power_has_no_energy(self, space, monkeypatch):
        monkeypatch.setattr("hwmodel.measured.Host.difference", lambda _: None)
        host = measured_host(largest=1000.0)
        profile = profile_on_processor(lower(space.largest()), host, network="x")
        assert profile.total("energy_mj") is None
        assert profile.shares("energy_mj") is None
        assert sum(profile.shares("latency_ms")) == pytest.approx(1)
        with pytest.raises(UsageError, match="host was measured on the operators of plain Vision Transformers"):
            profile_operators("levit_128s", host)


class TestCommand:
    def test_table_picture_and_json(self, cli, subnet, here):
        result = cli("profile", subnet, "--out", "shares.png")
        assert result.code == 0, result
        assert "fc1" in result.out
        assert "picture: shares.png" in result.out
        pixels = image.imread(here / "shares.png")
        assert len(np.unique(pixels.reshape(-1, pixels.shape[2]).round(2), axis=0)) > 10
        document = cli("profile", subnet, "--device", "h100", "--json").document
        shares = np.array([[row["share"][figure] for figure in FIGURES] for row in document["rows"]])
        np.testing.assert_allclose(shares.sum(axis=0), 1)
        assert document["device"] == "h100"

    def test_a_subnet_of_a_run_and_its_bundle(self, cli, run):
        of_run = cli("profile", run, "--subnet", "max", "--json").document
        assert of_run["network"].endswith("tiny max")
        bundle = next(path for path in sorted((run / "export").iterdir()) if path.is_dir())
        assert cli("profile", bundle, "--json").document["total"]["macs"] <= of_run["total"]["macs"]

    def test_other_models_of_timm(self, cli):
        result = cli("profile", "levit_128s", "--device", "v100")
        assert result.code == 0, result
        assert "batch norm" in result.out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("nothing_like_it",), "nothing_like_it"),
            (("levit_128s", "--ratio", "0.5"), "--ratio is about the weight rows of plain Vision Transformers"),
            (("levit_128s", "--subnet", "max"), "--subnet is for run folders"),
            (("levit_128s", "--device", "zcu1"), "zcu102"),
            (("x.yaml", "--out", "x.gif"), "--out must end in .png, .svg, .pdf, not 'x.gif'"),
            (("missing.yaml",), "missing.yaml"),
        ],
    )
    def test_a_mistake_is_one_line(self, refused, arguments, message):
        assert message in refused(2, "profile", *arguments)

    def test_a_network_with_row_precisions_takes_no_others(self, refused, run, subnet):
        assert "is for networks without row precisions" in refused(2, "profile", subnet, "--ratio", "0.5")
        assert "--ratio" in refused(2, "profile", run, "--subnet", "max", "--ratio", "0.5")

    def test_a_picture_is_not_replaced_unasked(self, refused, subnet, here):
        (here / "there.png").write_bytes(b"mine")
        assert "--overwrite" in refused(2, "profile", subnet, "--out", "there.png")

    def test_a_run_needs_a_subnet(self, refused, run):
        assert "say which subnet with --subnet (max, min" in refused(2, "profile", run)
