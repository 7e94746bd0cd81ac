"""Operators that only rearrange: exact on int8 with the input's own parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.tflite import attributes as attr
from compiler.exporters.tflite import layout
from compiler.exporters.tflite.context import LoweringContext, Unsupported, shape_of
from compiler.exporters.tflite.layout import Perm
from compiler.exporters.tflite.ops.binary import common_order
from compiler.exporters.tflite.ops.unary import any_order, note_island
from compiler.exporters.tflite.table import lowers
from compiler.exporters.tflite.tensors import QuantParams, Tensor

if TYPE_CHECKING:
    import onnx_ir as ir


def stored(context: LoweringContext, value: ir.Value, perm: Perm) -> Tensor:
    """The tensor as it is stored, int8 included."""
    return context.read(value, perm, stored=context.quant(value) is not None)


@lowers("Transpose")
def transpose(context: LoweringContext, node: ir.Node) -> None:
    """Nothing is written: the output is the same tensor in another order."""
    source = attr.first(node)
    rank = len(shape_of(source))
    order = tuple(attr.integers(node, "perm") or reversed(range(rank)))
    held = context.perm(source)
    context.alias(node.outputs[0], source, order if held is None else layout.compose(held, order))


@lowers("Squeeze", "Unsqueeze", "Reshape", "Flatten")
def reshape(context: LoweringContext, node: ir.Node) -> None:
    """Adding or removing axes of size 1 keeps the order in which the others are stored; anything else needs the hub's."""
    source, output = attr.first(node), node.outputs[0]
    before, after = shape_of(source), shape_of(output)
    own = any_order(context, source)
    if [s for s in before if s != 1] == [s for s in after if s != 1]:
        perm = _reordered(own, before, after)
        context.bind(output, context.reshape(stored(context, source, own), layout.permuted(after, perm)), perm)
        return
    tensor = stored(context, source, layout.identity(len(before)))
    context.bind(output, context.reshape(tensor, after), layout.identity(len(after)))


def _reordered(perm: Perm, before: tuple[int, ...], after: tuple[int, ...]) -> Perm:
    """An order of ``after`` whose axes larger than 1 follow each other as they do in ``before`` stored in ``perm``."""
    large_before = [axis for axis, size in enumerate(before) if size != 1]
    large_after = [axis for axis, size in enumerate(after) if size != 1]
    moved = [large_after[large_before.index(axis)] for axis in perm if before[axis] != 1]
    if moved == sorted(moved):
        return layout.identity(len(after))
    return (*(axis for axis, size in enumerate(after) if size == 1), *moved)


@lowers("Concat")
def concat(context: LoweringContext, node: ir.Node) -> None:
    """On int8 every operand is brought to the output's parameters first, as the kernel demands."""
    values = [value for value in node.inputs if value is not None]
    output = node.outputs[0]
    rank = len(shape_of(output))
    perm = common_order(context, values, rank)
    quant = _concat_quant(context, values, output)
    tensors = [context.read(value, perm, stored=quant is not None) for value in values]
    if quant is not None:
        tensors = [context.quantize(tensor, quant) for tensor in tensors]
    result = context.produce(output, perm, quant)
    axis = perm.index(attr.axis(node, rank, 0))
    context.emit("CONCATENATION", tensors, [result], "ConcatenationOptions", axis=axis)
    note_island(context, node, values, quant)


def _concat_quant(context: LoweringContext, values: list[ir.Value], output: ir.Value) -> QuantParams | None:
    agreed = context.agreed(values, output)
    if agreed is not None:
        return agreed
    own = {context.quant(value) for value in values}
    return own.pop() if len(own) == 1 else None


@lowers("Split", since=13)
def split(context: LoweringContext, node: ir.Node) -> None:
    source = attr.first(node)
    rank = len(shape_of(source))
    perm = any_order(context, source)
    axis = attr.axis(node, rank, 0)
    tensor = stored(context, source, perm)
    sizes = context.literal(np.asarray([shape_of(value)[axis] for value in node.outputs], np.int32), "sizes")
    position = context.literal(np.asarray(perm.index(axis), np.int32), "axis")
    outputs = [context.produce(value, perm, tensor.quant) for value in node.outputs]
    context.emit("SPLIT_V", [tensor, sizes, position], outputs, "SplitVOptions", numSplits=len(outputs))


