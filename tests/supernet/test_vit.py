import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.errors import DamagedInputError, UsageError
from supernet.functional import Observer, resize_images, resize_position
from supernet.plan import attention_plan, head_plan, mlp_plan, patch_plan
from supernet.standalone import SubnetViT, extract
from supernet.vit import ElasticLinear, QuantizedOnce, SupernetViT, quantized, unquantized


def random_subnet(space, seed):
    return space.decode(space.sample(np.random.default_rng(seed), 1)[0])


def with_learned_scales(model, seed):
    """The model with scales that have been learned: at random, so that rows and activations are clipped."""
    model.learn_scales()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("log_range", "log_gain")):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def elastic_linears(model, subnet):
    """Each linear of the supernet that `subnet` uses, with its plan."""
    yield model.patch_embed, patch_plan(subnet)
    yield model.head, head_plan(subnet)
    for module, block in zip(model.blocks, subnet.blocks, strict=False):
        for owner, plans in ((module.mixers[block.operator], attention_plan), (module.mlp, mlp_plan)):
            for name, plan in plans(subnet, block).items():
                yield owner.get_submodule(name), plan


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), learned=st.booleans())
def test_codes_of_any_subnet_are_slices_of_the_two_stores(make_space, make_supernet, seed, learned):
    space = make_space()
    model = make_supernet(space)
    if learned:
        with_learned_scales(model, seed)
    for linear, plan in elastic_linears(model, random_subnet(space, seed)):
        codes, scale = linear.codes(plan)
        high, low = linear.stores()
        is_high = torch.from_numpy(plan.is_high)[:, None]
        active = (slice(plan.rows), slice(plan.inputs))
        assert torch.equal(codes, torch.where(is_high, high[active], low[active]))
        assert codes.abs().max() <= 127
        assert (codes * ~is_high).abs().max() <= 7
        # what the forward pass multiplies with is those codes, times the scale of the row
        active = linear.active(plan, torch.tensor(0.02))
        assert torch.equal(active.weight, codes.float() * scale[:, None])
        units = active.bias / (0.02 * scale)
        torch.testing.assert_close(units, units.round())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), layer_scale=st.sampled_from([None, 0.3]), learned=st.booleans())
def test_an_extracted_subnet_gives_the_outputs_of_the_supernet(make_space, make_supernet, seed, layer_scale, learned):
    space = make_space()
    model = make_supernet(space, layer_scale=layer_scale)
    if learned:
        with_learned_scales(model, seed)
    subnet = random_subnet(space, seed)
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    standalone = extract(model, subnet)
    reloaded = SubnetViT(subnet, layer_scale=layer_scale is not None)
    reloaded.load(standalone.state_dict(), source="memory")
    with torch.no_grad():
        expected = model(x, subnet)
        assert torch.equal(standalone(x), expected)
        assert torch.equal(reloaded(x), expected)
        assert expected.shape == (5, 10)


def test_a_call_changes_nothing(space, supernet):
    before = copy.deepcopy(supernet.state_dict())
    x = torch.randn(4, 1, 8, 8)
    first = supernet(x, space.largest())
    supernet(x, space.smallest())
    assert torch.equal(supernet(x, space.largest()), first)
    for name, value in supernet.state_dict().items():
        assert torch.equal(value, before[name])


def test_gradients_stay_inside_the_active_slice(space, supernet):
    subnet = space.smallest()
    supernet(torch.randn(4, 1, 8, 8), subnet).square().sum().backward()
    fc1 = supernet.blocks[0].mlp.fc1
    rows, inputs = 18, 12  # mlp_ratio 1.5 of 12 channels
    assert fc1.weight.grad[:rows, :inputs].abs().sum() > 0
    assert fc1.weight.grad[rows:].abs().sum() == 0
    assert fc1.weight.grad[:, inputs:].abs().sum() == 0
    assert supernet.blocks[1].mlp.fc1.weight.grad is None


def test_more_low_rows_change_only_those_rows():
    torch.manual_seed(0)
    linear = ElasticLinear(8, 6, weight_bits=(4, 8))
    from supernet.plan import LinearPlan

    def weight(high):
        plan = LinearPlan(site="x", rows=8, inputs=6, group=4, high=high, low_bits=4, high_bits=8)
        return linear.active(plan, torch.tensor(1.0)).weight

    differs = (weight(4) != weight(1)).any(dim=1)
    assert differs.tolist() == [False, True, True, True, False, True, True, True]


