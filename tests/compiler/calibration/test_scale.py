"""The first layer tells whether samples have the range that a net was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler.calibration.dataset import make_dataset
from compiler.calibration.scale import with_scale_doubts
from compiler.hubfacts import hub_inputs
from tests.compiler.hub_models import hub, load_hub

NET = "net (float[1, 3, 8, 8] x) => (float[1, 4, 6, 6] y) { a = Conv (x, w)  y = Relu (a) }"


@pytest.mark.parametrize(("gain", "words"), [(1.0, None), (255.0, "much smaller"), (1 / 255, "much larger")])
def test_a_range_that_the_first_layer_was_not_made_for_is_named(gain: float, words: str | None) -> None:
    rng = np.random.default_rng(0)
    model = hub(NET, w=(rng.standard_normal((4, 3, 3, 3)) * 0.2).astype(np.float32))
    samples = (gain * rng.standard_normal((40, 3, 8, 8))).astype(np.float32)
    found = with_scale_doubts(model, make_dataset({"x": samples}, hub_inputs(model), where="t")).warnings
    assert [words in one for one in found] == ([True] if words else [])


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "right"), [("ic", 255.0), ("vww", 1.0)])
def test_trained_nets_tell_raw_pixels_from_normalised_ones(name: str, right: float, realdata: Path) -> None:
    model = load_hub(realdata / name / "model.onnx")
    side = hub_inputs(model)[0].shape[1] or 1
    pictures = np.random.default_rng(0).random((16, side // 8, side // 8, 3)).repeat(8, 1).repeat(8, 2)
    for scale, doubted in ((right, False), (256.0 - right, True)):
        samples = (pictures * scale).astype(np.float32)
        found = with_scale_doubts(
            model, make_dataset({hub_inputs(model)[0].name: samples}, hub_inputs(model), where="t")
        )
        assert any("first layer" in one for one in found.warnings) == doubted
