"""Nets that int8 finds hard, and samples for them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.calibration.dataset import Dataset, make_dataset
from compiler.hubfacts import hub_inputs
from tests.compiler.hub_models import hub

CHAIN = """
net (float[1, 3, 8, 8] image) => (float[1, 5] logits) {
  a = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)
  a6 = ACTIVATION
  d = Conv <group = 16, pads = [1, 1, 1, 1]> (a6, w2, b2)
  d6 = Relu (d)
  e = Conv (d6, w3)
  r = Relu (e)
  p = GlobalAveragePool (r)
  f = Flatten (p)
  logits = Gemm <transB = 1> (f, w4, b4)
}
"""
ACTIVATIONS = {"relu": "Relu (a)", "relu6": "Clip (a, low, high)", "hardswish": "HardSwish (a)"}


def uneven_net(activation: str = "relu", ratio: float = 1000.0, gain: float = 1.0) -> ir.Model:
    """Depthwise channels whose ranges lie up to ``ratio`` apart, and count alike in the answer."""
    rng = np.random.default_rng(1)
    spread = np.geomspace(1.0, 1.0 / ratio, 16)
    w1, w2 = rng.standard_normal((16, 3, 3, 3)) * 0.4 * gain, rng.standard_normal((16, 1, 3, 3)) * 0.4
    weights = {
        "w1": w1 * spread[:, None, None, None],
        "b1": 0.3 * gain * spread,
        "w2": w2 / spread[:, None, None, None],
        "b2": rng.standard_normal(16) * 0.1,
        "w3": rng.standard_normal((12, 16, 1, 1)) * 0.3,
        "w4": rng.standard_normal((5, 12)) * 0.5,
        "b4": rng.standard_normal(5) * 0.1,
    }
    if activation == "relu6":
        weights |= {"low": np.array(0.0), "high": np.array(6.0)}
    arrays = {name: np.asarray(array, np.float32) for name, array in weights.items()}
    return hub(CHAIN.replace("ACTIVATION", ACTIVATIONS[activation]), **arrays)


def samples(model: ir.Model, count: int = 48) -> Dataset:
    inputs = hub_inputs(model)
    shape = [d or 1 for d in inputs[0].shape[1:]]
    return make_dataset(
        {inputs[0].name: np.random.default_rng(2).standard_normal((count, *shape)).astype(np.float32)},
        inputs,
        where="t",
    )
