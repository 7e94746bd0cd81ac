"""int8 activations as uint8: q + 128 with zero point + 128 stands for the same real number."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.passes.edit import add_initializer, constant, input_of

_OFFSET = 128


def to_uint8(model: ir.Model) -> tuple[str, ...]:
    """Change every activation pair, in place: real = scale * (q - z) = scale * ((q + 128) - (z + 128)).

    Weights stay int8: onnxruntime's uint8 x int8 kernels are the fast ones.
    """
    points: dict[int, ir.Value] = {}
    count = 0
    for node in model.graph:
        if node.op_type != "QuantizeLinear":
            continue
        readers = [use.node for use in node.outputs[0].uses()]
        point = constant(input_of(node, 2))
        if point is None or point.dtype != np.int8 or any(r.op_type != "DequantizeLinear" for r in readers):
            continue
        for changed in (node, *readers):
            old = changed.inputs[2]
            assert old is not None
            if id(old) not in points:
                shifted = (point.astype(np.int16) + _OFFSET).astype(np.uint8)
                points[id(old)] = add_initializer(model.graph, f"{old.name}_uint8", shifted)
            changed.replace_input_with(2, points[id(old)])
        node.outputs[0].dtype = ir.DataType.UINT8
        count += 1
    for value in list(model.graph.initializers.values()):
        if not value.uses() and not value.is_graph_output():
            assert value.name is not None
            model.graph.initializers.pop(value.name)
    return (f"{count} activation tensors are uint8 with zero point + 128",)
