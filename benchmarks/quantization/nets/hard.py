"""Nets made hard on purpose: what INT8 with one scale per activation tensor loses."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from benchmarks.quantization.nets.blocks import Inverted
from benchmarks.quantization.nets.mobile import mobilenetv2, mobilenetv3

RATIO = 1000.0
BOX_SCALE = 300.0  # the detector's box outputs reach this far, its class scores a few units


class Detector(nn.Module):
    """Class scores (a few units) and the ink's box (hundreds of pixels) in one output [batch, 14]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*list(mobilenetv2())[:-1])
        self.scores, self.box = nn.Linear(96, 10), nn.Linear(96, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return torch.cat([self.scores(y), self.box(y) * BOX_SCALE], 1)


def _spread(channels: int) -> torch.Tensor:
    return torch.logspace(0, -float(np.log10(RATIO)), channels)


def uneven(net: nn.Module) -> None:
    """Spread the ranges of every depthwise input over RATIO without changing the function (ReLU is homogeneous)."""
    with torch.no_grad():
        for block in (m for m in net.modules() if isinstance(m, Inverted)):
            norm, depthwise = block.expand[1], block.depthwise[0]
            assert isinstance(norm, nn.BatchNorm2d) and isinstance(depthwise, nn.Conv2d)
            spread = _spread(norm.num_features)
            norm.weight.mul_(spread)
            norm.bias.mul_(spread)
            depthwise.weight.div_(spread.reshape(-1, 1, 1, 1))


def spread_hardswish() -> nn.Module:
    """Before training, so that it learns to live with it: hard swish is not homogeneous and nothing can be equalised."""
    net = mobilenetv3()
    with torch.no_grad():
        for block in (m for m in net.modules() if isinstance(m, Inverted)):
            norm, depthwise = block.expand[1], block.depthwise[0]
            assert isinstance(norm, nn.BatchNorm2d) and isinstance(depthwise, nn.Conv2d)
            spread = _spread(norm.num_features)
            norm.weight.copy_(spread)
            depthwise.weight.div_(spread.reshape(-1, 1, 1, 1))
            for parameter in norm.parameters():
                parameter.requires_grad = False
    return net