@lowers("Pad", since=13)
def pad(context: LoweringContext, node: ir.Node) -> None:
    source, output = attr.first(node), node.outputs[0]
    rank, mode = len(shape_of(source)), attr.text(node, "mode", "constant")
    amounts = _amounts(context, node, rank)
    fill_value = attr.operand(node, 2)
    fill = None if fill_value is None else context.required_constant(fill_value, "fill value").reshape(-1)
    zero = fill is None or not fill.any()
    perm = any_order(context, source)
    tensor = context.read(source, perm, stored=context.quant(source) is not None and (mode != "constant" or zero))
    result = context.produce(output, perm, tensor.quant)
    pairs = context.literal(amounts[list(perm)].astype(np.int32), "pads")
    if mode == "constant" and zero:
        context.emit("PAD", [tensor, pairs], [result], "PadOptions")
    elif mode == "constant" and fill is not None:
        value = context.literal(fill.astype(tensor.dtype), "fill")
        context.emit("PADV2", [tensor, pairs, value], [result], "PadV2Options")
    else:
        context.emit("MIRROR_PAD", [tensor, pairs], [result], "MirrorPadOptions", mode=_mirror(mode, amounts))
    note_island(context, node, [source], tensor.quant)


def _mirror(mode: str, amounts: np.ndarray) -> int:
    """MirrorPadMode in the schema: REFLECT 0; SYMMETRIC 1 repeats the edge, so for one element it is ONNX's "edge"."""
    if mode == "reflect":
        return 0
    if mode == "edge" and amounts.max() <= 1:
        return 1
    raise Unsupported(f"mode {mode!r} has no counterpart for these pads", "Pad with zeros or by reflection.")


def _amounts(context: LoweringContext, node: ir.Node, rank: int) -> np.ndarray:
    """[rank, 2] in the hub's axis order."""
    flat = context.required_constant(attr.operand(node, 1), "pads").reshape(2, -1)
    chosen = attr.operand(node, 3)
    axes = range(rank) if chosen is None else [int(a) % rank for a in context.required_constant(chosen, "axes").ravel()]
    amounts = np.zeros((rank, 2), np.int64)
    for position, axis in enumerate(axes):
        amounts[axis] = flat[:, position]
    if amounts.min() < 0:
        raise Unsupported("its pads are negative", "Slice the input instead.")
    return amounts


@lowers("DepthToSpace", since=13)
def depth_to_space(context: LoweringContext, node: ir.Node) -> None:
    """The builtin is ONNX's DCR; CRD first gathers the channels into DCR's order."""
    source, block = attr.first(node), attr.integer(node, "blocksize", 1)
    perm = layout.channels_last(4)
    tensor = stored(context, source, perm)
    if attr.text(node, "mode", "DCR") == "CRD":
        channels = tensor.shape[3]
        order = np.arange(channels, dtype=np.int32).reshape(-1, block * block).T.reshape(-1)
        ordered = context.temporary(tensor.shape, tensor)
        indices = context.literal(np.ascontiguousarray(order), "order")
        context.emit("GATHER", [tensor, indices], [ordered], "GatherOptions", axis=3)
        tensor = ordered
    result = context.produce(node.outputs[0], perm, tensor.quant)
    context.emit("DEPTH_TO_SPACE", [tensor], [result], "DepthToSpaceOptions", blockSize=block)


@lowers("SpaceToDepth")
def space_to_depth(context: LoweringContext, node: ir.Node) -> None:
    perm = layout.channels_last(4)
    tensor = stored(context, attr.first(node), perm)
    result = context.produce(node.outputs[0], perm, tensor.quant)
    block = attr.integer(node, "blocksize", 1)
    context.emit("SPACE_TO_DEPTH", [tensor], [result], "SpaceToDepthOptions", blockSize=block)
