"""Operators whose result's shape follows from constants, in a form in which shape inference sees it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


def select_by_constants(proto: onnx.ModelProto) -> None:
    """Compress with a constant condition is a Gather of the places where it is true; in place.

    Source: ONNX's Compress-11; without an axis the input is flattened first.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(proto.graph.node):
        if node.op_type != "Compress" or node.input[1] not in constants:
            nodes.append(node)
            continue
        prefix = node.name or f"Compress_{index}"
        places = np.flatnonzero(constants[node.input[1]]).astype(np.int64)
        axis = next((a.i for a in node.attribute if a.name == "axis"), None)
        source = node.input[0]
        if axis is None:
            flat = numpy_helper.from_array(np.asarray([-1], np.int64), f"{prefix}/flat")
            proto.graph.initializer.append(flat)
            nodes.append(helper.make_node("Reshape", [source, flat.name], [f"{prefix}/row"], f"{prefix}/row"))
            source, axis = f"{prefix}/row", 0
        proto.graph.initializer.append(numpy_helper.from_array(places, f"{prefix}/places"))
        nodes.append(helper.make_node("Gather", [source, f"{prefix}/places"], node.output, prefix, axis=axis))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
