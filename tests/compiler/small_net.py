"""A small convolutional net as ONNX text, and the same with an operator that TFLite and Core ML lack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser

NET = """
<ir_version: 10, opset_import: ["": 21]>
net (float[N, 3, 8, 8] image) => (float[N, 4] logits) {
  c = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)
  r = Relu (c)
  d = Conv <group = 8, pads = [1, 1, 1, 1], strides = [2, 2]> (r, w2)
  e = Clip (d, low, high)
  g = GlobalAveragePool (e)
  f = Flatten (g)
  logits = Gemm <transB = 1> (f, w3, b3)
}
"""


def save_net(path: Path, text: str = NET, width: int = 8, nudge: float = 0.0) -> None:
    """Write the net with seeded weights; ``nudge`` moves them a little, as fine-tuning does."""
    text = text.replace("group = 8", f"group = {width}")
    rng = np.random.default_rng(3)
    model = onnx.parser.parse_model(text)
    weights = {
        "w1": rng.standard_normal((width, 3, 3, 3)) * 0.3,
        "b1": rng.standard_normal(width) * 0.1,
        "w2": rng.standard_normal((width, 1, 3, 3)) * 0.3,
        "low": np.array(0.0),
        "high": np.array(6.0),
        "w3": rng.standard_normal((4, width)),
        "b3": rng.standard_normal(4),
    }
    for name in ("w1", "w2", "w3"):
        weights[name] = weights[name] + nudge * np.random.default_rng(5).standard_normal(weights[name].shape)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items())
    onnx.save(model, path)


UNSUPPORTED = NET.replace("logits = ", "t = RandomNormalLike (d)\n  logits = ").replace(
    "(float[N, 4] logits)", "(float[N, 4] logits, float[N, 8, 4, 4] t)"
)
