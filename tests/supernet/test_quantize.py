import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from supernet import quantize as module
from supernet.functional import ActivationSites
from supernet.quantize import (
    CLIP_FACTORS,
    fake_quantize,
    qmax,
    quantize,
    round_bias,
    row_ranges,
    row_scales,
    search_clip,
    value_and_slope,
)


def test_codes_by_hand():
    x = torch.tensor([0.0, 0.24, 0.25, 0.26, 0.75, -0.75, 9.0, -9.0])
    # scale 0.5: halves go to the even neighbour; the ends are clipped
    assert quantize(x, torch.tensor(0.5), 7.0).tolist() == [0, 0, 0, 1, 2, -2, 7, -7]


def test_limits_leave_out_the_most_negative_code():
    assert (qmax(8), qmax(4), qmax(2)) == (127, 7, 1)


def test_gradient_passes_straight_through():
    x = torch.tensor([0.3, 100.0, -100.0], requires_grad=True)
    fake_quantize(x, torch.tensor(0.1), 7.0).backward(torch.tensor([1.0, 2.0, 3.0]))
    assert x.grad.tolist() == [1, 2, 3]


@given(seed=st.integers(0, 1000), bits=st.sampled_from([2, 4, 8]))
def test_error_is_at_most_half_a_step_inside_the_range(seed, bits):
    x = torch.randn(100, generator=torch.Generator().manual_seed(seed))
    scale = x.abs().max() / qmax(bits)
    assert (fake_quantize(x, scale, float(qmax(bits))) - x).abs().max() <= scale / 2 * (1 + 1e-5)


def test_row_scales_by_hand():
    weight = torch.tensor([[1.0, -2.54], [0.0, 0.0]])
    high, low = row_scales(row_ranges(weight), torch.tensor([0.5, 1.0]), low_bits=4, high_bits=8)
    torch.testing.assert_close(high[0], torch.tensor(0.02))
    torch.testing.assert_close(low[0], torch.tensor(2.54 * 0.5 / 7))
    assert (high > 0).all()
    assert (low > 0).all()


def test_clip_search_finds_the_least_error():
    # 999 small values and one outlier: keeping the outlier exact would cost all the others
    weight = torch.randn(1, 999, generator=torch.Generator().manual_seed(0))
    weight = torch.cat([weight, torch.full((1, 1), 12.0)], dim=1)
    clip = search_clip(weight, row_ranges(weight), low_bits=4)

    def error(factor):
        scale = weight.abs().max() * factor / 7
        return (quantize(weight, scale, 7.0) * scale - weight).square().sum().item()

    assert error(clip.item()) == min(error(factor) for factor in CLIP_FACTORS)
    assert clip.item() < 1
    assert search_clip(torch.tensor([[7.0, 6.0, 5.0, -7.0, 1.0]]), torch.tensor([7.0]), low_bits=4).item() == 1


def test_the_gradients_of_a_learned_scale_by_hand():
    # scale 0.5 and codes in [-7, 7]: ratios 0.6, -1.2, 18 (clipped), -8 (clipped), 7.2 (rounded)
    x = torch.tensor([0.3, -0.6, 9.0, -4.0, 3.6], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    y = fake_quantize(x, scale, 7.0)
    assert y.tolist() == [0.5, -0.5, 3.5, -3.5, 3.5]
    slopes = [1 - 0.6, -1 + 1.2, 7, -7, 7 - 7.2]
    for index, slope in enumerate(slopes):
        of_x, of_scale = torch.autograd.grad(y[index], (x, scale), retain_graph=True)
        assert of_x.tolist() == [float(index == place and abs(slope) < 1) for place in range(5)]
        assert of_scale.item() == pytest.approx(slope, rel=0.005)  # bfloat16


def test_a_learned_scale_has_no_gradient_from_what_is_not_differentiated():
    scale = torch.tensor(0.5, requires_grad=True)
    with torch.no_grad():
        assert not fake_quantize(torch.randn(3), scale, 7.0).requires_grad
    bias = torch.randn(4, requires_grad=True)
    round_bias(bias, scale.expand(4), torch.tensor(0.1)).sum().backward()
    assert scale.grad is None
    assert bias.grad.tolist() == [1] * 4


def int_quant(*, narrow_range):
    """The oracle: brevitas' quantizer, which autograd differentiates operation by operation."""
    pytest.importorskip("brevitas")
    from brevitas.core.function_wrapper import TensorClamp
    from brevitas.core.quant import IntQuant

    return IntQuant(
        narrow_range=narrow_range, signed=True, input_view_impl=torch.nn.Identity(), tensor_clamp_impl=TensorClamp()
    )


def gradients_of(quantize, x, scale, weigh):
    x, scale = x.clone().requires_grad_(), scale.clone().requires_grad_()
    value = quantize(x, scale)
    (value * weigh).sum().backward()
    return value.detach(), x.grad, scale.grad


def assert_equal_with_gradients(ours, theirs):
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])  # theirs is multiplied and divided by the scale
    torch.testing.assert_close(ours[2], theirs[2], rtol=0.01, atol=0.01)  # slopes are in bfloat16


