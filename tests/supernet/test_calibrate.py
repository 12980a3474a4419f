import pytest
import torch

from supernet.calibrate import (
    Histogram,
    before_gelu_range,
    calibrate,
    full_range,
    least_error_range,
    percentile_range,
    recalibrate,
)
from supernet.functional import Observer
from supernet.quantize import search_clip
from supernet.standalone import extract
from supernet.vit import unquantized


def histogram(*parts):
    result = Histogram(torch.device("cpu"))
    for part in parts:
        result.add(part)
    return result.values()


def test_a_histogram_counts_all_values_in_order():
    values, counts = histogram(torch.tensor([[0.5, -2.0], [0.5, 3.0]]), torch.tensor([-2.0, 0.0]))
    assert values.tolist() == [-2, 0, 0.5, 3]
    assert counts.tolist() == [2, 1, 2, 1]


def test_ranges_of_a_tail():
    x = torch.cat([torch.linspace(-1, 1, 99_995), torch.full((5,), 64.0)])
    assert [float(end) for end in full_range(*histogram(x), False)] == [-1, 64]
    smallest, largest = percentile_range(*histogram(x), False, share=1e-4)
    assert largest <= 1
    assert smallest >= -1
    # 5 values lose 64^2 each if they are clipped, all others gain (0.5^2 - 0.01^2) / 12: not worth it
    assert least_error_range(*histogram(x), False)[1] > 50
    # a single value of 4 is: all the others have a step of 1 / 127 instead of 4 / 127
    x = torch.cat([torch.linspace(-1, 1, 999_999), torch.full((1,), 4.0)])
    assert least_error_range(*histogram(x), False)[1] < 2


def test_before_gelu_large_negative_values_are_clipped():
    x = torch.linspace(-20, 5, 10_001)
    smallest, largest = before_gelu_range(*histogram(x), False)
    assert max(-smallest, largest) == pytest.approx(5, abs=0.3)
    assert -least_error_range(*histogram(x), False)[0] > 15


def test_the_least_error_is_found_at_asymmetric_sites(supernet):
    x = torch.nn.functional.gelu(torch.randn(20_000, generator=torch.Generator().manual_seed(0)))
    sites, index = supernet.blocks[0].sites, 3

    def error(smallest, largest):
        sites.move_range(index, smallest, largest)
        return (sites.quantizer(None)("gelu", x) - x).square().sum()

    chosen = error(*least_error_range(*histogram(x), True))
    assert chosen <= 1.01 * error(*full_range(*histogram(x), True))
    symmetric = (x / (x.max() / 127)).round() * (x.max() / 127)
    assert chosen < 0.4 * (symmetric - x).square().sum()  # nearly twice as many codes


def test_calibration_follows_the_float_network_whatever_the_scales_were(make_space, make_supernet):
    space = make_space()
    model = make_supernet(space)
    x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.fc1.bias.add_(0.5)  # rounding it in units of a scale of 100 would lose it
    results = []
    for scale in (1e-4, 1.0, 100.0):
        for block in model.blocks:
            block.sites.scale.fill_(scale)
        calibrate(model, x.split(16))
        results.append(model.state_dict()["blocks.1.sites.scale"].clone())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    with torch.no_grad():
        quantized = model(x, space.largest())
        free = model(x, space.largest(), Observer(quantize=False), weights=unquantized)
    assert (quantized - free).square().mean() < 0.01 * free.square().mean()


def test_clips_weigh_inputs_by_their_squares():
    # The outlier's input is always 0, so that the row need not keep its weight.
    weight = torch.tensor([[0.3, -0.2, 0.1, 0.25, 1.0]])
    assert search_clip(weight, torch.ones(1), low_bits=4, inputs=torch.tensor([1.0, 1, 1, 1, 0])) <= 0.35
    assert search_clip(weight, torch.ones(1), low_bits=4, inputs=torch.tensor([1.0, 1, 1, 1, 100])) == 1


def test_a_recalibrated_subnet_has_its_own_ranges_and_rounded_biases(make_space, make_supernet):
    space = make_space()
    model = make_supernet(space)
    x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for group in (model.sites, *(block.sites for block in model.blocks)):
        group.scale.mul_(3)
    module = extract(model, space.smallest())
    with torch.no_grad():
        free = model(x, space.smallest(), Observer(quantize=False), weights=unquantized)
        codes = [block.mlp["fc1"].codes.clone() for block in module.blocks]
        before = (module(x) - free).square().mean()
        recalibrate(module, x.split(16))
        after = (module(x) - free).square().mean()
    assert after < before
    for block, old in zip(module.blocks, codes, strict=True):
        fc2 = block.mlp["fc2"]
        units = fc2.bias / (fc2.scale * block.sites.scales()["gelu"])
        torch.testing.assert_close(units, units.round(), atol=1e-3, rtol=0)
        assert torch.equal(block.mlp["fc1"].codes, old)
        assert torch.equal(block.sites.zero_point, block.sites.zero_point.round())


@pytest.mark.parametrize("asymmetric", [True, False])
def test_a_site_without_values_but_zero_has_a_range(asymmetric):
    smallest, largest = least_error_range(*histogram(torch.zeros(10)), asymmetric)
    assert (smallest, largest) == (0, 0)