def test_scales_come_from_the_full_row():
    linear = ElasticLinear(2, 4, weight_bits=(4, 8))
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[0.1, 0.2, 0.3, 1.27], [0.1, 0.1, 0.1, 0.1]]))
    from supernet.plan import LinearPlan

    codes, scale = linear.codes(LinearPlan(site="x", rows=1, inputs=3, group=1, high=1, low_bits=4, high_bits=8))
    torch.testing.assert_close(scale, torch.tensor([0.01]))
    assert codes.tolist() == [[10, 20, 30]]


def test_observer_measures_and_updates_scales(space, supernet):
    observer = Observer()
    x = torch.full((1, 1, 8, 8), 2.54)
    supernet(x, space.largest(), observer)
    before = supernet.sites.scale[0].item()
    observer.update(momentum=0.5)
    assert supernet.sites.scale[0].item() == pytest.approx(0.5 * before + 0.5 * 0.02, rel=1e-5)
    assert not observer.ranges


def test_the_range_of_gelu_has_a_code_at_each_end(space, supernet):
    sites = supernet.blocks[0].sites
    gelu = sites.names.index("gelu")
    quantize = sites.quantizer(None)
    # 255 steps of 0.02 from -0.18 to 4.92: 0 is the ninth code above -128
    sites.move_range(gelu, torch.tensor(-0.18), torch.tensor(4.92))
    assert sites.scale[gelu].item() == pytest.approx(0.02)
    assert sites.zero_point[gelu].item() == pytest.approx(-119)
    x = torch.tensor([-1.0, -0.165, 0.0, 0.029, 4.92, 9.0])
    torch.testing.assert_close(quantize("gelu", x), torch.tensor([-0.18, -0.16, 0, 0.02, 4.92, 4.92]))
    # a symmetric site ignores the side that is shorter
    norm = sites.names.index("norm1")
    sites.move_range(norm, torch.tensor(-0.17), torch.tensor(2.54))
    assert (sites.scale[norm].item(), sites.zero_point[norm].item()) == (pytest.approx(0.02), 0)
    torch.testing.assert_close(quantize("norm1", x), torch.tensor([-1.0, -0.16, 0, 0.02, 2.54, 2.54]))


def test_a_running_range_moves_at_both_ends(supernet):
    sites = supernet.blocks[0].sites
    gelu = sites.names.index("gelu")

    def ends():
        lowest = -128 - sites.zero_point[gelu].item()
        return pytest.approx((lowest * sites.scale[gelu].item(), (lowest + 255) * sites.scale[gelu].item()), abs=1e-5)

    sites.move_range(gelu, torch.tensor(-0.16), torch.tensor(3.0))
    assert ends() == (-0.16, 3.0)
    sites.move_range(gelu, torch.tensor(-0.12), torch.tensor(5.0), momentum=0.75)
    assert ends() == (-0.15, 3.5)
    for _ in range(60):  # by less than half a code each, in the end
        sites.move_range(gelu, torch.tensor(0.5), torch.tensor(5.0), momentum=0.75)
    assert ends() == (0.0, 5.0)  # 0 has a code whatever is seen


def test_extracted_zero_points_are_integers_that_give_the_same_values(space, supernet):
    subnet = space.largest()
    module = extract(supernet, subnet)
    zero_points = torch.stack([block.sites.zero_point for block in module.blocks])
    assert torch.equal(zero_points, zero_points.round())
    assert (zero_points != 0).sum(dim=0).tolist() == [0, 0, 0, 3]
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(module(x), supernet(x, subnet))


def test_a_zero_point_folds_into_the_bias_in_integers(space, supernet):
    fc2 = extract(supernet, space.largest()).blocks[0].mlp["fc2"]
    codes = torch.randint(-128, 128, (5, fc2.codes.shape[1]))
    bias, zero_point = torch.randint(-9999, 9999, (fc2.codes.shape[0],)), -119
    weight = fc2.codes.long()
    folded = bias - zero_point * weight.sum(dim=1)
    assert torch.equal((codes - zero_point) @ weight.T + bias, codes @ weight.T + folded)


def test_weights_from_before_zero_points_load_as_symmetric(space, supernet):
    subnet = space.smallest()
    for make, load in (
        (lambda: SupernetViT(space, layer_scale=0.5), lambda model, state: model.load_state_dict(state)),
        (lambda: SubnetViT(subnet, layer_scale=True), lambda model, state: model.load(state, source="f")),
    ):
        model = make()
        state = {name: value for name, value in model.state_dict().items() if not name.endswith("zero_point")}
        model.blocks[0].sites.zero_point.fill_(5)
        load(model, state)
        assert not model.blocks[0].sites.zero_point.any()


def test_a_float_observer_switches_quantization_off(space, supernet):
    x = torch.randn(2, 1, 8, 8)
    quantized = supernet(x, space.largest())
    free = supernet(x, space.largest(), Observer(quantize=False))
    assert not torch.equal(quantized, free)
    assert (quantized - free).abs().max() < 0.5 * free.abs().max()


