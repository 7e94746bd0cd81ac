"""Choices that skip work: what only one side of a Where needs becomes the branch of an If.

The importer computes both branches of an If whose condition is known at run time alone, and chooses by Where: so every pass, the
quantizer and every format see one straight graph. Here, once that graph is final, the work comes back behind its condition, and so
does that of a source which was written with Where.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

# Starting a subgraph and copying its operands must be worth it: multiply-adds, or elements where there are none, by which the
# work behind the condition must exceed COPIED times the elements that go in and come out.
MIN_WORK, COPIED = 20_000, 4
SIDES = (1, 2)  # Where's operands: if true, if false
_CONTRACTIONS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")


def skip_unneeded(model: ir.Model) -> ir.Model:
    """A copy of ``model`` with an If in the place of Wheres that skip enough work; ``model`` itself where there are none."""
    if not _choices(model.graph):
        return model
    model, changed = model.clone(), False
    for group in _choices(model.graph):
        sides = [_cone(model.graph, group, side) for side in SIDES]
        if _worth_it(group, sides):
            _replace(model.graph, group, sides)
            changed = True
    if changed:
        model.graph.sort()
    return model


def _choices(graph: ir.Graph) -> list[list[ir.Node]]:
    """Wheres with one condition of one element for all that they choose between, none of which reads another's result."""
    groups: list[list[ir.Node]] = []
    reach: list[set[ir.Value]] = []  # per group, what depends on its results
    for node in graph:
        for values in reach:
            if any(value in values for value in node.inputs):
                values.update(node.outputs)
        if node.op_type != "Where" or not _chooses(node):
            continue
        for group, values in zip(groups, reach, strict=True):
            if group[0].inputs[0] is node.inputs[0] and node.outputs[0] not in values:
                group.append(node)
                values.update(node.outputs)
                break
        else:
            groups.append([node])
            reach.append(set(node.outputs))
    return groups


def _chooses(node: ir.Node) -> bool:
    condition, *sides = node.inputs
    shapes = [None if value is None else _shape(value) for value in (*sides, node.outputs[0])]
    static = condition is not None and not condition.is_initializer() and _shape(condition) is not None
    return static and _size(condition) == 1 and None not in shapes and len(set(shapes)) == 1


def _shape(value: ir.Value) -> tuple[int, ...] | None:
    if value.shape is None or not all(isinstance(size, int) for size in value.shape):
        return None
    return tuple(int(size) for size in value.shape)  # type: ignore[arg-type]  # checked above


def _size(value: ir.Value | None) -> int:
    return prod((_shape(value) or ()) if value is not None else ())


def _cone(graph: ir.Graph, group: Sequence[ir.Node], side: int) -> list[ir.Node]:
    """The nodes that nothing but operand ``side`` of the group needs, in the graph's order."""
    choosing, found = set(group), set()
    owners = {inner: node for node in graph for inner in _with_inner(node)}
    for node in reversed(list(graph)):
        uses = [(owners[use.node], use) for value in node.outputs for use in value.uses()]
        kept = any(value.is_graph_output() for value in node.outputs)
        needed = all(
            user in found or (use.node in choosing and user in choosing and use.idx == side) for user, use in uses
        )
        if uses and needed and not kept:
            found.add(node)
    return [node for node in graph if node in found]


def _with_inner(node: ir.Node) -> Iterator[ir.Node]:
    """``node`` and the nodes of its graphs."""
    yield node
    for attribute in node.attributes.values():
        if attribute.type.name == "GRAPH":
            yield from attribute.as_graph().all_nodes()


def _worth_it(group: Sequence[ir.Node], sides: Sequence[Sequence[ir.Node]]) -> bool:
    inside = {inner for nodes in sides for node in nodes for inner in _with_inner(node)}
    own = {value for node in inside for value in node.outputs}
    read = {value for node in inside for value in node.inputs if value is not None and value not in own}
    crossing = [value for value in read if not value.is_initializer()]
    copied = sum(map(_size, crossing)) + sum(_size(node.outputs[0]) for node in group)
    return sum(map(_work, inside)) > MIN_WORK + COPIED * copied


def _work(node: ir.Node) -> int:
    """Multiply-adds of a contraction, elements of the results of others."""
    elements = sum(map(_size, node.outputs))
    if node.op_type not in _CONTRACTIONS:
        return elements
    weight = _size(node.inputs[1])
    if node.op_type == "MatMul" or node.op_type == "Gemm":
        columns = (_shape(node.outputs[0]) or (1,))[-1]
        return elements * weight // max(1, columns) if node.op_type == "Gemm" else elements * _inner(node)
    if node.op_type in ("Conv", "ConvTranspose"):
        channels = (_shape(node.outputs[0]) or (1, 1))[1]
        return elements * weight // max(1, channels)
    return elements * (_shape(node.inputs[0]) or (1,))[-1]  # type: ignore[arg-type]  # a recurrent node has an input


def _inner(node: ir.Node) -> int:
    left = node.inputs[0]
    shape = _shape(left) if left is not None else None
    return shape[-1] if shape else 1


def _replace(graph: ir.Graph, group: Sequence[ir.Node], sides: Sequence[Sequence[ir.Node]]) -> None:
    """Put an If where the last of the group stands."""
    import onnx_ir as ir

    first = group[0]
    branches = []
    for kind, side, nodes in zip(("then", "else"), SIDES, sides, strict=True):
        graph.remove(nodes)
        ends, handed = _ends(group, side, nodes)
        body = ir.Graph(
            (), ends, nodes=[*nodes, *handed], name=f"{first.name}/{kind}", opset_imports=graph.opset_imports
        )
        branches.append(ir.AttrGraph(f"{kind}_branch", body))
    outputs = []
    for node in group:
        old = node.outputs[0]
        outputs.append(ir.Value(name=old.name, shape=old.shape, type=old.type))
    choice = ir.Node("", "If", [first.inputs[0]], branches, outputs=outputs, name=f"{first.name}/if")
    graph.insert_after(group[-1], choice)
    for node, value in zip(group, outputs, strict=True):
        node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(group, safe=True)


def _ends(group: Sequence[ir.Node], side: int, nodes: Iterable[ir.Node]) -> tuple[list[ir.Value], list[ir.Node]]:
    """A branch's results, each a value of its own; what comes from outside or is chosen twice is handed on by an Identity."""
    import onnx_ir as ir

    own = {value for node in nodes for value in node.outputs}
    ends: list[ir.Value] = []
    handed: list[ir.Node] = []
    for place, node in enumerate(group):
        value = node.inputs[side]
        assert value is not None, "Where's operands are not optional"
        if value not in own or value in ends:
            copy = ir.node("Identity", [value], name=f"{node.name}/handed_{side}_{place}")
            copy.outputs[0].name = f"{node.name}/handed_{side}_{place}"
            copy.outputs[0].shape, copy.outputs[0].type = value.shape, value.type
            handed.append(copy)
            value = copy.outputs[0]
        ends.append(value)
    return ends, handed
