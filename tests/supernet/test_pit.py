import dataclasses

import pytest
import torch

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device, load_hardware
from hwmodel.errors import DamagedInputError, QuasarError, UsageError
from hwmodel.processor_cost import RooflineCostModel
from hwmodel.workload import Gemm
from supernet.config import DistillConfig, TrainConfig
from supernet.data.config import DataConfig
from supernet.data.splits import open_train
from supernet.evaluate import evaluate
from supernet.functional import Observer
from supernet.lowering import lower
from supernet.pit import PitViT, build_pit
from supernet.pit_shape import PitShape, lower_pit
from supernet.pit_train import train_pit
from supernet.pooling import group_tokens
from supernet.subnet import BlockChoice, Subnet
from supernet.timm_vit import pit_of_timm, plain_vit, workload_of_timm
from supernet.vit import unquantized


def shape(**changes):
    settings = {
        "image_size": 12,
        "patch_size": 2,
        "stride": 2,
        "in_chans": 1,
        "num_classes": 10,
        "widths": (8, 16),
        "depths": (1, 2),
        "heads": (2, 4),
        "mlp_ratio": 2.0,
    }
    return PitShape(**(settings | changes))


def test_a_small_shape_by_hand():
    small = shape()
    assert (small.grids, small.tokens, small.depth) == ((6, 3), (37, 10), 3)
    gemms = {gemm.name: gemm for gemm in lower_pit(small, high_precision_ratio=0.25).gemms}
    # 2 of 8 and 4 of 16 hidden units; 1 of 4 rows of each of the 2 heads in q, k and v
    assert gemms["blocks.0.qkv"] == Gemm(name="blocks.0.qkv", kind="qkv", tokens=37, inputs=8, rows_high=6, rows_low=18)
    assert (gemms["blocks.0.fc1"].rows_high, gemms["blocks.0.fc1"].rows_low) == (4, 12)
    assert (gemms["blocks.2.scores"].tokens, gemms["blocks.2.scores"].count) == (10, 4)
    # 9 tokens of 2 x 2 neighbours of 8 channels, wholly at 8 bits; the class token has a linear of its own
    assert gemms["pools.1.merge"] == Gemm(
        name="pools.1.merge", kind="merge", tokens=9, inputs=32, rows_high=16, rows_low=0
    )
    assert (gemms["pools.1.class_token"].tokens, gemms["pools.1.class_token"].inputs) == (1, 8)
    assert (gemms["head"].inputs, gemms["head"].rows, gemms["head"].count) == (16, 10, 1)
    depthwise = {gemm.name: gemm for gemm in lower_pit(shape(pooling="depthwise")).gemms}["pools.1.conv"]
    assert (depthwise.tokens, depthwise.inputs, depthwise.rows, depthwise.count) == (9, 9, 2, 8)


def test_overlapping_patches_and_odd_grids():
    # 13 pixels in patches of 4 at every 2: grids of 5, 3 and 2
    odd = shape(image_size=13, patch_size=4, widths=(8, 8, 16), depths=(1, 1, 1), heads=(2, 2, 2))
    assert odd.grids == (5, 3, 2)
    model = build_pit(odd)
    assert model(torch.randn(2, 1, 13, 13)).shape == (2, 10)


def test_one_stage_costs_what_the_plain_vit_costs():
    ratio, one = 0.3, shape(widths=(16,), depths=(2,), heads=(4,))
    block = BlockChoice(
        num_heads=4,
        mlp_ratio=2.0,
        operator="attention",
        qkv_ratio=ratio,
        proj_ratio=ratio,
        fc1_ratio=ratio,
        fc2_ratio=ratio,
    )
    plain = lower(
        Subnet(image_size=12, patch_size=2, in_chans=1, num_classes=10, embed_dim=16, head_dim=4, blocks=(block, block))
    )
    pooled = lower_pit(one, high_precision_ratio=ratio)
    assert pooled.gemms == plain.gemms
    assert pooled.activation_bytes == plain.activation_bytes
    # but for the class token, which has no position
    assert pooled.vectors[0] == dataclasses.replace(plain.vectors[0], tokens=36)
    assert pooled.vectors[1:] == plain.vectors[1:]


@pytest.mark.parametrize(("name", "gmacs"), [("pit_ti_224", 0.7), ("pit_xs_224", 1.4), ("pit_s_224", 2.9)])
def test_macs_are_those_of_the_paper(name, gmacs):
    # Table 5 of arXiv:2103.16302, in GFLOPs that count a multiplication with its addition once
    assert workload_of_timm(name).macs == pytest.approx(gmacs * 1e9, rel=0.03)


