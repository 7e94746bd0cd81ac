"""Mul, Add, Sub and Div by per-channel constants after Conv, ConvTranspose or Gemm move into their weight and bias."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.passes.base import Rewrite
from compiler.passes.edit import float_constant, only_used_by, out, producer, static_shape
from compiler.passes.rewrites.linear import CHANNEL_AXIS, LINEAR, fold_affine, linear_refusal, out_channels


@dataclass(frozen=True, slots=True)
class Match:
    linear: ir.Node
    tail: ir.Node
    factor: ir.Value
    constant_first: bool


class FoldAffine(Rewrite[Match]):
    """A batch normalization that a converter has already taken apart ends as Mul and Add; so does a layer scale."""

    name = "fold_affine"
    op_types = frozenset({"Mul", "Add", "Sub", "Div"})

    def pattern(self, node: ir.Node) -> Match | None:
        for index in (0, 1):
            linear = producer(node.inputs[index], *LINEAR)
            factor = node.inputs[1 - index]
            if linear is not None and factor is not None and float_constant(factor) is not None:
                return Match(linear, node, factor, constant_first=index == 1)
        return None

    def check(self, match: Match) -> str | None:
        if not only_used_by(out(match.linear), match.tail):
            return "the result before it is read elsewhere"
        if match.tail.op_type == "Div" and match.constant_first:
            return "the constant is divided by the result, which is not linear"
        reason = linear_refusal(match.linear)
        if reason is not None:
            return reason
        if static_shape(out(match.linear)) != static_shape(out(match.tail)) or static_shape(out(match.tail)) is None:
            return "the constant broadcasts the result to another shape"
        values = per_channel(match.linear, match.factor)
        if values is None:
            return "the constant is not one number per channel"
        if match.tail.op_type == "Div" and not np.all(values):
            return "it divides by zero"
        return None

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        values = per_channel(match.linear, match.factor)
        assert values is not None
        one, zero = np.ones_like(values), np.zeros_like(values)
        match match.tail.op_type:
            case "Mul":
                scale, shift = values, zero
            case "Div":
                scale, shift = one / values, zero
            case "Add":
                scale, shift = one, values
            case _ if match.constant_first:
                scale, shift = -one, values
            case _:
                scale, shift = one, -values
        fold_affine(graph, match.linear, match.tail, scale, shift)


def per_channel(linear: ir.Node, factor: ir.Value) -> NDArray[np.float64] | None:
    """``factor`` as [out_channels] if it broadcasts along the channel axis of ``linear``'s output only, else None."""
    array, shape = float_constant(factor), static_shape(out(linear))
    channels = out_channels(linear)
    if array is None or shape is None or array.ndim > len(shape):
        return None
    padded = (1,) * (len(shape) - array.ndim) + array.shape
    if any(size != 1 for i, size in enumerate(padded) if i != CHANNEL_AXIS) or padded[CHANNEL_AXIS] not in (
        1,
        channels,
    ):
        return None
    return np.broadcast_to(array.reshape(-1), (channels,)).copy()
