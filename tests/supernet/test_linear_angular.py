"""Linear-angular attention: its formula, its cost by hand, its integers, and the branch that fades."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from hwmodel.errors import UsageError
from hwmodel.explore import best_accelerator
from hwmodel.workload import Gemm, VectorOp
from supernet.checkpoint import Checkpoint
from supernet.config import FinetuneConfig, SupernetConfig, TrainConfig
from supernet.data.config import DataConfig
from supernet.data.splits import open_train
from supernet.functional import Linear, attention
from supernet.integer_vit import integer_form
from supernet.lowering import lower
from supernet.operators.linear_angular import IntegerLinearAngular, linear_angular
from supernet.operators.registry import OPERATORS, TokenMixer
from supernet.pretrained import initialise
from supernet.train import train
from supernet.vit import SupernetViT

OPERATOR = "linear-angular"


def unquantized(site, x):
    return x


def mixed(q, k, v, auxiliary=0.0):
    """The operator between qkv and proj on q, k and v (H, T, N), in floats: (H, T, N)."""
    heads, tokens, channels = q.shape
    qkv = torch.stack([q, k, v], dim=2).permute(1, 0, 2, 3).reshape(1, tokens, -1)
    identity = {"qkv": lambda x: x, "proj": lambda x: x}
    out = linear_angular(qkv, identity, head_dim=channels, quantizer=unquantized, auxiliary=auxiliary)
    return out.reshape(tokens, heads, channels).permute(1, 0, 2)


def random_heads(seed, heads=2, tokens=7, channels=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, heads, tokens, channels, generator=generator, dtype=torch.float64)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), tokens=st.integers(1, 20), channels=st.integers(2, 16))
def test_it_is_twice_the_linear_part_of_the_angular_similarity_averaged(seed, tokens, channels):
    q, k, v = random_heads(seed, tokens=tokens, channels=channels)

    def unit(x):
        centred = x - x.mean(dim=-1, keepdim=True)
        # the LayerNorm's epsilon is 1e-6
        return centred / (centred.square().sum(dim=-1, keepdim=True) + channels * 1e-6).sqrt()

    similarity = 0.5 + unit(q) @ unit(k).transpose(-2, -1) / math.pi
    torch.testing.assert_close(mixed(q, k, v), 2 * similarity @ v / tokens)


def test_right_angles_mix_evenly_and_the_similarity_is_the_tangent_of_the_angular_one_there():
    angle = torch.linspace(0, math.pi, 101, dtype=torch.float64)
    linear, exact = 0.5 + angle.cos() / math.pi, 1 - angle / math.pi
    assert (linear - exact).abs().max() < 0.19  # at 0 and at pi: 1/2 - 1/pi
    assert abs(linear[50] - exact[50]) < 1e-12
    q = torch.tensor([[[1.0, -1.0, 0.0, 0.0]]], dtype=torch.float64).expand(1, 3, 4)
    k = torch.tensor([[[0.0, 0.0, 1.0, -1.0]]], dtype=torch.float64).expand(1, 3, 4)
    v = torch.arange(12.0, dtype=torch.float64).reshape(1, 3, 4)
    torch.testing.assert_close(mixed(q, k, v), v.mean(dim=1, keepdim=True).expand(1, 3, 4))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_lengths_and_means_of_queries_and_the_order_of_keys_do_not_matter(seed):
    q, k, v = random_heads(seed)
    order = torch.randperm(k.shape[1], generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(mixed(q, k[:, order], v[:, order]), mixed(q, k, v))
    torch.testing.assert_close(mixed(100 * q + 5, 3 * k - 7, v), mixed(q, k, v), rtol=1e-3, atol=1e-3)


def test_the_branch_of_training_keeps_the_shares_above_the_mean():
    q = torch.tensor([[[4.0, 0.0]] * 3])
    k = torch.tensor([[[3.0, 0.0], [0.0, 0.0], [-3.0, 0.0]]])
    v = torch.eye(3)[None, :, :2]
    exponentials = [math.exp(4 * key / math.sqrt(2)) for key in (3, 0, -3)]
    share = exponentials[0] / sum(exponentials)
    assert exponentials[1] / sum(exponentials) < 1 / 3 < share
    added = mixed(q, k, v, auxiliary=0.25) - mixed(q, k, v)
    torch.testing.assert_close(added, torch.tensor([[[0.25 * share, 0.0]] * 3]))


def test_softmax_attention_adds_nothing_in_training():
    x, head_dim = torch.randn(2, 5, 8), 4
    linears = {"qkv": Linear(torch.randn(24, 8), torch.zeros(24)), "proj": Linear(torch.randn(8, 8), torch.zeros(8))}
    plain = attention(x, linears, head_dim=head_dim, quantizer=unquantized)
    assert torch.equal(attention(x, linears, head_dim=head_dim, quantizer=unquantized, auxiliary=1.0), plain)


def test_its_layers_by_hand(make_space):
    subnet = make_space(depth=(1,), mlp_ratio=(1,), operator=(OPERATOR,)).largest()
    subnet = dataclasses.replace(subnet, blocks=(dataclasses.replace(subnet.blocks[0], qkv_ratio=0.3),))
    workload = lower(subnet)
    # 16 patches and the class token; 3 heads of 4 channels; width 16
    gemms = {gemm.kind: gemm for gemm in workload.gemms}
    assert gemms["qkv"] == Gemm(name="blocks.0.qkv", kind="qkv", tokens=17, inputs=16, rows_high=18, rows_low=18)
    product = {"rows_high": 4, "rows_low": 0, "count": 3, "stored": False}
    assert gemms["context"] == Gemm(name="blocks.0.context", kind="context", tokens=4, inputs=17, **product)
    assert gemms["readout"] == Gemm(name="blocks.0.readout", kind="readout", tokens=17, inputs=4, **product)
    assert gemms["proj"] == Gemm(name="blocks.0.proj", kind="proj", tokens=17, inputs=12, rows_high=16, rows_low=0)
    assert gemms.keys().isdisjoint({"scores", "mix"})
    units = [VectorOp(name=f"blocks.0.{part}_unit", kind="layernorm", tokens=3 * 17, width=4, count=1) for part in "qk"]
    assert [vector for vector in workload.vectors if vector.name.endswith("_unit")] == units
    # q, k and v beside the normalised input, and 16-bit residuals
    assert workload.activation_bytes == 17 * (36 + 16) + 2 * 17 * 16


def test_at_many_tokens_it_takes_fewer_cycles_than_softmax_attention(make_space):
    device = load_device("zcu102")
    for size, times in ((8, 1.0), (64, 2.0)):
        of = {
            name: lower(make_space(image_size=(size,), head_dim=16, operator=(name,)).largest())
            for name in ("attention", OPERATOR)
        }
        model = FpgaCostModel(device, best_accelerator([of["attention"]], device, array=(8, 16)))
        softmax, linear = (model.estimate(workload).cycles for workload in of.values())
        assert softmax > times * linear


def test_costs_are_computed_without_torch():
    code = (
        "import sys, supernet.lowering, supernet.operators.linear_angular;"
        "from supernet.operators.registry import OPERATORS; OPERATORS.get('linear-angular');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_there_is_one_torch_class_of_a_name_that_pickles():
    made = OPERATORS.get(OPERATOR).load_module()
    assert made is OPERATORS.get(OPERATOR).load_module()
    assert (made.__module__, made.__qualname__) == ("supernet.operators.linear_angular", "ElasticLinearAngular")
    with pytest.raises(AttributeError, match="no attribute 'Elastic'"):
        OPERATORS.get(OPERATOR).__class__.load_module(
            TokenMixer(lower=None, module="supernet.operators.linear_angular:Elastic")
        )


def test_integers_by_hand():
    """One head of two channels, two tokens: centred and normalised, (x, y) becomes (1, -1) or (-1, 1)."""
    scales = {"q": 1.0, "k": 1.0, "v": 1.0, "q_unit": 1 / 32, "k_unit": 1 / 32, "context": 0.25, "mixed": 0.25}
    mixer = IntegerLinearAngular.of("blocks.0", scales, head_dim=2, tokens=2, own_scale=None)
    layers = {}
    qkv = np.array([[[[[9, 5], [-3, 7], [16, 0]]], [[[0, 2], [40, 0], [4, -8]]]]], dtype=np.int8)
    out = mixer(qkv, lambda name, operation: layers.setdefault(name, []).append(operation))
    high, low = round(32 * (1 + math.sqrt(math.pi / 2))), round(32 * (-1 + math.sqrt(math.pi / 2)))
    assert layers["blocks.0.q_unit"][0].x.tolist() == [[256 * 9, 256 * 5], [0, 512]]
    np.testing.assert_array_equal(layers["blocks.0.q_unit"][0].outputs(), [[high, low], [low, high]])
    np.testing.assert_array_equal(layers["blocks.0.k_unit"][0].outputs(), [[low, high], [high, low]])
    keys, values = np.array([[low, high], [high, low]]), np.array([[16, 0], [4, -8]])
    context = np.floor(values.T @ keys / (32 * 2 * 0.25) + 0.5)
    np.testing.assert_array_equal(layers["blocks.0.context"][0].outputs(), context)
    readout = np.floor(np.array([[high, low], [low, high]]) @ context.T * (0.25 / 32 / math.pi / 0.25) + 0.5)
    np.testing.assert_array_equal(out[0, :, 0], readout)


def test_short_vectors_keep_their_direction():
    """The integer root of a LayerNorm is one of whole numbers: codes of 1 and 2 need the bits below."""
    scales = dict.fromkeys(("v", "context", "mixed"), 0.1) | {"q": 0.01, "k": 0.01, "q_unit": 0.04, "k_unit": 0.04}
    mixer = IntegerLinearAngular.of("blocks.0", scales, head_dim=16, tokens=8, own_scale=None)
    q = np.random.default_rng(0).integers(-2, 3, (8, 16)).astype(np.int8)
    found = mixer.q_unit(q.astype(np.int16) << 8, None)
    x = 0.01 * q.astype(np.float64)
    x -= x.mean(axis=1, keepdims=True)
    exact = (x / np.sqrt(x.var(axis=1, keepdims=True) + 1e-6) + math.sqrt(math.pi / 2)) / 0.04
    assert np.abs(found - exact).max() < 0.51


def test_an_operator_without_integers_is_named(monkeypatch):
    monkeypatch.setitem(OPERATORS._entries, "odd", TokenMixer(lower=None, module="nowhere:Odd"))
    with pytest.raises(UsageError, match=r"'odd' has no integer form.*: attention, linear-angular$"):
        integer_form("odd")


@pytest.fixture(scope="module")
def splits():
    return open_train(DataConfig(name="digits"), image_size=8, seed=0)


@pytest.fixture
def start(make_space, splits, tmp_path):
    space = make_space(image_size=(8,), embed_dim=(12,), depth=(1,), operator=("attention", OPERATOR))

    def start_training(folder, progress=lambda done, total, text: None, **changes):
        config = TrainConfig(**({"epochs": 4, "batch_size": 256, "lr": 3e-3, "warmup_epochs": 0.5} | changes))
        return train(
            space=space,
            supernet=SupernetConfig(),
            config=config,
            train_split=splits[0],
            val_split=splits[1],
            folder=tmp_path / folder,
            seed=0,
            device=torch.device("cpu"),
            progress=progress,
            resume=True,
        )

    return start_training


def test_the_branch_fades_with_the_steps_and_a_resumed_training_goes_on_with_it(start, splits, monkeypatch, tmp_path):
    seen, forward = [], SupernetViT.forward

    def watching(self, *args, auxiliary=0.0, **kwargs):
        seen.append(auxiliary)
        return forward(self, *args, auxiliary=auxiliary, **kwargs)

    monkeypatch.setattr(SupernetViT, "forward", watching)
    steps = len(splits[0]) // 256
    whole = Checkpoint.load(start("whole", auxiliary_share=0.75).checkpoint)
    in_training = [auxiliary for auxiliary in seen if auxiliary]
    assert in_training == pytest.approx([1 - step / (3 * steps) for step in range(3 * steps)])

    def stop_in_third_epoch(done, total, text):
        if done > 2 * steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start("stopped", auxiliary_share=0.75, progress=stop_in_third_epoch)
    assert Checkpoint.load(tmp_path / "stopped" / "checkpoints" / "last.safetensors").epoch == 2
    resumed = Checkpoint.load(start("stopped", auxiliary_share=0.75).checkpoint)
    assert resumed.digest == whole.digest


def test_without_a_share_there_is_no_branch(start, monkeypatch):
    def refuse(*args):
        raise AssertionError("the branch of training was computed")

    monkeypatch.setattr("supernet.operators.linear_angular._masked_softmax", refuse)
    start("none", epochs=1, auxiliary_share=0.0)
    with pytest.raises(AssertionError, match="was computed"):
        start("some", epochs=1)


def test_the_share_is_checked_and_fine_tuning_has_none():
    with pytest.raises(ValueError, match=r"auxiliary_share must lie in \[0, 1\], not 1.5"):
        TrainConfig(epochs=1, batch_size=1, lr=1.0, warmup_epochs=0, auxiliary_share=1.5)
    from supernet.alone import finetuning_settings, settings_alone

    config = TrainConfig(epochs=10, batch_size=1, lr=1.0)
    assert finetuning_settings(config, FinetuneConfig()).auxiliary_share == 0
    assert settings_alone(config, epochs=3).auxiliary_share == config.auxiliary_share


def test_both_operators_start_with_the_weights_of_a_plain_vit(make_space, tmp_path):
    space = make_space(image_size=(8,), embed_dim=(12,), depth=(1,), operator=("attention", OPERATOR), num_heads=(3,))
    settings = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 12, "depth": 1}
    vit = VisionTransformer(**settings, num_heads=3, mlp_ratio=2.0)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    safetensors.torch.save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    model = SupernetViT(space, layer_scale=0.1)
    initialise(model, str(tmp_path / "vit.safetensors"))
    softmax, linear = (model.blocks[0].mixers[name] for name in ("attention", OPERATOR))
    for name, parameter in softmax.named_parameters():
        assert torch.equal(linear.get_parameter(name), parameter), name
    torch.testing.assert_close(linear.proj.weight.detach(), vit.blocks[0].attn.proj.weight.detach())
