"""MLPerf Tiny's nets lose 30 % of their channels; kws is judged on labelled samples that pruning never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from compiler.pruning import PruneOptions, perform, prune
from tests.compiler.hub_models import load_hub
from tests.compiler.pruning.nets import answers, parameters


def test_kws_keeps_its_accuracy_once_repaired(realdata: Path) -> None:
    stored = np.load(realdata / "kws" / "samples.npz")
    samples = ((stored["features_int8"].astype(np.float32) - stored["zero_point"]) * stored["scale"]).astype(np.float32)
    model = load_hub(realdata / "kws" / "model.onnx")
    done = prune(model, {"input": samples[:200]}, PruneOptions(share=0.3))
    unseen, labels = {"input": samples[200:]}, stored["labels"][200:]
    models = {"whole": model, "cut": perform(model, done.plan), "repaired": done.model}
    right = {name: float((answers(m, unseen, "output").argmax(1) == labels).mean()) for name, m in models.items()}
    assert done.plan.removed == 96
    assert parameters(done.model) < 0.7 * parameters(model)
    # Measured on these 300: whole 0.910, cut 0.233, repaired 0.893.
    assert right["cut"] < 0.6
    assert right["repaired"] > right["whole"] - 0.03


@pytest.mark.parametrize(("name", "shape", "scale"), [("ic", (32, 32, 3), 255.0), ("vww", (96, 96, 3), 1.0)])
def test_residual_and_depthwise_nets_are_cut_and_repaired(
    realdata: Path, name: str, shape: tuple[int, ...], scale: float
) -> None:
    """No samples may be shipped for these, so smooth random fields stand in for images: structure, not accuracy."""
    model = load_hub(realdata / name / "model.onnx")
    data = {model.graph.inputs[0].name or "": _fields(0, 24, shape, scale)}
    unseen = {model.graph.inputs[0].name or "": _fields(1, 8, shape, scale)}
    done = prune(model, data, PruneOptions(share=0.3))
    assert parameters(done.model) == done.plan.after.parameters < 0.8 * parameters(model)
    # Before the Softmax: on such inputs it saturates and would hide any difference.
    logits = model.graph[-1].inputs[0]
    assert model.graph[-1].op_type == "Softmax"
    assert logits is not None
    whole, cut, repaired = (
        answers(m, unseen, logits.name or "") for m in (model, perform(model, done.plan), done.model)
    )
    # vww has enough channels that such fields never wake: they leave at float32's rounding, with nothing to repair.
    rounding = float(np.finfo(np.float32).eps * np.abs(whole).max())
    assert np.abs(repaired - whole).mean() < max(0.5 * np.abs(cut - whole).mean(), rounding)


def _fields(seed: int, count: int, shape: tuple[int, ...], scale: float) -> NDArray[np.float32]:
    random = np.random.default_rng(seed).uniform(size=(count, shape[0] // 8, shape[1] // 8, 3))
    return (random.repeat(8, 1).repeat(8, 2) * scale).astype(np.float32)
