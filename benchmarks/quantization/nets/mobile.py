"""Convolutional nets for phones, a few blocks of each family."""

from __future__ import annotations

from torch import nn

from benchmarks.quantization.nets.blocks import Activation, GhostBottleneck, Inverted, conv, head

PLAN = ((16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1))  # inputs, outputs, stride


def _inverted(
    act: Activation, *, squeeze: bool = False, kernels: tuple[int, ...] = (3,) * 5, stride: int = 1
) -> nn.Sequential:
    blocks = [
        Inverted(i, o, step, act, squeeze=squeeze, kernel=kernel)
        for (i, o, step), kernel in zip(PLAN, kernels, strict=True)
    ]
    return nn.Sequential(conv(1, 16, 3, stride, act()), *blocks, *head(32, act()))


def mobilenetv2(stride: int = 1, *, relu6: bool = True) -> nn.Sequential:
    """``stride``: the stem's; 2 for larger images."""
    return _inverted(nn.ReLU6 if relu6 else nn.ReLU, stride=stride)


def mobilenetv3(stride: int = 1) -> nn.Sequential:
    """With hard swish and squeeze-and-excitation, as the small one has. Source: A. Howard et al. (2019)."""
    return _inverted(nn.Hardswish, squeeze=True, stride=stride)


def efficientnet_lite(stride: int = 1) -> nn.Sequential:
    """ReLU6, no squeeze, 5 x 5 kernels among the 3 x 3. Source: tensorflow/tpu, efficientnet/lite."""
    return _inverted(nn.ReLU6, kernels=(3, 3, 5, 5, 3), stride=stride)


def ghostnet() -> nn.Sequential:
    blocks = [GhostBottleneck(i, o, stride) for i, o, stride in PLAN]
    return nn.Sequential(conv(1, 16, 3, 1, nn.ReLU()), *blocks, *head(32, nn.ReLU()))
