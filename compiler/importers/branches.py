"""An If whose condition is known at run time alone: both branches are computed, and Where chooses.

Operators have no effects beside their results, so this is what the If says; it costs the work of the branch not taken.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compiler.decompose.bodies import typed
from compiler.importers.unroll import inlined


def select_branches(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Every top-level If whose branches give the same types and static shapes; others stay, and are refused as what they are."""
    for _ in range(4):  # branches within branches
        found = [node for node in proto.graph.node if node.op_type == "If"]
        for node in found:
            proto = _selected(typed(proto), node.output[0])
        if len([node for node in proto.graph.node if node.op_type == "If"]) == 0 or not found:
            break
    return proto


def _selected(proto: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """The model with the If that gives ``output`` replaced, or as it was where the branches differ in shape."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    place, node = next((i, n) for i, n in enumerate(result.graph.node) if output in n.output)
    prefix = node.name or output
    bodies = {a.name: a.g for a in node.attribute}
    nodes: list[onnx.NodeProto] = []
    ends = [
        inlined(result.graph, bodies[f"{kind}_branch"], (), f"{prefix}/{kind}/", nodes) for kind in ("then", "else")
    ]
    condition = f"{prefix}/condition"
    scalar = numpy_helper.from_array(np.zeros(0, np.int64), f"{prefix}/scalar")
    result.graph.initializer.append(scalar)
    nodes.append(helper.make_node("Reshape", [node.input[0], scalar.name], [condition], condition))
    for name, then, other in zip(node.output, *ends, strict=True):
        nodes.append(helper.make_node("Where", [condition, then, other], [name], f"{name}/chosen"))
    rest = list(result.graph.node)
    del result.graph.node[:]
    result.graph.node.extend([*rest[:place], *nodes, *rest[place + 1 :]])
    result = typed(result)
    return result if _alike(result, zip(*ends, strict=True)) else proto


def _alike(proto: onnx.ModelProto, pairs: object) -> bool:
    """Whether each pair has one type and one static shape: Where would broadcast, an If does not."""
    graph = proto.graph
    types = {v.name: v.type for v in (*graph.value_info, *graph.input, *graph.output)}
    types |= {t.name: helper.make_tensor_type_proto(t.data_type, t.dims) for t in graph.initializer}
    for then, other in pairs:  # type: ignore[attr-defined]
        if then not in types or other not in types or types[then] != types[other]:
            return False
        dims = types[then].tensor_type.shape.dim
        if not types[then].HasField("tensor_type") or not all(dim.HasField("dim_value") for dim in dims):
            return False
    return True
