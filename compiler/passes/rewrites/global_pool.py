"""A mean over all of height and width becomes GlobalAveragePool."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.passes.base import Rewrite
from compiler.passes.edit import (
    add_initializer,
    constant,
    input_of,
    integer,
    ints,
    out,
    replace,
    static_shape,
    text,
)


class GlobalPool(Rewrite[ir.Node]):
    """ReduceMean over axes 2 and 3, or AveragePool whose window is the whole input, without padding."""

    name = "global_pool"
    op_types = frozenset({"ReduceMean", "AveragePool"})

    def pattern(self, node: ir.Node) -> ir.Node | None:
        shape = static_shape(node.inputs[0])
        return node if shape is not None and len(shape) == 4 else None

    def check(self, match: ir.Node) -> str | None:
        if static_shape(out(match)) is None:
            return "its output shape is not known"
        return _mean_refusal(match) if match.op_type == "ReduceMean" else _pool_refusal(match)

    def rewrite(self, graph: ir.Graph, match: ir.Node) -> None:
        pool = ir.node("GlobalAveragePool", [match.inputs[0]])
        shape, result = static_shape(match.inputs[0]), static_shape(out(match))
        assert shape is not None and result is not None
        if len(result) == 4:
            replace(graph, [match], [pool], at=match)
            return
        pooled = out(pool)
        pooled.name, pooled.type = f"{out(match).name}_pooled", out(match).type
        pooled.shape = ir.Shape((*shape[:2], 1, 1))
        target = add_initializer(graph, f"{out(match).name}_shape", np.array(result, np.int64))
        pool.name = f"{match.name}_pool"
        replace(graph, [match], [pool, ir.node("Reshape", [pooled, target])], at=match)


def _mean_refusal(node: ir.Node) -> str | None:
    axes = constant(input_of(node, 1))
    if axes is None:
        return "its axes are not constants"
    if sorted(int(a) % 4 for a in axes.reshape(-1)) != [2, 3]:
        return f"it reduces axes {axes.tolist()}, not 2 and 3"
    return None


def _pool_refusal(node: ir.Node) -> str | None:
    shape = static_shape(node.inputs[0])
    assert shape is not None
    if ints(node, "kernel_shape") != shape[2:]:
        return "its window is smaller than the input"
    if any(ints(node, "pads") or ()) or text(node, "auto_pad", "NOTSET").startswith("SAME"):
        # A SAME window of the input's size with stride > 1 would average over padding too.
        return "it pads"
    if any(d != 1 for d in ints(node, "dilations") or ()):
        return "it is dilated"
    result = static_shape(out(node))
    if integer(node, "ceil_mode", 0) or result is None or result[2:] != (1, 1):
        return "it has more than one window"
    return None