@pytest.mark.parametrize("gain", [1.0, 0.6])
def test_rows_are_equal_to_brevitas(gain):
    oracle = int_quant(narrow_range=True)
    weight = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    weigh = torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    bits = torch.tensor([8.0, 8, 8, 4, 4, 4])[:, None]
    ranges = gain * row_ranges(weight)
    high, low = row_scales(ranges, search_clip(weight, ranges, low_bits=4), low_bits=4, high_bits=8)
    scale = torch.where(bits == 8, high[:, None], low[:, None])
    limit = torch.where(bits == 8, 127.0, 7.0)
    ours = gradients_of(lambda x, s: fake_quantize(x, s, limit), weight, scale, weigh)
    theirs = gradients_of(lambda x, s: oracle(s, torch.tensor(0.0), bits, x), weight, scale, weigh)
    assert_equal_with_gradients(ours, theirs)
    assert torch.equal(fake_quantize(weight, scale, limit), theirs[0])  # measured


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize(("name", "zero_point"), [("norm1", 0), ("gelu", -119), ("gelu", 37)])
def test_activation_sites_are_equal_to_brevitas(monkeypatch, name, zero_point, pieces):
    oracle = int_quant(narrow_range=not zero_point)
    if pieces:
        monkeypatch.setattr(module, "CACHED_VALUES", 500)
    sites = ActivationSites(("norm1", "gelu"), bits=8, asymmetric=("gelu",))
    index = sites.names.index(name)
    sites.scale[index], sites.zero_point[index] = 0.011, zero_point + 0.3
    x = torch.randn(8, 300, generator=torch.Generator().manual_seed(0))  # some are clipped at either end
    weigh = torch.randn(8, 300, generator=torch.Generator().manual_seed(1))
    measured = sites.quantizer(None)(name, x)
    theirs = gradients_of(
        lambda x, s: oracle(s, torch.tensor(float(zero_point)), torch.tensor(8.0), x), x, sites.scale[index], weigh
    )
    assert torch.equal(measured, theirs[0])
    sites.learn_scale()
    x.requires_grad_()
    learned = sites.quantizer(None)(name, x)
    (learned * weigh).sum().backward()
    to_log = sites.log_gain.grad[index]  # d/dlog s = s * d/ds
    assert_equal_with_gradients((learned.detach(), x.grad, to_log / sites.scale[index]), theirs)
    assert sites.log_gain.grad.count_nonzero() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bounds", [(127.0,), (torch.tensor(97.0), torch.tensor(-158.0))])
def test_large_tensors_piece_by_piece_have_the_same_values(monkeypatch, dtype, bounds):
    x = torch.randn(9, 3, 700, generator=torch.Generator().manual_seed(0)).to(dtype).transpose(1, 2)
    scale = torch.tensor(0.02)
    whole = fake_quantize(x, scale, *bounds)
    monkeypatch.setattr(module, "CACHED_VALUES", 2 * 3 * 700)
    pieces = fake_quantize(x, scale, *bounds)
    assert pieces.dtype == dtype
    assert torch.equal(pieces, whole)
    learned, slope = value_and_slope(x, scale, *bounds)
    assert torch.equal(learned, whole)
    monkeypatch.undo()
    assert torch.equal(value_and_slope(x, scale, *bounds).slope, slope)


def test_autocast_gives_exact_codes_in_its_type():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0), requires_grad=True)
    scale = torch.tensor(0.02)
    with torch.autocast("cpu", torch.bfloat16):
        rough = fake_quantize(x, scale, 127.0)
        of_rough = fake_quantize(x.detach().bfloat16(), scale, 127.0)
    assert rough.dtype == of_rough.dtype == torch.bfloat16
    assert torch.equal((rough.float() / scale).round(), quantize(x.detach(), scale, 127.0))
    # the halves between codes from 64 on need more bits than bfloat16 has: they must not be rounded before the code
    assert torch.equal((of_rough.float() / scale).round(), quantize(x.detach().bfloat16().float(), scale, 127.0))
    rough.sum().backward()
    assert torch.equal(x.grad, torch.ones(1000))
    with torch.autocast("cpu", torch.bfloat16):
        learned = fake_quantize(x, scale.requires_grad_(), 127.0)
    assert torch.equal(learned, rough)
    learned.sum().backward()
    assert scale.grad.dtype == torch.float32
