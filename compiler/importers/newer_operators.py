"""Models at an opset above the hub's: what is new there is written in what the hub has.

Most changes after HUB_OPSET only let operators take more types. Operators that are new, or that got attributes or inputs which
the node uses, are replaced: by their function body from the standard, or by a decomposition of ours. (onnx's own converter has no
way down for most of them.)
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

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
        newer = [node for node in proto.graph.node if _is_newer(node, opset)]
        if not newer:
            break
        proto = _expanded(proto, newer, opset)
    left = [node for node in proto.graph.node if _is_newer(node, opset)]
    if left:
        raise UnsupportedModel([_refusal(node, opset) for node in left])
    for node in _nodes(proto.graph):
        _adapt(node)
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("", HUB_OPSET))
    proto.ir_version = HUB_IR_VERSION
    return proto


def _is_newer(node: onnx.NodeProto, opset: int) -> bool:
    """Whether the hub's definition of the operator lacks an attribute or input that the node uses, or the operator."""
    now = onnx.defs.get_schema(node.op_type, opset, "")
    if now.since_version <= HUB_OPSET:
        return False
    try:
        hub = onnx.defs.get_schema(node.op_type, HUB_OPSET, "")
    except onnx.defs.SchemaError:
        return True
    unknown = [a.name for a in node.attribute if a.name not in hub.attributes and not _is_default(a, now)]
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
    replaced: list[onnx.NodeProto] = []
    for index, node in enumerate(nodes):
        function = DECOMPOSITIONS.get(node.op_type)
        if function is None or not _is_newer(node, opset):
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
