"""Models at an opset above the hub's: what is new there is written in what the hub has.

Most changes after HUB_OPSET only let operators take more types. Operators that are new, or that got attributes or inputs which
the node uses, are replaced: by their function body from the standard, or by a decomposition of ours. (onnx's own converter has no
way down for most of them.)
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import helper

from compiler.decompose.bodies import inline_bodies, typed
from compiler.decompose.builder import Builder, Operand
from compiler.decompose.table import DECOMPOSITIONS, Undecomposable
from compiler.errors import Refusal, UnsupportedModel
from compiler.hub import HUB_IR_VERSION, HUB_OPSET

MAX_ROUNDS = 6  # LinearAttention's body holds functions whose bodies hold functions


def lower_newer_operators(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """``proto`` (opset above HUB_OPSET, static input shapes) at HUB_OPSET.

    Raises:
        UnsupportedModel: listing every operator that neither the hub has nor anything here replaces.
    """
    for _ in range(MAX_ROUNDS):
        proto = typed(proto)
        types = _type_names(proto.graph)
        newer = [node for node in proto.graph.node if _is_newer(node, opset, types)]
        if not newer:
            break
        proto = _expanded(proto, newer, opset)
    types = _type_names(proto.graph)
    left = [node for node in proto.graph.node if _is_newer(node, opset, types)]
    if left:
        raise UnsupportedModel([_refusal(node, opset) for node in left])
    for node in _nodes(proto.graph):
        _adapt(node)
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("", HUB_OPSET))
    proto.ir_version = HUB_IR_VERSION
    return proto


def _type_names(graph: onnx.GraphProto) -> dict[str, str]:
    """Types of the graph's values as operator definitions spell them: "tensor(int16)"."""
    values = (*graph.value_info, *graph.input, *graph.output)
    return {value.name: f"tensor({_spelled(value.type.tensor_type.elem_type)})" for value in values}


def _spelled(elem_type: int) -> str:
    return onnx.TensorProto.DataType.Name(elem_type).lower()


def _takes(schema: onnx.defs.OpSchema, node: onnx.NodeProto, types: Mapping[str, str]) -> bool:
    """Whether the definition allows the types that the node reads."""
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    for index, name in enumerate(node.input):
        formal = schema.inputs[min(index, len(schema.inputs) - 1)].type_str
        if name in types and formal in allowed and types[name] not in allowed[formal]:
            return False
    return True


def _is_newer(node: onnx.NodeProto, opset: int, types: Mapping[str, str]) -> bool:
    """Whether the hub's definition of the operator lacks an attribute, input or type that the node uses, or the operator."""
    now = onnx.defs.get_schema(node.op_type, opset, "")
    if now.since_version <= HUB_OPSET:
        return False
    try:
        hub = onnx.defs.get_schema(node.op_type, HUB_OPSET, "")
    except onnx.defs.SchemaError:
        return True
    unknown = [a.name for a in node.attribute if a.name not in hub.attributes and not _is_default(a, now)]
    if not _takes(hub, node, types) and _takes(now, node, types):
        return True
    return bool(unknown) or len(node.input) > hub.max_input or len(node.output) > hub.max_output


def _is_default(attribute: onnx.AttributeProto, schema: onnx.defs.OpSchema) -> bool:
    known = schema.attributes.get(attribute.name)
    if known is None or known.default_value.type == onnx.AttributeProto.UNDEFINED:
        return False
    return bool(helper.get_attribute_value(known.default_value) == helper.get_attribute_value(attribute))


def _adapt(node: onnx.NodeProto) -> None:
    """Drop attributes that say by default what the hub's version always does."""
    try:
        hub = onnx.defs.get_schema(node.op_type, HUB_OPSET, node.domain)
    except onnx.defs.SchemaError:
        return
    kept = [attribute for attribute in node.attribute if attribute.name in hub.attributes]
    if len(kept) != len(node.attribute):
        del node.attribute[:]
        node.attribute.extend(kept)


def _expanded(proto: onnx.ModelProto, newer: list[onnx.NodeProto], opset: int) -> onnx.ModelProto:
    """One round of replacements."""
    importlib.import_module("compiler.decompose.ops")  # fills DECOMPOSITIONS
    outputs = {node.output[0] for node in newer}
    proto, _ = inline_bodies(typed(proto), lambda node: node.output[0] in outputs, opset)
    proto = typed(proto)
    _decompose_ours(proto, opset)
    return typed(proto)


def _decompose_ours(proto: onnx.ModelProto, opset: int) -> None:
    nodes = list(proto.graph.node)
    values = {v.name: v for v in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)}
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    types = _type_names(proto.graph)
    replaced: list[onnx.NodeProto] = []
    for index, node in enumerate(nodes):
        function = DECOMPOSITIONS.get(node.op_type)
        if function is None or not _is_newer(node, opset, types):
            replaced.append(node)
            continue
        node.name = node.name or f"{node.op_type}_{index}"
        operands = [_operand(name, values, constants) for name in node.input]
        results = [_operand(name, values, constants) for name in node.output]
        try:
            builder = Builder(node, tuple(operands), tuple(results))
            function(builder)
        except Undecomposable:
            replaced.append(node)
            continue
        replaced += builder.nodes
        proto.graph.initializer.extend(builder.initializers)
    del proto.graph.node[:]
    proto.graph.node.extend(replaced)


def _operand(
    name: str, values: dict[str, onnx.ValueInfoProto], constants: dict[str, onnx.TensorProto]
) -> Operand | None:
    if not name:
        return None
    if name in constants:
        array = onnx.numpy_helper.to_array(constants[name])
        return Operand(name, array.shape, array.dtype, array)
    info = values.get(name)
    if info is None or not all(dim.HasField("dim_value") for dim in info.type.tensor_type.shape.dim):
        raise Undecomposable(f"the shape of {name!r} is not known")
    shape = tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)
    return Operand(name, shape, np.dtype(helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)))


def _refusal(node: onnx.NodeProto, opset: int) -> Refusal:
    reason = f"opset {opset} has it in a form that opset {HUB_OPSET} lacks, and nothing replaces it"
    remedy = f"Export the model with opset {HUB_OPSET}, or use an older form of the operator."
    return Refusal(node.name or node.output[0], node.op_type, reason, "import", remedy)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for subgraph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(subgraph)
