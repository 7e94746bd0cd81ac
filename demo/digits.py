"""A small MobileNet-style net on scikit-learn's handwritten digits: 1,797 images of 8 by 8 pixels, ten classes.

Data: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (UCI), as bundled with scikit-learn.
Net: inverted residuals with depthwise convolutions (Sandler et al. 2018, MobileNetV2, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

HELD_OUT = 360
CALIBRATION = 256


@dataclass(frozen=True, slots=True)
class Digits:
    """Images [n, 1, 8, 8] float32 in [0, 1] and labels [n] int64, split once with a fixed seed."""

    train_x: NDArray[np.float32]
    train_y: NDArray[np.int64]
    held_x: NDArray[np.float32]
    held_y: NDArray[np.int64]


def load() -> Digits:
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images = (bundle.images / 16.0).astype(np.float32)[:, None]
    order = np.random.default_rng(0).permutation(len(images))
    held, train = order[:HELD_OUT], order[HELD_OUT:]
    labels = bundle.target.astype(np.int64)
    return Digits(images[train], labels[train], images[held], labels[held])


def save_data(digits: Digits, folder: Path) -> tuple[Path, Path]:
    """Write calibration data (a part of the training images) and the held-out images with labels, as `build` takes them."""
    calibration, held_out = folder / "calibration.npz", folder / "held_out.npz"
    np.savez(calibration, image=digits.train_x[:CALIBRATION])
    np.savez(held_out, image=digits.held_x, labels=digits.held_y)
    return calibration, held_out


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    pad = kernel // 2
    conv = nn.Conv2d(inputs, outputs, kernel, stride, pad, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU6()]


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, project; add the input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int = 4) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers = [*_conv(inputs, hidden, 1), *_conv(hidden, hidden, 3, stride, groups=hidden)]
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.body = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.body(x)
        return x + y if self.shortcut else y


class DigitsNet(nn.Module):
    """image [batch, 1, 8, 8] -> logits [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(1, 16, 3))
        plan = [(16, 24, 1), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 64, 2), (64, 64, 1)]
        self.blocks = nn.Sequential(*(InvertedResidual(i, o, s) for i, o, s in plan))
        self.head = nn.Sequential(*_conv(64, 160, 1))
        self.classify = nn.Linear(160, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.head(self.blocks(self.stem(image)))
        logits: torch.Tensor = self.classify(features.mean((2, 3)))
        return logits


def train(net: DigitsNet, digits: Digits, *, epochs: int, rate: float, seed: int) -> float:
    """Train in place with shifted copies of the images; returns the held-out accuracy. Deterministic for a seed."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.from_numpy(digits.train_x), torch.from_numpy(digits.train_y)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-2)
    steps = epochs * -(-len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    loss = nn.CrossEntropyLoss(label_smoothing=0.05)
    net.train()
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(images), generator=generator), 64):
            moves = torch.randint(-1, 2, (2,), generator=generator).tolist()
            x = torch.roll(images[batch], moves, dims=(2, 3))
            optimizer.zero_grad()
            loss(net(x), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return evaluate(net, digits)


def evaluate(net: DigitsNet, digits: Digits) -> float:
    net.eval()
    with torch.no_grad():
        answers = net(torch.from_numpy(digits.held_x)).argmax(1).numpy()
    return float((answers == digits.held_y).mean())


def save_source(net: DigitsNet, path: Path) -> None:
    """Save as an exported program with a free batch dimension: a PyTorch source that holds no pickled code."""
    net.eval()
    example = torch.zeros(2, 1, 8, 8)
    program = torch.export.export(net, (example,), dynamic_shapes={"image": {0: torch.export.Dim("batch")}})
    torch.export.save(program, path)
