"""What in the training recipe made an update large: how far the weights moved from the numbers of the previous release."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.previous.numbers import Codes, Numbers
from compiler.quantization.structure import constant_of
from runtimes.session import Array

STILL = 0.15  # steps: less cannot be told from rounding
RESCALED = 0.02  # a channel whose best common factor differs by more from 1 was rescaled as a whole
EXPLAINED = 0.5  # and that factor must explain this share of the movement


@dataclass(frozen=True, slots=True)
class Movement:
    """One weight tensor: root mean square movement in old quantization steps, and the share of channels that were rescaled."""

    name: str
    elements: int
    steps: float
    rescaled: float
    shrunk: float


def movements(hub: ir.Model, previous: Numbers) -> tuple[Movement, ...]:
    """Every weight that both releases have in the same shape."""
    found = []
    for name, value in hub.graph.initializers.items():
        old, new = previous.constants.get(name), constant_of(value)
        if old is not None and new is not None and old.codes.shape == new.shape:
            found.append(_movement(name, new, old))
    return tuple(found)


def _movement(name: str, new: Array, old: Codes) -> Movement:
    axis = old.params.axis or 0
    before = np.moveaxis(old.params.dequantize(old.codes).astype(np.float64), axis, 0).reshape(new.shape[axis], -1)
    after = np.moveaxis(new.astype(np.float64), axis, 0).reshape(before.shape)
    step = np.broadcast_to(old.params.scale.astype(np.float64), (len(before),))[:, None]
    # Rounding alone makes 1/12 of a squared step in the mean.
    squared = float((((after - before) / step) ** 2).mean()) - 1 / 12
    energy = np.maximum((before**2).sum(1), 1e-30)
    factor = (after * before).sum(1) / energy
    moved, left = ((after - before) ** 2).sum(1), ((after - factor[:, None] * before) ** 2).sum(1)
    whole = (np.abs(factor - 1) > RESCALED) & (left < (1 - EXPLAINED) * moved)
    shrunk = float((factor < 1).mean())
    return Movement(name, new.size, float(np.sqrt(max(squared, 0.0))), float(whole.mean()), shrunk)


def advice(hub: ir.Model, previous: Numbers) -> tuple[str, ...]:
    """Sentences for the report; empty where nothing of note moved."""
    found = movements(hub, previous)
    return tuple(_sentences(found)) if found else ("No weight of the previous release was found in this model.",)


def _sentences(found: tuple[Movement, ...]) -> Iterator[str]:
    sizes = np.array([m.elements for m in found], np.float64)
    steps = np.array([m.steps for m in found])
    mean = float((steps * sizes).sum() / sizes.sum())
    if mean <= STILL:
        return
    most = found[int((steps * sizes).argmax())]
    yield (
        f"Weights moved by {mean:.2f} quantization steps on average ({most.name!r} by {most.steps:.2f}): a lower learning rate,"
        " fewer epochs or frozen early layers make the update smaller."
    )
    rescaled = float((np.array([m.rescaled for m in found]) * sizes).sum() / sizes.sum())
    if rescaled > 0.25:
        shrunk = float((np.array([m.shrunk for m in found]) * sizes).sum() / sizes.sum())
        cause = (
            "nearly all became smaller: weight decay does that"
            if shrunk > 0.9
            else "moving batch-norm statistics do that: freeze them while fine-tuning"
        )
        yield f"In {rescaled:.0%} of the weights whole channels were rescaled; {cause}."
