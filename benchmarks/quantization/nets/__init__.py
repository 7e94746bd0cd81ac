"""Small nets of the kinds that edge users ship, each with the data that it is trained on; nothing is downloaded.

Adding a net: a module with a ``torch.nn.Module`` and one line in NETS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.quantization.nets.attention import Rows, vit, vit_with_outliers
from benchmarks.quantization.nets.hard import Detector, spread_hardswish, uneven
from benchmarks.quantization.nets.mobile import efficientnet_lite, ghostnet, mobilenetv2, mobilenetv3

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Net:
    """Args:
    make: the untrained net for images [N, 1, H, W].
    data: "mnist" (28 x 28) or "digits" (16 x 16).
    epochs: how long it is trained.
    after: changes the trained net in place without changing its function.
    hard: made so that INT8 loses it.
    """

    make: Callable[[], nn.Module]
    data: str
    epochs: int = 8
    after: Callable[[nn.Module], None] | None = None
    hard: bool = False


NETS: dict[str, Net] = {
    "mobilenetv2": Net(lambda: mobilenetv2(2), "mnist"),
    "mobilenetv3-small": Net(lambda: mobilenetv3(2), "mnist"),
    "efficientnet-lite": Net(lambda: efficientnet_lite(2), "mnist", 6),
    "ghostnet": Net(ghostnet, "digits"),
    "vit": Net(vit, "mnist", 12),
    "lstm": Net(Rows, "mnist", 40),
    "detector": Net(Detector, "digits", hard=True),
    "uneven 1000:1": Net(lambda: mobilenetv2(relu6=False), "digits", after=uneven, hard=True),
    "uneven 1000:1, hard-swish": Net(spread_hardswish, "digits", hard=True),
    "vit, outliers 100:1": Net(vit, "mnist", 12, after=vit_with_outliers, hard=True),
}
