import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from supernet import quantize as module
from supernet.quantize import CLIP_FACTORS, fake_quantize, qmax, quantize, row_scales, search_clip


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
    high, low = row_scales(weight, torch.tensor([0.5, 1.0]), low_bits=4, high_bits=8)
    torch.testing.assert_close(high[0], torch.tensor(0.02))
    torch.testing.assert_close(low[0], torch.tensor(2.54 * 0.5 / 7))
    assert (high > 0).all()
    assert (low > 0).all()


def test_clip_search_finds_the_least_error():
    # 999 small values and one outlier: keeping the outlier exact would cost all the others
    weight = torch.randn(1, 999, generator=torch.Generator().manual_seed(0))
    weight = torch.cat([weight, torch.full((1, 1), 12.0)], dim=1)
    clip = search_clip(weight, low_bits=4)

    def error(factor):
        scale = weight.abs().max() * factor / 7
        return (quantize(weight, scale, 7.0) * scale - weight).square().sum().item()

    assert error(clip.item()) == min(error(factor) for factor in CLIP_FACTORS)
    assert clip.item() < 1
    assert search_clip(torch.tensor([[7.0, 6.0, 5.0, -7.0, 1.0]]), low_bits=4).item() == 1


def test_equal_to_brevitas():
    pytest.importorskip("brevitas")
    from brevitas.core.function_wrapper import TensorClampSte
    from brevitas.core.quant import IntQuant

    oracle = IntQuant(
        narrow_range=True, signed=True, input_view_impl=torch.nn.Identity(), tensor_clamp_impl=TensorClampSte()
    )
    weight = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    bits = torch.tensor([8.0, 8, 8, 4, 4, 4])[:, None]
    high, low = row_scales(weight, search_clip(weight, low_bits=4), low_bits=4, high_bits=8)
    scale = torch.where(bits == 8, high[:, None], low[:, None])
    limit = torch.where(bits == 8, 127.0, 7.0)
    theirs = oracle(scale, torch.tensor(0.0), bits, weight)
    assert torch.equal(fake_quantize(weight, scale, limit), theirs)


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
