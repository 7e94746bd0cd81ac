"""Function bodies from the ONNX standard, put in the place of the nodes they define."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import onnx.inliner
from onnx import helper

_DOMAIN = "edgewright.bodies"


def inline_bodies(
    proto: onnx.ModelProto, wanted: Callable[[onnx.NodeProto], bool], opset: int
) -> tuple[onnx.ModelProto, int]:
    """Replace the top-level nodes that ``wanted`` accepts and the standard defines as functions; also the number replaced.

    ``proto`` must hold the types of all values that those nodes read (see ``typed``); it is changed. Some bodies depend on these
    types and on the node's attributes, so each node gets a function of its own. (onnx's inliner can do this by itself, but not for
    nodes that leave out an optional input before one they give.)
    """
    types = _types(proto)
    count = 0
    for node in proto.graph.node:
        if node.domain not in ("", "ai.onnx") or not wanted(node):
            continue
        schema = onnx.defs.get_schema(node.op_type, opset, "")
        full = with_defaults(node, schema)
        body = _body(full, schema, opset, types)
        if body is None:
            continue
        body.domain, body.name = _DOMAIN, f"{node.op_type}_{count}"
        count += 1
        full.domain, full.op_type = _DOMAIN, body.name
        kept = [attribute for attribute in full.attribute if attribute.name in body.attribute]
        defaults = {attribute.name for attribute in body.attribute_proto}
        kept += [attribute for attribute in full.attribute if attribute.name in defaults]
        del full.attribute[:]
        full.attribute.extend(kept)
        node.CopyFrom(full)
        proto.functions.append(body)
    if count:
        proto.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
        proto = onnx.inliner.inline_local_functions(proto, convert_version=True)
        for index, entry in reversed(list(enumerate(proto.opset_import))):
            if entry.domain == _DOMAIN:
                del proto.opset_import[index]
    return proto, count


def typed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """With the types and shapes of all values, initializers included."""
    proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    known = {value.name for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)}
    for tensor in proto.graph.initializer:
        if tensor.name not in known:
            proto.graph.value_info.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return proto


def with_defaults(proto: onnx.NodeProto, schema: onnx.defs.OpSchema) -> onnx.NodeProto:
    """A copy with every attribute that has a default: bodies refer to them as if they were there."""
    full = onnx.NodeProto()
    full.CopyFrom(proto)
    present = {attribute.name for attribute in proto.attribute}
    for name, attribute in schema.attributes.items():
        if name not in present and attribute.default_value.type != onnx.AttributeProto.UNDEFINED:
            full.attribute.append(attribute.default_value)
    return full


def _types(proto: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    graph = proto.graph
    return {value.name: value.type for value in (*graph.value_info, *graph.input, *graph.output)}


def _body(
    node: onnx.NodeProto, schema: onnx.defs.OpSchema, opset: int, types: Mapping[str, onnx.TypeProto]
) -> onnx.FunctionProto | None:
    """The function for this node; None where the standard has none, or a type is not known."""
    known: Any = schema  # onnx's type stubs leave the functions out
    if known.has_function:
        serialized = known.get_function_with_opset_version(_newest(known.function_opset_versions, opset))
    elif known.has_context_dependent_function:
        if any(name and name not in types for name in node.input):
            return None
        version = _newest(known.context_dependent_function_opset_versions, opset)
        absent = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)  # bodies do not look at what is left out
        given = [types.get(name, absent).SerializeToString() for name in node.input]
        serialized = known.get_context_dependent_function_with_opset_version(version, node.SerializeToString(), given)
    else:
        return None
    body = onnx.FunctionProto()
    body.ParseFromString(serialized)
    return body


def _newest(versions: list[int], opset: int) -> int:
    return max((version for version in versions if version <= opset), default=min(versions))
