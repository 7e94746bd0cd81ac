"""Bounds in one form: Clip with two constant scalars; Relu where only zero from below is left of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.passes.base import Rewrite
from compiler.passes.edit import add_initializer, float_constant, input_of, only_used_by, out, producer, replace

_LIMIT = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Match:
    nodes: tuple[ir.Node, ...]
    source: ir.Value
    low: float
    high: float


class CanonicalClip(Rewrite[Match]):
    """Min(Max(x, low), high), Relu then Min, Clip with absent or one-element bounds: the ways of writing Relu6."""

    name = "canonical_clip"
    op_types = frozenset({"Clip", "Min", "Max"})

    def pattern(self, node: ir.Node) -> Match | None:
        last = _bounds(node)
        if last is None:
            return None
        source, low, high = last
        inner_node = producer(source, "Clip", "Min", "Max", "Relu")
        inner = _bounds(inner_node) if inner_node is not None and only_used_by(source, node) else None
        if inner is None or inner_node is None:
            return Match((node,), source, low, high)
        # clip(clip(x, a, b), c, d) = clip(x, clip(a, c, d), clip(b, c, d))
        return Match((inner_node, node), inner[0], max(low, min(inner[1], high)), min(high, max(inner[2], low)))

    def check(self, match: Match) -> str | None:
        node = match.nodes[-1]
        if match.source.dtype != ir.DataType.FLOAT:
            return "it is not float32"
        if match.source.shape is None or match.source.shape != out(node).shape:
            return "the bound broadcasts the result to another shape"
        if match.low > match.high:
            return "its bounds cross"
        one_sided = match.low <= -_LIMIT or match.high >= _LIMIT
        if one_sided and not _is_relu(match) and any(n.op_type in ("Min", "Max") for n in match.nodes):
            return "it has one bound only, for which Min and Max are the plain form"
        return "it is in the canonical form" if len(match.nodes) == 1 and _is_canonical(node, match) else None

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        last = match.nodes[-1]
        if _is_relu(match):
            new = ir.node("Relu", [match.source])
        else:
            name = out(last).name
            low = add_initializer(graph, f"{name}_min", np.array(match.low, np.float32))
            high = add_initializer(graph, f"{name}_max", np.array(match.high, np.float32))
            new = ir.node("Clip", [match.source, low, high])
        replace(graph, list(match.nodes), [new], at=last)


def _is_relu(match: Match) -> bool:
    return match.low == 0.0 and match.high >= _LIMIT


def _is_canonical(node: ir.Node, match: Match) -> bool:
    if node.op_type != "Clip" or _is_relu(match):
        return False
    bounds = [float_constant(input_of(node, i)) for i in (1, 2)]
    return all(b is not None and b.ndim == 0 for b in bounds)


def _bounds(node: ir.Node) -> tuple[ir.Value, float, float] | None:
    """(source, low, high) of a node that bounds its input by constants, else None."""
    source = node.inputs[0]
    if node.op_type == "Relu":
        return (source, 0.0, _LIMIT) if source is not None else None
    if node.op_type == "Clip":
        low, high = _scalar(input_of(node, 1), -_LIMIT), _scalar(input_of(node, 2), _LIMIT)
        return (source, low, high) if source is not None and low is not None and high is not None else None
    if len(node.inputs) != 2:
        return None
    for index in (0, 1):
        source, bound = node.inputs[1 - index], _scalar(node.inputs[index], None)
        if source is not None and bound is not None:
            return (source, bound, _LIMIT) if node.op_type == "Max" else (source, -_LIMIT, bound)
    return None


def _scalar(value: ir.Value | None, default: float | None) -> float | None:
    if value is None:
        return default
    array = float_constant(value)
    # onnx's own default bounds are the float32 limits; infinities mean the same for finite inputs.
    return float(np.clip(array.reshape(()), -_LIMIT, _LIMIT)) if array is not None and array.size == 1 else None
