"""Whether samples have the scale that a net was trained on, judged by its first weighted layer.

Training leaves a first layer whose outputs vary by about one, because batch normalisation sees to it: by 1.15 on MLPerf Tiny's
ResNet-8, which takes raw pixels, 0.96 on its MobileNet, which takes pixels / 255, 0.97 on its keyword spotter. Fed with the other's
range they vary by 0.0045, 244 and 247.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
import onnx_ir as ir

from compiler.calibration.dataset import LOGGER, Dataset
from compiler.hub_session import open_hub
from runtimes.session import run_dataset

SAMPLES: Final = 16
USUAL: Final = (0.02, 50.0)  # a factor of 50 on either side of one
WEIGHTED: Final = ("Conv", "Gemm", "MatMul")


def with_scale_doubts(hub: ir.Model, data: Dataset) -> Dataset:
    """``data`` with a warning more where its scale does not suit ``hub``, a float hub."""
    found = tuple(_doubts(hub, data))
    for warning in found:
        LOGGER.warning("%s", warning)
    return replace(data, warnings=(*data.warnings, *found))


def _doubts(hub: ir.Model, data: Dataset) -> Iterator[str]:
    layer = next((node for node in hub.graph if node.op_type in WEIGHTED), None)
    if layer is None or layer.outputs[0].name is None or data.count < 2:
        return
    spread = first_layer_spread(hub, layer.outputs[0].name, data)
    low, high = USUAL
    if low <= spread <= high or spread == 0:
        return
    ranges = ", ".join(
        f"{name!r} {float(a[:SAMPLES].min()):.3g} to {float(a[:SAMPLES].max()):.3g}" for name, a in data.feeds.items()
    )
    trained = "smaller" if spread > high else "larger"
    yield (
        f"the outputs of the first layer {layer.name!r} vary by {spread:.3g} on these samples ({ranges}), where about 1 is usual: "
        f"was the model trained on much {trained} inputs (pixels 0 to 1 against 0 to 255)?"
    )


def first_layer_spread(hub: ir.Model, name: str, data: Dataset) -> float:
    """The median over channels of the standard deviation of ``name``'s values over samples and places."""
    few = data.take(SAMPLES)
    with open_hub(hub, taps=[name]) as session:
        values = run_dataset(session, few.feeds)[name].astype(np.float64)
    axis = 1 if values.ndim > 3 else values.ndim - 1
    return float(np.median(values.std(axis=tuple(a for a in range(values.ndim) if a != axis))))
