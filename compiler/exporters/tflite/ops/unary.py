"""Operators that map each element alone: one builtin each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.tflite import attributes as attr
from compiler.exporters.tflite import layout
from compiler.exporters.tflite.context import LoweringContext, Unsupported, dtype_of, shape_of
from compiler.exporters.tflite.kernels import prescribed
from compiler.exporters.tflite.ops import casts
from compiler.exporters.tflite.table import lowers
from compiler.exporters.tflite.tensors import QuantParams, Tensor, per_tensor

if TYPE_CHECKING:
    import onnx_ir as ir

BUILTIN = {
    "Exp": "EXP",
    "Log": "LOG",
    "Sqrt": "SQRT",
    "Neg": "NEG",
    "Abs": "ABS",
    "Floor": "FLOOR",
    "Ceil": "CEIL",
    "Round": "ROUND",
    "Sin": "SIN",
    "Cos": "COS",
    "Not": "LOGICAL_NOT",
}
# Types that the kernels take; other types are refused rather than tried.
TYPES = {
    "Neg": ("float32", "int32", "int64"),
    "Abs": ("float32", "int32"),
    "Not": ("bool",),
}


def any_order(context: LoweringContext, value: ir.Value) -> layout.Perm:
    """The order in which the value already is."""
    return context.perm(value) or layout.identity(len(shape_of(value)))


def need_type(value: ir.Value, allowed: tuple[str, ...]) -> None:
    if dtype_of(value).name not in allowed:
        raise Unsupported(f"the kernel does not take {dtype_of(value)}", f"Use {' or '.join(allowed)}.")


def elementwise(
    context: LoweringContext,
    node: ir.Node,
    code: str,
    *,
    integer: bool = False,
    options: str | None = None,
    **fields: object,
) -> None:
    """One operator on the first input.

    Args:
        integer: whether the kernel exists for int8; KERNELS says whether for int16, and which output parameters it demands.
    """
    source, output = attr.first(node), node.outputs[0]
    perm = any_order(context, source)
    quant = context.agreed([source], output) if integer else None
    tensor = context.read(source, perm, stored=quant is not None)
    result = context.produce(output, perm, quant and prescribed(node.op_type, quant))
    context.emit(code, [tensor], [result], options, **fields)
    note_island(context, node, [source], quant)


def note_island(context: LoweringContext, node: ir.Node, inputs: list[ir.Value], quant: QuantParams | None) -> None:
    """Report a node that the hub quantized and that runs in float because no kernel fits."""
    if quant is None and context.agreed(inputs, node.outputs[0]) is not None:
        context.note(f"{node.op_type} {node.name!r} runs in float between DEQUANTIZE and QUANTIZE: no int8 kernel fits")


@lowers(*BUILTIN)
def simple(context: LoweringContext, node: ir.Node) -> None:
    need_type(attr.first(node), TYPES.get(node.op_type, ("float32",)))
    elementwise(context, node, BUILTIN[node.op_type])


@lowers("Sigmoid")
def sigmoid(context: LoweringContext, node: ir.Node) -> None:
    elementwise(context, node, "LOGISTIC", integer=True)


@lowers("Tanh")
def tanh(context: LoweringContext, node: ir.Node) -> None:
    elementwise(context, node, "TANH", integer=True)


@lowers("Reciprocal")
def reciprocal(context: LoweringContext, node: ir.Node) -> None:
    source = attr.first(node)
    need_type(source, ("float32",))
    perm = any_order(context, source)
    tensor = context.read(source, perm)
    one = scalar(context, 1.0)
    context.emit("DIV", [one, tensor], [context.produce(node.outputs[0], perm)], "DivOptions")
    note_island(context, node, [source], None)


def integer_scalar(context: LoweringContext, number: float, bits: int) -> Tensor:
    """A positive constant as the largest code of its own scale."""
    largest = (1 << (bits - 1)) - 1
    quant = per_tensor(number / largest, 0, bits)
    return context.writer.constant("scalar", np.full((1,), largest, quant.dtype), quant)


def scalar(context: LoweringContext, number: float) -> Tensor:
    return context.literal(np.full((1,), number, np.float32), "scalar")


@lowers("Identity", "Dropout")
def identity(context: LoweringContext, node: ir.Node) -> None:
    """Dropout does nothing at inference; its mask output is not offered."""
    if len([value for value in node.outputs if value.name and (value.uses() or value.is_graph_output())]) > 1:
        raise Unsupported("its mask is used", "Export the model for inference.")
    training = context.constant(attr.operand(node, 2)) if node.op_type == "Dropout" else None
    if attr.operand(node, 2) is not None and node.op_type == "Dropout" and (training is None or bool(training)):
        raise Unsupported("it is in training mode", "Export the model for inference.")
    context.alias(node.outputs[0], attr.first(node))


# fmt: off
CAST_TYPES = (
    "float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "bool", "int4",
    "uint4", "uint64",
)
# fmt: on


@lowers("Cast")
def cast(context: LoweringContext, node: ir.Node) -> None:
    source, output = attr.first(node), node.outputs[0]
    need_type(source, CAST_TYPES)
    need_type(output, CAST_TYPES)
    perm = any_order(context, source)
    tensor = context.read(source, perm)
    result = context.produce(output, perm)
    casts.cast(context, tensor, result)
