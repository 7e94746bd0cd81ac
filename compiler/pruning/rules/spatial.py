"""Operators over the other axes: every channel is on its own."""

from __future__ import annotations

import onnx_ir as ir

from compiler.pruning.flow import Flow, attribute, constant, couples, operand, shape_of


@couples("AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def pool(flow: Flow, node: ir.Node) -> None:
    incoming = flow.of(operand(node, 0))
    if incoming is None:
        return None
    if incoming.axis != 1 or len(node.outputs) > 1:  # MaxPool's second output counts positions through all channels
        return flow.give_up(node, "it pools over the channels, or answers positions")
    return flow.set(node.outputs[0], 1, incoming.ids)


@couples("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")
def reduce(flow: Flow, node: ir.Node) -> None:
    incoming, shape = flow.of(operand(node, 0)), shape_of(operand(node, 0))
    if incoming is None:
        return None
    given = operand(node, 1)
    array = constant(given)
    if shape is None or (given is not None and array is None):
        return flow.give_up(node, "its axes are computed")
    listed = [int(axis) % len(shape) for axis in (array.ravel() if array is not None else attribute(node, "axes", ()))]
    if not listed and int(attribute(node, "noop_with_empty_axes", 0)):
        return flow.set(node.outputs[0], incoming.axis, incoming.ids)
    if not listed or incoming.axis in listed:
        return flow.give_up(node, f"{node.op_type} over the channels mixes them all")
    gone = 0 if int(attribute(node, "keepdims", 1)) else sum(axis < incoming.axis for axis in listed)
    return flow.set(node.outputs[0], incoming.axis - gone, incoming.ids)


@couples("Resize", "Upsample")
def resize(flow: Flow, node: ir.Node) -> None:
    """Scales keep the channels' axis as it is; sizes would name its size."""
    incoming, scales = flow.of(operand(node, 0)), constant(operand(node, 2 if node.op_type == "Resize" else 1))
    shape = shape_of(operand(node, 0))
    if incoming is None:
        return None
    if shape is None or scales is None or scales.size == 0:
        return flow.give_up(node, "it is not given by constant scales")
    axes = [int(axis) % len(shape) for axis in attribute(node, "axes", range(len(shape)))]
    if incoming.axis in axes and float(scales.ravel()[axes.index(incoming.axis)]) != 1.0:
        return flow.give_up(node, "it resizes the channels' axis")
    return flow.set(node.outputs[0], incoming.axis, incoming.ids)


@couples("Pad")
def pad(flow: Flow, node: ir.Node) -> None:
    """pads: [begin of each axis, end of each axis]."""
    incoming, pads, shape = flow.of(operand(node, 0)), constant(operand(node, 1)), shape_of(operand(node, 0))
    if incoming is None:
        return None
    given = operand(node, 3)
    axes = constant(given)
    if shape is None or pads is None or (given is not None and axes is None):
        return flow.give_up(node, "its pads are computed")
    listed = [int(axis) % len(shape) for axis in (axes.ravel() if axes is not None else range(len(shape)))]
    if incoming.axis in listed:
        index = listed.index(incoming.axis)
        if pads[index] or pads[index + len(listed)]:
            return flow.give_up(node, "it pads the channels' axis")
    return flow.set(node.outputs[0], incoming.axis, incoming.ids)