@pytest.mark.parametrize("name", ["pit_ti_224", "pit_ti_distilled_224"])
def test_macs_are_those_that_timm_computes(name):
    import timm

    model = timm.create_model(name, pretrained=False)
    counted = []

    def count(module, inputs, output):
        if isinstance(module, torch.nn.Conv2d):
            counted.append(output[0].numel() * module.weight[0].numel())
        elif isinstance(module, torch.nn.Linear):
            counted.append(inputs[0][0].numel() * module.out_features)
        else:  # the two products of attention, in which timm calls no module
            tokens, width = inputs[0].shape[1:]
            counted.append(2 * tokens * tokens * width)

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) or type(module).__name__ == "Attention":
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    workload = workload_of_timm(name)
    assert workload.macs == sum(counted)
    assert workload.weight_bytes == sum(
        module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    )


def test_the_network_is_that_of_timm():
    from timm.models.pit import PoolingVisionTransformer

    small = shape(in_chans=3, image_size=14, patch_size=4, stride=2, pooling="depthwise", class_tokens=2)
    assert small.grids == (6, 3)
    theirs = PoolingVisionTransformer(
        img_size=14, patch_size=4, stride=2, base_dims=(4, 4), depth=(1, 2), heads=(2, 4), mlp_ratio=2, num_classes=10,
        distilled=True,
    ).eval()  # fmt: skip
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = build_pit(small)
    copy_timm(ours, theirs)
    images = torch.randn(2, 3, 14, 14)
    with torch.no_grad():
        logits = ours(images, Observer(quantize=False), weights=unquantized)
        torch.testing.assert_close(logits, theirs(images), rtol=1e-4, atol=1e-4)


def copy_timm(ours: PitViT, theirs: torch.nn.Module) -> None:
    """The weights of timm's model, in our order."""
    source = theirs.state_dict()
    state = {
        "patch_embed.weight": source["patch_embed.conv.weight"].flatten(1),
        "patch_embed.bias": source["patch_embed.conv.bias"],
        "cls_token": source["cls_token"][0],
        "position": source["pos_embed"][0].flatten(1).T,
        **{f"norm.{name}": source[f"norm.{name}"] for name in ("weight", "bias")},
    }
    for name in ("weight", "bias"):
        state |= {f"heads.{i}.{name}": source[f"{head}.{name}"] for i, head in enumerate(("head", "head_dist"))}
        pool = source[f"transformers.1.pool.conv.{name}"]
        state[f"pools.0.patches.{name}"] = pool.flatten(1) if name == "weight" else pool
        state[f"pools.0.class_token.{name}"] = source[f"transformers.1.pool.fc.{name}"]
    for stage, (depth, heads) in enumerate(zip(ours.shape.depths, ours.shape.heads, strict=True)):
        for block in range(depth):
            to, of = f"stages.{stage}.{block}", f"transformers.{stage}.blocks.{block}"
            for name in ("weight", "bias"):
                qkv = source[f"{of}.attn.qkv.{name}"]
                # timm has all queries before all keys before all values
                ordered = qkv.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)
                state[f"{to}.mixers.attention.qkv.{name}"] = ordered
                state[f"{to}.mixers.attention.proj.{name}"] = source[f"{of}.attn.proj.{name}"]
                for ours_name, theirs_name in (("norm1",) * 2, ("norm2",) * 2, ("mlp.fc1",) * 2, ("mlp.fc2",) * 2):
                    state[f"{to}.{ours_name}.{name}"] = source[f"{of}.{theirs_name}.{name}"]
    own = ours.state_dict()
    assert {k for k in own if "clip" not in k and "sites" not in k} == state.keys()
    ours.load_state_dict(own | state)


def test_grouped_tokens_are_ordered_by_channels():
    x = torch.arange(2 * 4).reshape(1, 4, 2)  # a grid of 2 x 2 tokens of 2 channels
    assert group_tokens(x).tolist() == [[[0, 2, 4, 6, 1, 3, 5, 7]]]
    wide = torch.randn(3, 25, 6)
    grouped = group_tokens(wide)
    assert grouped.shape == (3, 9, 24)
    assert torch.equal(group_tokens(wide[..., :4]), grouped[..., :16])  # a prefix of the channels
    assert torch.equal(grouped[:, 8].reshape(3, 6, 4)[..., 1:], torch.zeros(3, 6, 3))  # beyond the odd grid's corner


