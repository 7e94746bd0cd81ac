"""Keeps the codes of quantized constants through the clean-up, which folds whatever is constant.

While it runs, the codes are graph inputs: nothing can be folded that the caller feeds.
"""

from __future__ import annotations

import onnx_ir as ir

from compiler.passes.structure import Flatten


def feed_codes(model: ir.Model) -> tuple[ir.Model, dict[str, ir.TensorProtocol]]:
    """Turn every initializer that a DequantizeLinear reads as codes into an input, in place; returns the tensors by name."""
    if not any(node.op_type == "DequantizeLinear" for node in model.graph):
        return model, {}
    model = Flatten()(model).model  # codes may be Constant nodes
    graph, codes = model.graph, {}
    for node in graph:
        value = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if value is None or value.const_value is None or not value.is_initializer():
            continue
        name, tensor = str(value.name), value.const_value
        codes[name] = tensor
        del graph.initializers[name]
        value.const_value = None
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        graph.inputs.append(value)
    return model, codes


def restore_codes(model: ir.Model, codes: dict[str, ir.TensorProtocol]) -> None:
    """Make the inputs that ``feed_codes`` made initializers again, in place, and leave out those that nothing reads any more."""
    graph = model.graph
    for value in [v for v in graph.inputs if v.name in codes]:
        graph.inputs.remove(value)
        if value.uses():
            value.const_value = codes[str(value.name)]
            graph.register_initializer(value)
