"""Small nets of the kinds that edge users ship, trained here and now on scikit-learn's digits.

Images are 16 x 16 (each of the 8 x 8 pixels four times), values 0 to 1. A training takes seconds; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from runtimes.session import Array

TRAINED = 1000
BOX_SCALE = 300.0  # the detector's box outputs reach this far, its class scores a few units


def digits() -> tuple[Array, Array]:
    """images [1797, 1, 16, 16] float32, labels [1797] int64, shuffled once."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    images = np.kron(bunch.images[order] / 16.0, np.ones((2, 2)))[:, np.newaxis].astype(np.float32)
    return images, bunch.target[order].astype(np.int64)


def _conv(inputs: int, outputs: int, kernel: int, stride: int, act: nn.Module | None, groups: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act] if act is not None else []))


class Squeeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True))))
        return x * nn.functional.hardsigmoid(gate)


class Inverted(nn.Module):
    """Inverted residual: expand, depthwise, project."""

    def __init__(self, inputs: int, outputs: int, stride: int, act: Callable[[], nn.Module], squeeze: bool) -> None:
        super().__init__()
        wide = 4 * inputs
        self.expand = _conv(inputs, wide, 1, 1, act())
        self.depthwise = _conv(wide, wide, 3, stride, act(), groups=wide)
        self.squeeze = Squeeze(wide) if squeeze else nn.Identity()
        self.project = _conv(wide, outputs, 1, 1, None)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


def mobilenet(act: Callable[[], nn.Module], squeeze: bool) -> nn.Sequential:
    plan = ((16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1))
    blocks = [Inverted(i, o, s, act, squeeze) for i, o, s in plan]
    head = [_conv(32, 96, 1, 1, act()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10)]
    return nn.Sequential(_conv(1, 16, 3, 1, act()), *blocks, *head)


class Vit(nn.Module):
    """Two pre-norm transformer layers over sixteen 4 x 4 patches."""

    def __init__(self, width: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.heads = heads
        self.layers = nn.ModuleList(nn.ModuleDict(self._layer(width)) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    @staticmethod
    def _layer(width: int) -> dict[str, nn.Module]:
        mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        first, second = nn.LayerNorm(width), nn.LayerNorm(width)
        return {
            "n1": first,
            "qkv": nn.Linear(width, 3 * width),
            "out": nn.Linear(width, width),
            "n2": second,
            "mlp": mlp,
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        for layer in self.layers:
            x = x + self._attend(layer, layer["n1"](x))  # type: ignore[index, operator]
            x = x + layer["mlp"](layer["n2"](x))  # type: ignore[index, operator]
        return self.head(self.norm(x).mean(1))  # type: ignore[no-any-return]

    def _attend(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        tokens, width = x.shape[1], x.shape[2]
        q, k, v = layer["qkv"](x).reshape(-1, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5, -1) @ v
        return layer["out"](mixed.transpose(1, 2).reshape(-1, tokens, width))  # type: ignore[no-any-return]


class Detector(nn.Module):
    """Class scores (a few units) and the ink's box (hundreds of pixels) in one output [batch, 14]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*list(mobilenet(nn.ReLU6, False))[:-1])
        self.scores, self.box = nn.Linear(96, 10), nn.Linear(96, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return torch.cat([self.scores(y), self.box(y) * BOX_SCALE], 1)


def boxes(images: Array) -> Array:
    """First and last inked row and column, [count, 4], as shares of the side."""
    ink = images[:, 0] > 0.3
    rows, columns = ink.any(2), ink.any(1)
    found = [rows.argmax(1), 16 - rows[:, ::-1].argmax(1), columns.argmax(1), 16 - columns[:, ::-1].argmax(1)]
    return (np.stack(found, 1) / 16.0).astype(np.float32)


def make_uneven(net: nn.Sequential, ratio: float = 1000.0) -> None:
    """Spread the ranges of every depthwise input over ``ratio`` without changing the function (ReLU is homogeneous)."""
    with torch.no_grad():
        for block in (m for m in net if isinstance(m, Inverted)):
            norm, depthwise = block.expand[1], block.depthwise[0]
            spread = torch.logspace(0, -float(np.log10(ratio)), norm.weight.numel())  # type: ignore[union-attr, operator]
            norm.weight.mul_(spread)  # type: ignore[union-attr, operator]
            norm.bias.mul_(spread)  # type: ignore[union-attr, operator]
            depthwise.weight.div_(spread.reshape(-1, 1, 1, 1))  # type: ignore[union-attr, operator, arg-type]


def train(net: nn.Module, images: Array, labels: Array, epochs: int = 8) -> nn.Module:
    """Adam on the first TRAINED samples; returns the net in evaluation mode."""
    x, y, box = torch.from_numpy(images[:TRAINED]), torch.from_numpy(labels[:TRAINED]), torch.from_numpy(boxes(images))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(TRAINED).split(100):
            answer = net(x[rows])
            loss = nn.functional.cross_entropy(answer[:, :10], y[rows])
            if answer.shape[1] > 10:
                loss = loss + nn.functional.mse_loss(answer[:, 10:] / BOX_SCALE, box[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return net.eval()


NETS: dict[str, Callable[[], nn.Module]] = {
    "mobilenetv2-like": lambda: mobilenet(nn.ReLU6, False),
    "mobilenetv3-like": lambda: mobilenet(nn.Hardswish, True),
    "vit": Vit,
    "uneven 1000:1": lambda: mobilenet(nn.ReLU, False),
    "detector": Detector,
}


def trained(name: str, images: Array, labels: Array) -> nn.Module:
    """The net called ``name``, from seed 0."""
    torch.manual_seed(0)
    net = train(NETS[name](), images, labels)
    if name.startswith("uneven") and isinstance(net, nn.Sequential):
        make_uneven(net)
    return net
