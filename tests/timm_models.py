"""timm architectures with seeded random weights, for tests of any part."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any


def has_timm() -> bool:
    """Whether timm is installed; importing it here would fail before the missing operators are defined."""
    return find_spec("timm") is not None


def create(name: str, seed: int = 0) -> Any:
    """A timm model in eval mode whose batch norms are random: timm's own are zero or one in places and hide mistakes."""
    import torch

    _define_missing_operators()
    import timm

    torch.manual_seed(seed)
    model = timm.create_model(name, pretrained=False).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def _define_missing_operators() -> None:
    """torchvision's wheel without its compiled library registers shape functions for operators that nobody defined."""
    import torch

    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _LIBRARIES.append(library)  # the definitions live as long as this object


_LIBRARIES: list[Any] = []