def test_pooling_a_grid_is_a_strided_convolution():
    x, weight = torch.randn(2, 16, 3), torch.randn(5, 12)
    convolved = torch.nn.functional.conv2d(x.transpose(1, 2).unflatten(2, (4, 4)), weight.reshape(5, 3, 2, 2), stride=2)
    torch.testing.assert_close(group_tokens(x) @ weight.T, convolved.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("pooling", ["merge", "depthwise"])
def test_quantized_rows_have_the_bits_that_are_priced(pooling):
    torch.manual_seed(0)
    small = shape(pooling=pooling)
    model = build_pit(small, high_precision_ratio=0.25)
    images = torch.randn(16, 1, 12, 12)
    observer = Observer(quantize=False)
    with torch.no_grad():
        model(images, observer)
    observer.update(momentum=0.0)
    with torch.no_grad():
        quantized_logits = model(images)
        float_logits = model(images, Observer(quantize=False), weights=unquantized)
    assert not torch.equal(quantized_logits, float_logits)
    assert torch.stack([quantized_logits.flatten(), float_logits.flatten()]).corrcoef()[0, 1] > 0.95
    seen = {}

    def note(linear, plan, scale):
        seen[id(linear)] = plan
        return linear.active(plan, scale)

    with torch.no_grad():
        model(images, weights=note)
    bits = sum(int(plan.row_bits.sum()) * plan.inputs for plan in seen.values())
    assert bits == 8 * lower_pit(small, high_precision_ratio=0.25).weight_bytes


def test_every_kind_of_device_prices_it():
    workload = lower_pit(shape())
    accelerator = AcceleratorConfig(
        array_rows=8, array_inputs=8, backend="dual", clock_mhz=150, weight_stream_bits=64, activation_stream_bits=32,
        output_stream_bits=32, activations="onchip", activation_buffer_bytes=10_000, max_tokens=64, vector_lanes=4,
    )  # fmt: skip
    cost = FpgaCostModel(load_device("zcu102"), accelerator).estimate(workload)
    assert cost.violations == ()
    assert RooflineCostModel(load_hardware("jetson_tx2")).estimate(workload).latency_ms > 0


def test_scaling_by_depth_width_and_resolution():
    tiny = pit_of_timm("pit_ti_224")
    assert (tiny.widths, tiny.depths, tiny.heads) == ((64, 128, 256), (2, 6, 4), (2, 4, 8))
    assert tiny.scaled() == tiny
    deeper = tiny.scaled(depth=1.5)
    assert deeper.depths == (3, 9, 6)
    assert tiny.scaled(depth=13 / 12).depths in {(2, 7, 4), (3, 6, 4)}
    assert tiny.scaled(depth=0.1).depths == (1, 1, 1)
    assert tiny.scaled(width=1.25).widths == (80, 160, 320)  # 40 channels a head
    assert tiny.scaled(image_size=288).grids == (35, 18, 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 3}, "need stride <= patch_size <= image_size"),
        ({"depths": (1,)}, "one number for each stage"),
        ({"heads": (3, 4)}, "3 heads do not divide 8"),
        ({"widths": (8, 12), "pooling": "depthwise"}, "needs 12 to be a multiple of 8"),
        ({"class_tokens": 3}, "class_tokens must be 1 or 2"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(UsageError, match=message):
        shape(**changes)


def test_files_and_names(tmp_path):
    path = tmp_path / "pit.json"
    path.write_text('{"image_size": 12, "widts": [8]}')
    with pytest.raises(DamagedInputError, match=r"pit.json: unknown key 'widts': did you mean 'widths'"):
        PitShape.load(path)
    assert PitShape.from_dict(shape().to_dict()) == shape()
    assert shape().digest != shape(pooling="depthwise").digest
    with pytest.raises(UsageError, match="did you mean 'pit_ti_224'"):
        pit_of_timm("pit_ti_22")
    with pytest.raises(UsageError, match="only PiT"):
        plain_vit("swin_tiny_patch4_window7_224")


@pytest.fixture(scope="module")
def splits():
    return open_train(DataConfig(name="digits"), image_size=8, seed=0)


def trained(split, config, **changes):
    return train_pit(
        shape(image_size=8, widths=(16, 32), depths=(1, 1), heads=(2, 4), **changes),
        high_precision_ratio=0.5,
        config=config,
        train_split=split,
        seed=0,
        device=torch.device("cpu"),
        progress=lambda done, total, text: None,
    )


def test_it_learns_and_repeats_itself(splits):
    config = TrainConfig(epochs=4, batch_size=64, lr=3e-3, warmup_epochs=1, float_epochs=1, ema_decay=0.9)
    model = trained(splits[0], config)
    assert evaluate(model, splits[1], batch_size=100).accuracy > 0.3  # chance is 0.1
    again = trained(splits[0], config).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_what_a_training_cannot_do_is_said(splits):
    with pytest.raises(UsageError, match=r"train.mixup: the training of a PiT has none; set it to 0"):
        trained(splits[0], TrainConfig(epochs=6, batch_size=64, lr=3e-3, mixup=0.2))
    distill = DistillConfig(kind="kl", teacher="deit_tiny_patch16_224")
    with pytest.raises(UsageError, match=r"train.distill.kind: nothing teaches a PiT"):
        trained(splits[0], TrainConfig(epochs=6, batch_size=64, lr=3e-3, distill=distill))
    with pytest.raises(QuasarError, match="training a PiT, seed 0: the loss became infinite or no number in epoch 1"):
        trained(splits[0], TrainConfig(epochs=1, batch_size=64, lr=1e30, warmup_epochs=0, clip_grad_norm=None))
