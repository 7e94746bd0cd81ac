"""Losses over more than one axis of places, as the same loss over one."""

from __future__ import annotations

import numpy as np

from compiler.decompose.builder import Builder
from compiler.decompose.table import Undecomposable, decomposes


@decomposes("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
def over_one_axis(b: Builder) -> None:
    """[N, C, d1, d2, ...] is read as [N, C, d1 d2 ...]; from there the standard's own function goes on."""
    if len(b.x.shape) <= 3:
        raise Undecomposable("its function body serves")
    batch, classes, *places = b.x.shape
    count = int(np.prod(places))
    arguments = [b.reshape(b.x.name, [batch, classes, count]), b.reshape(b.node.input[1], [batch, count])]
    arguments += list(b.node.input[2:])
    attributes = {
        name: value for name in ("ignore_index", "reduction") if (value := b.attribute(name, None)) is not None
    }
    loss = b.op(b.node.op_type, *arguments, outputs=2 if b.wanted(1) else 1, **attributes)
    b.output(b.reshape(loss, b.y.shape))
    if b.wanted(1):
        b.output(b.reshape(b.nth(loss, 1), b.x.shape), 1)
