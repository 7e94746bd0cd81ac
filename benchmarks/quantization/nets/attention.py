"""A small vision transformer and a small LSTM over an image's rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

PATCH = 7  # of 28 pixels: sixteen patches


class Vit(nn.Module):
    """Two pre-norm transformer layers over sixteen patches."""

    def __init__(self, width: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, PATCH, PATCH)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.heads = heads
        self.layers = nn.ModuleList(nn.ModuleDict(_layer(width)) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

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


def _layer(width: int) -> dict[str, nn.Module]:
    return {
        "n1": nn.LayerNorm(width),
        "qkv": nn.Linear(width, 3 * width),
        "out": nn.Linear(width, width),
        "n2": nn.LayerNorm(width),
        "mlp": nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)),
    }


def vit() -> nn.Module:
    return Vit()


def vit_with_outliers(net: nn.Module, ratio: float = 100.0) -> None:
    """Two channels behind every layer norm grow ``ratio`` times, and the next layer takes it back: outliers as large
    transformers have them. Source: G. Xiao et al., "SmoothQuant" (2022), section 3, done backwards."""
    assert isinstance(net, Vit)
    with torch.no_grad():
        for layer in net.layers:
            for norm, linear in ((layer["n1"], layer["qkv"]), (layer["n2"], layer["mlp"][0])):  # type: ignore[index]
                for channel in (3, 17):
                    norm.weight[channel] *= ratio
                    norm.bias[channel] *= ratio
                    linear.weight[:, channel] /= ratio


class Rows(nn.Module):
    """The image's rows as a sequence; the last hidden state answers."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(28, width, batch_first=True), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(x[:, 0])
        return self.head(states[:, -1])  # type: ignore[no-any-return]
