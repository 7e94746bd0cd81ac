"""Weights in int8, inputs quantized as they come: Gemm and MatMul with a stored matrix become MatMulInteger.

    y = MatMulInteger(q(x), W) * (s_x * s_w) + b

Source: DynamicQuantizeLinear-11 (uint8, asymmetric, per tensor) and MatMulInteger-10 of the ONNX standard. Convolutions keep
float inputs: onnxruntime's ConvInteger knows neither scales per channel nor int8 weights.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.passes.edit import constant
from runtimes.session import Array


def to_dynamic(model: ir.Model) -> tuple[ir.Model, int]:
    """Rewrite a copy of a weights-only hub; returns it and the number of products that became integer ones."""
    result = model.clone()
    count = 0
    for node in list(result.graph):
        if node.op_type in ("Gemm", "MatMul") and (matrix := _stored_matrix(node)) is not None:
            _replace(result.graph, node, *matrix)
            count += 1
    for node in reversed(list(result.graph)):
        if node.op_type == "DequantizeLinear" and not any(o.uses() or o.is_graph_output() for o in node.outputs):
            result.graph.remove(node, safe=True)
    for name in [n for n, value in result.graph.initializers.items() if not value.uses()]:
        del result.graph.initializers[name]
    return result, count


def _stored_matrix(node: ir.Node) -> tuple[Array, Array] | None:
    """Codes [K, N] int8 and scales [N] or [] of a plain product with a stored matrix on the right, else None."""
    weight = node.inputs[1]
    producer = weight.producer() if weight is not None else None
    if producer is None or producer.op_type != "DequantizeLinear" or "block_size" in producer.attributes:
        return None
    codes, scale, points = (constant(value) for value in producer.inputs)
    if codes is None or scale is None or points is None or codes.dtype != np.int8 or codes.ndim != 2 or points.any():
        return None
    flags = {a.name: a.as_float() if a.type == ir.AttributeType.FLOAT else a.as_int() for a in node.attributes.values()}
    if flags.get("transA") or flags.get("alpha", 1.0) != 1.0 or flags.get("beta", 1.0) != 1.0:
        return None
    columns = 0 if flags.get("transB") else 1
    axis = producer.attributes["axis"].as_int() % 2 if "axis" in producer.attributes else 1
    if scale.size > 1 and axis != columns:
        return None
    return np.ascontiguousarray(codes.T if flags.get("transB") else codes), scale.reshape(
        -1
    ) if scale.size > 1 else scale


def _replace(graph: ir.Graph, node: ir.Node, codes: Array, scale: Array) -> None:
    source, output, stem = node.inputs[0], node.outputs[0], f"{node.name}/dynamic"
    matrix, factors = (_initializer(graph, f"{stem}/{part}", a) for part, a in (("weight", codes), ("scale", scale)))
    quantized = ir.node("DynamicQuantizeLinear", [source], num_outputs=3, name=f"{stem}/quantize")
    product = ir.node("MatMulInteger", [quantized.outputs[0], matrix, quantized.outputs[2]], name=f"{stem}/product")
    wide = ir.node("Cast", [product.outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{stem}/cast")
    both = ir.node("Mul", [quantized.outputs[1], factors], name=f"{stem}/factors")
    scaled = ir.node("Mul", [wide.outputs[0], both.outputs[0]], name=f"{stem}/scaled")
    added = [quantized, product, wide, both, scaled]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        added.append(ir.node("Add", [scaled.outputs[0], bias], name=f"{stem}/bias"))
    for one in added:
        for i, value in enumerate(one.outputs):
            value.name = f"{one.name}_{i}"
    graph.insert_before(node, added)
    last = added[-1].outputs[0]
    last.type, last.shape = output.type, output.shape
    name = output.name
    output.replace_all_uses_with(last, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    last.name = name


def _initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value
