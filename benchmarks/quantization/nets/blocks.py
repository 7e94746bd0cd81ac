"""What the convolutional nets are built of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Activation = Callable[[], nn.Module]


def conv(inputs: int, outputs: int, kernel: int, stride: int, act: nn.Module | None, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, batch normalisation, activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act] if act is not None else []))


class Squeeze(nn.Module):
    """Squeeze and excitation. Source: J. Hu et al. (2018), with the hard sigmoid of MobileNetV3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True))))
        return x * nn.functional.hardsigmoid(gate)


class Inverted(nn.Module):
    """Inverted residual: expand, depthwise, project. Source: M. Sandler et al., "MobileNetV2" (2018)."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, act: Activation, *, squeeze: bool = False, kernel: int = 3
    ) -> None:
        super().__init__()
        wide = 4 * inputs
        self.expand = conv(inputs, wide, 1, 1, act())
        self.depthwise = conv(wide, wide, kernel, stride, act(), groups=wide)
        self.squeeze = Squeeze(wide) if squeeze else nn.Identity()
        self.project = conv(wide, outputs, 1, 1, None)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class Ghost(nn.Module):
    """Half of the channels by a convolution, the others from those by a cheap depthwise one. Source: K. Han et al. (2020)."""

    def __init__(self, inputs: int, outputs: int, act: nn.Module | None) -> None:
        super().__init__()
        half = outputs // 2
        self.primary, self.cheap = conv(inputs, half, 1, 1, act), conv(half, half, 3, 1, act, groups=half)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.primary(x)
        return torch.cat([first, self.cheap(first)], 1)


class GhostBottleneck(nn.Module):
    """Two ghost modules, squeeze and excitation between, and a short cut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 3 * inputs
        self.expand = Ghost(inputs, wide, nn.ReLU())
        self.move = conv(wide, wide, 3, 2, None, groups=wide) if stride == 2 else nn.Identity()
        self.squeeze, self.project = Squeeze(wide), Ghost(wide, outputs, None)
        plain = stride == 1 and inputs == outputs
        self.short = nn.Identity() if plain else conv(inputs, outputs, 3, stride, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(self.squeeze(self.move(self.expand(x)))) + self.short(x)


def head(channels: int, act: nn.Module, wide: int = 96) -> list[nn.Module]:
    """The layers from the last features to ten class scores."""
    return [conv(channels, wide, 1, 1, act), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, 10)]
