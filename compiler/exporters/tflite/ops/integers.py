"""Operators whose kernels take integers: running sums, exclusive or."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.tflite import attributes as attr
from compiler.exporters.tflite.context import LoweringContext, dtype_of, shape_of
from compiler.exporters.tflite.ops.binary import aligned, common_order
from compiler.exporters.tflite.ops.unary import any_order, need_type
from compiler.exporters.tflite.table import lowers

if TYPE_CHECKING:
    import onnx_ir as ir


@lowers("CumSum", since=11)
def cum_sum(context: LoweringContext, node: ir.Node) -> None:
    source = attr.first(node)
    need_type(source, ("float32", "int32", "int64"))
    axis = int(context.required_constant(node.inputs[1], "axis").reshape(()))
    perm = any_order(context, source)
    place = context.literal(np.asarray(perm.index(axis % len(shape_of(source))), np.int32), "axis")
    flags = {name: bool(attr.integer(node, name, 0)) for name in ("exclusive", "reverse")}
    result = context.produce(node.outputs[0], perm)
    context.emit("CUMSUM", [context.read(source, perm), place], [result], "CumsumOptions", **flags)


@lowers("BitwiseXor", since=18)
def bitwise_xor(context: LoweringContext, node: ir.Node) -> None:
    left, right = (value for value in node.inputs if value is not None)
    need_type(left, ("int8", "uint8", "int16", "uint16", "int32", "uint32"))
    perm = common_order(context, [left, right], len(shape_of(node.outputs[0])))
    operands = [aligned(context, value, perm) for value in (left, right)]
    assert operands[0].dtype == dtype_of(left)
    context.emit("BITWISE_XOR", operands, [context.produce(node.outputs[0], perm)], "BitwiseXorOptions")
