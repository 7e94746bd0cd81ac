"""classify. Source: coremltools MIL ops, iOS15 classify.py."""

from __future__ import annotations

import numpy as np

from runtimes.coreml_reference.registry import Call, evaluates
from runtimes.session import Array


@evaluates("classify")
def classify(call: Call) -> tuple[Array, ...]:
    """The class with the highest score [1], and the scores [classes] in the order of the classes."""
    scores, classes = call.wide("probabilities").reshape(-1), call.names("classes")
    if len(classes) != scores.size or not classes:
        raise ValueError(f"{len(classes)} classes for {scores.size} scores")
    return np.array([classes[int(scores.argmax())]]), scores
