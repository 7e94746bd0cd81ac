"""An ONNX model whose batch size is free, from two that differ in it alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compiler.errors import Refusal
from compiler.rebatch import REMEDY, at_one, freed_entry, one_row

if TYPE_CHECKING:
    import onnx_ir as ir

    from runtimes.session import Array

SYMBOL = "batch"
BROADCASTS = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Where", "Equal", "Less", "Greater"})


def free_batch(first: ir.Model, second: ir.Model) -> tuple[ir.Model, list[Refusal]]:
    """A copy of ``first`` whose inputs and outputs start with a free size, and what stands in the way."""
    model, refusals = first.clone(), []
    others = second.graph.initializers
    for name, value in model.graph.initializers.items():
        a, b = _content(value), _content(others[name])
        if a.shape == b.shape and a.tobytes() == b.tobytes():
            continue
        refusals += _free_constant(value, a, b)
    ports = zip((*model.graph.inputs, *model.graph.outputs), (*second.graph.inputs, *second.graph.outputs), strict=True)
    for mine, other in ports:
        refusals += _free_port(mine, other)
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    return model, refusals


def _content(value: ir.Value) -> Array:
    assert value.const_value is not None
    return value.const_value.numpy()


def _free_constant(value: ir.Value, first: Array, second: Array) -> list[Refusal]:
    import onnx_ir as ir

    uses = list(value.uses())
    replacement: Array | None = None
    if all((use.node.op_type, use.idx) == ("Reshape", 1) for use in uses):
        replacement = freed_entry(first, second)
    elif all(use.node.op_type in BROADCASTS for use in uses):
        replacement = one_row(first, second)
    if replacement is None:
        reason = f"the constant {value.name!r} holds the batch size and has no form for every size"
        return [Refusal(str(uses[0].node.name), uses[0].node.op_type, reason, "onnx", REMEDY)]
    value.const_value = ir.tensor(np.ascontiguousarray(replacement), name=value.name)
    value.shape = ir.Shape(replacement.shape)
    return []


def _free_port(value: ir.Value, other: ir.Value) -> list[Refusal]:
    import onnx_ir as ir

    assert value.shape is not None and other.shape is not None
    found = at_one(value.shape.numpy(), other.shape.numpy())
    if found is None:
        reason = f"{value.name!r} does not grow in proportion to the batch"
        return [Refusal(str(value.name), "port", reason, "onnx", REMEDY)]
    sizes, signature = found
    names = [SYMBOL if size == 1 else f"{size}*{SYMBOL}" for size in sizes]
    value.shape = ir.Shape([names[i] if free < 0 else free for i, free in enumerate(signature)])
    return []
