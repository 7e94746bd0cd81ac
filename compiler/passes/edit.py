"""Small questions about values and small changes of graphs, shared by the rewrites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array behind an initializer, or None for anything that is computed or fed."""
    if value is None or value.const_value is None or not value.is_initializer() or value.is_graph_input():
        return None
    return value.const_value.numpy()


def float_constant(value: ir.Value | None) -> NDArray[np.float64] | None:
    """A floating-point initializer in float64, so that folding rounds once only, at the end."""
    array = constant(value)
    return array.astype(np.float64) if array is not None and array.dtype.kind == "f" else None


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """Input ``index``, or None where the optional input is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that computes ``value`` if it is one of ``op_types``."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.domain == "" and node.op_type in op_types else None


def only_used_by(value: ir.Value, node: ir.Node) -> bool:
    """Whether ``node`` is the one reader of ``value``, once, and no graph output shows it."""
    uses = list(value.uses())
    return len(uses) == 1 and uses[0].node is node and not value.is_graph_output()


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape if every dimension is a number, else None."""
    if value is None or value.shape is None:
        return None
    dims = tuple(value.shape)
    return tuple(d for d in dims if isinstance(d, int)) if all(isinstance(d, int) for d in dims) else None


def rank(value: ir.Value | None) -> int | None:
    return len(value.shape) if value is not None and value.shape is not None else None


def out(node: ir.Node) -> ir.Value:
    """The first output."""
    return node.outputs[0]


def ints(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """An integer-list attribute, or None if it is not there."""
    attribute = node.attributes.get(name)
    return tuple(attribute.as_ints()) if attribute is not None else None


def integer(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else default


def number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return attribute.as_float() if attribute is not None else default


def text(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return attribute.as_string() if attribute is not None else default


def add_initializer(graph: ir.Graph, hint: str, array: NDArray[Any]) -> ir.Value:
    """Register ``array`` under ``hint``, or under ``hint`` with a number behind it where that name is taken."""
    name, count = hint, 0
    while name in graph.initializers:
        count += 1
        name = f"{hint}_{count}"
    tensor = ir.Tensor(np.ascontiguousarray(array) if array.ndim else array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def refold(graph: ir.Graph, old: ir.Value | None, array: NDArray[Any], hint: str) -> ir.Value:
    """A float32 initializer in place of ``old``, under its name if nobody else reads it."""
    if old is not None and old.name is not None:
        if len(old.uses()) <= 1 and old.name in graph.initializers:
            graph.initializers.pop(old.name)
        hint = old.name
    return add_initializer(graph, hint, array.astype(np.float32))


def replace(graph: ir.Graph, old: Sequence[ir.Node], new: Sequence[ir.Node], *, at: ir.Node) -> None:
    """Put ``new`` in the place of ``old``. The first output of ``at`` lives on as the first output of ``new[-1]``.

    The value keeps its name, type and shape, so graph outputs keep their names; the node keeps the name of ``at``.
    """
    new[-1].name = at.name
    ir.convenience.replace_nodes_and_values(graph, at, old, new, [out(at)], [out(new[-1])])


def bypass(graph: ir.Graph, node: ir.Node) -> None:
    """Remove ``node`` and let its readers read its first input; see ``can_bypass``."""
    source, result = node.inputs[0], out(node)
    assert source is not None
    if result.is_graph_output():
        source.name, result.name = result.name, None
    result.replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def can_bypass(node: ir.Node) -> str | None:
    """Why ``node`` must stay although it does nothing: a graph output needs a node that computes it under its name."""
    source = node.inputs[0]
    if source is None:
        return "it has no input"
    if not out(node).is_graph_output():
        return None
    if source.producer() is None:
        return "it hands a graph input or initializer to a graph output"
    return "its input is a graph output itself" if source.is_graph_output() else None