def test_eight_bits_are_closer_to_float_than_four(make_space, make_supernet):
    space = make_space(high_precision_ratio=(0, 1), mlp_ratio=(2,), num_heads=(3,), depth=(3,), embed_dim=(16,))
    model = make_supernet(space)
    x = torch.randn(64, 1, 8, 8)
    genotype = space.encode(space.largest())
    low = genotype.copy()
    low[[3 + 7 * b + r for b in range(3) for r in (3, 4, 5, 6)]] = 0
    with torch.no_grad():
        for linear in (m for m in model.modules() if isinstance(m, ElasticLinear)):
            linear.refresh_clip()
        high_bits = model(x, space.decode(genotype))
        low_bits = model(x, space.decode(low))
        for linear in (m for m in model.modules() if isinstance(m, ElasticLinear)):
            linear.high_bits = linear.low_bits = 24  # practically float
        reference = model(x, space.decode(genotype))
    assert (high_bits - reference).square().mean() < 0.3 * (low_bits - reference).square().mean()


def test_a_subnet_outside_the_space_is_refused(make_space, supernet):
    outside = make_space(embed_dim=(16, 20)).largest()
    with pytest.raises(UsageError, match="embed_dim is 20"):
        supernet(torch.zeros(1, 1, 8, 8), outside)
    with pytest.raises(UsageError, match="embed_dim is 20"):
        extract(supernet, outside)


def test_load_names_the_tensor_that_does_not_fit(space, supernet):
    state = extract(supernet, space.smallest()).state_dict()
    other = SubnetViT(space.largest(), layer_scale=True)
    with pytest.raises(DamagedInputError, match=r"f\.safetensors: tensor 'blocks\.0\.mixer\.proj\.bias' is"):
        other.load(state, source="f.safetensors")
    state.pop("cls_token")
    with pytest.raises(DamagedInputError, match="'cls_token' is missing"):
        SubnetViT(space.smallest(), layer_scale=True).load(state, source="f")


def test_positions_and_images_are_resized_only_where_needed():
    position = torch.randn(17, 4)
    assert resize_position(position, 4) is position
    smaller = resize_position(position, 3)
    assert smaller.shape == (10, 4)
    assert torch.equal(smaller[0], position[0])
    constant = torch.cat([position[:1], torch.ones(16, 4)])
    torch.testing.assert_close(resize_position(constant, 3)[1:], torch.ones(9, 4))
    images = torch.randn(2, 1, 8, 8)
    assert resize_images(images, 8) is images
    assert resize_images(images, 6).shape == (2, 1, 6, 6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), learned=st.booleans())
def test_weights_quantized_once_are_those_of_each_subnet_bit_for_bit(make_space, make_supernet, seed, learned):
    space = make_space()
    model = make_supernet(space)
    if learned:
        with_learned_scales(model, seed)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    once = QuantizedOnce()
    for subnet in (space.largest(), random_subnet(space, seed), space.smallest()):
        gradients = []
        for weights in (quantized, once):
            model.zero_grad()
            logits = model(x, subnet, weights=weights)
            logits.square().sum().backward()
            gradients.append((logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)))
            assert not learned or model.head.log_range.grad.any()
        assert len(gradients[0]) == len(gradients[1])
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))


def test_unquantized_weights_are_slices(space, supernet):
    subnet = space.smallest()
    plan = patch_plan(subnet)
    linear = unquantized(supernet.patch_embed, plan, torch.tensor(0.1))
    assert torch.equal(linear.weight, supernet.patch_embed.weight[: plan.rows, : plan.inputs])
    assert torch.equal(linear.bias, supernet.patch_embed.bias[: plan.rows])


@pytest.mark.parametrize("layer_scale", [None, 0.5])
def test_drop_path_factors_scale_the_branches_of_each_image(make_space, make_supernet, layer_scale):
    space = make_space()
    model, subnet = make_supernet(space, layer_scale=layer_scale), space.largest()
    x = torch.randn(2, 1, 8, 8)
    kept = torch.ones(space.max_depth, 2, 2)
    with torch.no_grad():
        torch.testing.assert_close(model(x, subnet, drop_path_L2B=kept), model(x, subnet))
        kept[:, :, 1] = 0  # the second image loses all branches: what is left is the embedding of its patches
        dropped = model(x, subnet, drop_path_L2B=kept)
        torch.testing.assert_close(dropped[0], model(x, subnet)[0])
        for module in model.blocks:
            module.forward = lambda tokens, *rest, **settings: tokens
        torch.testing.assert_close(dropped[1], model(x, subnet)[1])
