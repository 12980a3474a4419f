"""Operators and networks in PyTorch: the float32 Vision Transformer of a subnet's shape, run eagerly.

This is what one has without an export: plain layers of `torch.nn` with fused attention, no quantization. Weights are
random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor, nn

from quasar.measuring.runtime import COPIES, LAYERS, Point, Run, Timed, linear_copies, small_subnet
from supernet.subnet import BlockChoice, Subnet, hidden_units


class _Attention(nn.Module):
    """Softmax attention of the fused q, k and v of all heads."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x_BTI: Tensor) -> Tensor:
        batch, tokens, inner = x_BTI.shape
        q, k, v = x_BTI.view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return mixed.transpose(1, 2).reshape(batch, tokens, inner // 3)


class _PatchEmbed(nn.Module):
    """Patches by a strided convolution, as tokens."""

    def __init__(self, subnet: Subnet) -> None:
        super().__init__()
        size = subnet.patch_size
        self.proj = nn.Conv2d(subnet.in_chans, subnet.embed_dim, kernel_size=size, stride=size)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return cast(Tensor, self.proj(x_BCHW)).flatten(2).transpose(1, 2)


class _Block(nn.Module):
    """One encoder block."""

    def __init__(self, subnet: Subnet, block: BlockChoice) -> None:
        super().__init__()
        width, inner = subnet.embed_dim, block.num_heads * subnet.head_dim
        hidden = int(hidden_units(block.mlp_ratio, width))
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * inner), nn.Linear(inner, width)
        self.attention = _Attention(block.num_heads)
        self.fc1, self.fc2, self.act = nn.Linear(width, hidden), nn.Linear(hidden, width), nn.GELU()

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.proj(self.attention(self.qkv(self.norm1(x_BTD))))
        return cast(Tensor, x_BTD + self.fc2(self.act(self.fc1(self.norm2(x_BTD)))))


class _Vit(nn.Module):
    """The float Vision Transformer of a subnet's shape."""

    def __init__(self, subnet: Subnet) -> None:
        super().__init__()
        self.patch_embed = _PatchEmbed(subnet)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, subnet.embed_dim))
        self.position = nn.Parameter(torch.zeros(1, subnet.tokens, subnet.embed_dim))
        self.blocks = nn.Sequential(*(_Block(subnet, block) for block in subnet.blocks))
        self.norm = nn.LayerNorm(subnet.embed_dim, eps=1e-6)
        self.head = nn.Linear(subnet.embed_dim, subnet.num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BTD = torch.cat([self.cls_token, self.patch_embed(x_BCHW)], dim=1) + self.position
        return cast(Tensor, self.head(self.norm(self.blocks(x_BTD)[:, 0])))


class TorchRuntime:
    """See `quasar.measuring.runtime.HostRuntime`."""

    name = "torch"
    form = "the plain float32 network of torch.nn layers, eager"
    packages = ("torch",)
    layers = LAYERS

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)

    def call(self) -> Run:
        """See `HostRuntime`."""
        return _run([nn.Identity()], torch.randn(1))

    def linears(self, tokens: Sequence[int], *, width: int, hidden: int) -> dict[Point, Timed]:
        """See `HostRuntime`."""
        points: dict[Point, Timed] = {}
        for name, inputs, rows in (("linear_up", width, hidden), ("linear_down", hidden, width)):
            copies = [linear_copies(count, inputs, rows) for count in tokens]
            layers = [nn.Linear(inputs, rows) for _ in range(max(copies))]
            for count, number in zip(tokens, copies, strict=True):
                run = _run(layers[:number], torch.randn(1, count, inputs))
                points[Point(name, (count, inputs, rows))] = Timed(run, number)
        return points

    def elementwise(self, tokens: Sequence[int], *, width: int) -> dict[Point, Timed]:
        """See `HostRuntime`."""
        points: dict[Point, Timed] = {}
        for count in tokens:
            x = torch.randn(1, count, width)
            layers: dict[str, list[Callable[[Tensor], Tensor]]] = {
                "layernorm": [nn.LayerNorm(width, eps=1e-6) for _ in range(COPIES)],
                "gelu": [nn.GELU()] * COPIES,
                "residual": [partial(torch.add, torch.randn_like(x)) for _ in range(COPIES)],
            }
            points |= {Point(name, (count, width)): Timed(_run(some, x), COPIES) for name, some in layers.items()}
        return points

    def attention(self, *, grid: int, heads: int, head_dim: int) -> dict[Point, Timed]:
        """See `HostRuntime`."""
        tokens = grid**2 + 1
        run = _run([_Attention(heads)] * COPIES, torch.randn(1, tokens, 3 * heads * head_dim))
        return {Point("attention", (tokens, heads, head_dim)): Timed(run, COPIES)}

    def patch_embed(self, *, grid: int, patch_size: int, width: int) -> dict[Point, Timed]:
        """See `HostRuntime`."""
        subnet = small_subnet(width=width, grid=grid, patch_size=patch_size)
        point = Point("patch_embed", (grid**2, subnet.in_chans * patch_size**2, width))
        return {point: Timed(_run([_PatchEmbed(subnet)], _image(subnet)), 1)}

    def network(self, subnet: Subnet) -> Run:
        """See `HostRuntime`."""
        return _run([_Vit(subnet)], _image(subnet))


def _image(subnet: Subnet) -> Tensor:
    return torch.randn(1, subnet.in_chans, subnet.image_size, subnet.image_size)


def _run(layers: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Run:
    """Each of the layers once, on the same input."""
    for layer in layers:
        if isinstance(layer, nn.Module):
            layer.eval().requires_grad_(False)

    def run() -> None:
        with torch.inference_mode():
            for layer in layers:
                layer(x)

    run()
    return run
