"""The float twin of a quantized hub: what it computes without its roundings. Facts are read off it; nothing is made from it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.passes import clean_up
from compiler.quantization.structure import constant_of


def float_twin(model: ir.Model) -> ir.Model:
    """Activations without their pairs, weights as the numbers that their codes stand for. ``model`` is not modified."""
    result = model.clone()
    graph = result.graph
    for node in [n for n in graph if n.op_type == "DequantizeLinear"]:
        source, output = node.inputs[0], node.outputs[0]
        assert source is not None
        producer = source.producer()
        if producer is not None and producer.op_type == "QuantizeLinear":
            real = producer.inputs[0]
            assert real is not None
            if output.is_graph_output():
                node.replace_input_with(0, real)  # becomes an Identity, so that the output keeps its name
                identity = ir.node("Identity", [real], name=f"{node.name}/identity", num_outputs=1)
                identity.outputs[0].type, identity.outputs[0].shape = output.type, output.shape
                name = output.name
                graph.insert_after(node, identity)
                output.replace_all_uses_with(identity.outputs[0], replace_graph_outputs=True)
                output.name, identity.outputs[0].name = f"{name}/codes", name
            else:
                output.replace_all_uses_with(real)
            graph.remove(node, safe=False)
        elif (codes := constant_of(source)) is not None:
            _store(graph, node, codes)
    for node in [n for n in graph if n.op_type == "QuantizeLinear" and not n.outputs[0].uses()]:
        graph.remove(node, safe=True)
    return clean_up(result)


def _store(graph: ir.Graph, node: ir.Node, codes: np.ndarray) -> None:
    scale, point = constant_of(node.inputs[1]), constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    assert scale is not None
    axis = node.attributes["axis"].as_int() % codes.ndim if "axis" in node.attributes and codes.ndim else 0
    block = node.attributes["block_size"].as_int() if "block_size" in node.attributes else 0
    zero = np.zeros_like(scale, np.int64) if point is None else point.astype(np.int64)

    def aligned(values: np.ndarray) -> np.ndarray:
        if block:
            return np.repeat(values, block, axis).take(range(codes.shape[axis]), axis)
        return values.reshape([-1 if values.size > 1 and i == axis else 1 for i in range(codes.ndim)])

    real = ((codes.astype(np.int64) - aligned(zero)).astype(np.float32) * aligned(scale)).astype(np.float32)
    output = node.outputs[0]
    name = f"{output.name}/float"
    tensor = ir.tensor(real.reshape(codes.shape), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(real.shape), const_value=tensor)
    graph.register_initializer(value)
    output.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
