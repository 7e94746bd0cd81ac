"""Sources in float16, bfloat16 or float64: the hub computes in float32, inputs and outputs keep their types.

A cast stands behind each such input and before each such output; constants and everything between become float32. What a source
rounded to a narrower type on the way is not rounded here.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compiler.errors import Refusal
from compiler.importers.unroll import rename
from runtimes.session import Array

OTHER_FLOATS = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
# Integer attributes that name an element type.
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "softmax_precision", "stash_type", "precision"})


def widen_floats(proto: onnx.ModelProto) -> None:
    """Rewrite ``proto`` in place. Local functions must be inlined; value infos are dropped."""
    graph = proto.graph
    inputs = [v for v in graph.input if v.type.tensor_type.elem_type in OTHER_FLOATS]
    outputs = [v for v in graph.output if v.type.tensor_type.elem_type in OTHER_FLOATS]
    if not (inputs or outputs or any(_is_other(part) for part in _parts(graph))):
        return
    del graph.value_info[:]
    ends = [(value.name, value.type.tensor_type.elem_type) for value in outputs]
    _widen_graph(graph)
    inner = {value.name: f"{value.name}/float32" for value in (*inputs, *outputs)}
    for node in graph.node:
        rename(node, inner)
    for tensor in graph.initializer:
        tensor.name = inner.get(tensor.name, tensor.name)
    for value in reversed(inputs):
        graph.node.insert(0, _cast(value.name, inner[value.name], TensorProto.FLOAT))
    graph.node.extend(_cast(inner[name], name, elem_type) for name, elem_type in ends)


def unreadable_bits(proto: onnx.ModelProto) -> Iterator[Refusal]:
    """BitCasts of other floats: in float32 there are no such bits."""
    types = {v.name: v.type.tensor_type.elem_type for v in (*proto.graph.input, *proto.graph.output)}
    for node in proto.graph.node:
        if node.op_type == "BitCast" and {types.get(name) for name in (*node.input, *node.output)} & OTHER_FLOATS:
            reason = "it reads the bits of a float type that the hub computes in float32"
            yield Refusal(node.name or node.output[0], "BitCast", reason, "import", "Cast to float32 before it.")


def _parts(graph: onnx.GraphProto) -> Iterator[TensorProto | onnx.AttributeProto]:
    """Every tensor and every attribute, in subgraphs too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute
            if attribute.HasField("t"):
                yield attribute.t
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _parts(inner)


def _is_other(part: TensorProto | onnx.AttributeProto) -> bool:
    if isinstance(part, TensorProto):
        return part.data_type in OTHER_FLOATS
    return part.name in _TYPE_ATTRIBUTES and part.i in OTHER_FLOATS


def _widen_graph(graph: onnx.GraphProto) -> None:
    for part in _parts(graph):
        if not _is_other(part):
            continue
        if isinstance(part, TensorProto):
            part.CopyFrom(numpy_helper.from_array(_single(numpy_helper.to_array(part)), part.name))
        else:
            part.i = TensorProto.FLOAT
    _retype_bodies(graph)


def _retype_bodies(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                del body.value_info[:]
                for value in (*body.input, *body.output):
                    if value.type.tensor_type.elem_type in OTHER_FLOATS:
                        value.type.tensor_type.elem_type = TensorProto.FLOAT
                _retype_bodies(body)


def _single(array: Array) -> Array:
    """As float32. What is finite stays finite: masks made of float64's lowest number are added and multiplied."""
    wide = array.astype(np.float64)
    limit = float(np.finfo(np.float32).max)
    return np.where(np.isfinite(wide), np.clip(wide, -limit, limit), wide).astype(np.float32)


def _cast(source: str, result: str, elem_type: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"{result}/cast", to=elem_type)
