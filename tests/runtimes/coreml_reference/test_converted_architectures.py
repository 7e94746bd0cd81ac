"""timm's architectures, a GRU and PyTorch's encoder through Apple's converter; float16 within what rounding explains."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtimes.coreml_reference.session import open_package
from tests.timm_models import has_timm

torch = pytest.importorskip("torch")

from benchmarks.coreml import converted, half_rounding  # noqa: E402


@pytest.mark.slow
@pytest.mark.parametrize("net", ["gru", "transformer", "mobilenetv3_small_100", "efficientnet_lite0"])
def test_a_net_of_the_converter_agrees_with_pytorch(net: str, tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    if net in converted.TIMM and not has_timm():
        pytest.skip("timm is not installed")
    row = converted.measure(net, tmp_path)
    assert row.single < 1e-5
    assert 1e-5 < row.half <= row.bound < half_rounding.CAP  # float16 shows, and the bound says something
    assert row.bound < 20 * row.half  # nor is it so wide that anything passes


class _Chain(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Any) -> Any:
        for _ in range(self.steps):
            x = x * 1.0
        return x


@pytest.mark.parametrize("steps", [1, 16, 64])
def test_independent_roundings_add_up_as_their_squares(steps: int) -> None:
    x = torch.ones(1, 256)
    bound = half_rounding.rounding_bound(_Chain(steps), x, draws=32)
    times = math.sqrt(2 * math.log(2 * 256 / half_rounding.CHANCE))
    by_hand = times * half_rounding.UNIT * math.sqrt(steps)
    assert by_hand * 0.9 <= bound <= by_hand * 2  # the largest of 256 estimates from 32 draws each lies above the mean


class _Overflow(torch.nn.Module):  # type: ignore[misc, name-defined]
    """float16 ends at 65504."""

    def forward(self, x: Any) -> Any:
        return (torch.nn.functional.relu(x) * 300.0) * torch.nn.functional.relu(x * 300.0) * 1e-4


class _Cancels(torch.nn.Module):  # type: ignore[misc, name-defined]
    """The offset eats what x says: at 1000 float16 is half a unit coarse."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = torch.nn.Parameter(torch.tensor([1000.0]))
        self.back = torch.nn.Parameter(torch.tensor([1000.0]))

    def forward(self, x: Any) -> Any:
        return torch.nn.functional.relu(x + self.offset) - self.back


@pytest.mark.slow
@pytest.mark.parametrize("net", [_Overflow(), _Cancels()])
def test_what_float16_breaks_is_beyond_the_bound(net: Any, tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32))
    converted.convert(net, x, "FLOAT16", tmp_path / "broken.mlpackage")
    with open_package(tmp_path / "broken.mlpackage") as session, np.errstate(all="ignore"):
        found = session.run({"x": x.numpy()})["y"]
    with torch.no_grad():
        expected = net(x).numpy()
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    assert not error <= half_rounding.rounding_bound(net, x)
