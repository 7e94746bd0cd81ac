"""Operators that move channels without computing: numbers follow the positions."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from compiler.pruning.flow import Edit, Flow, Ids, Labels, attribute, constant, couples, name_of, operand, shape_of


def relabel(labels: Labels, source: tuple[int, ...], target: tuple[int, ...]) -> Labels | None:
    """Where the channels of ``source`` lie after a row-major reshape to ``target``, or None if they share an axis of
    ``target`` with nothing but whole blocks of themselves.

    With P = prod(source[:axis]) and Q = prod(source[axis + 1:]), an element lies at (p, c, q). An axis of ``target`` with
    prefix product P_b and suffix product S_b fits if P = P_b * R and Q = S * S_b: its position d is (r, c, s), hence
    c = d // S % C.
    """
    count = len(labels.ids)
    before, after = prod(source[: labels.axis]), prod(source[labels.axis + 1 :])
    for axis, size in enumerate(target):
        prefix, suffix = prod(target[:axis]), prod(target[axis + 1 :])
        if 0 in (prefix, suffix) or before % prefix or after % suffix or size % count:
            continue
        inner = after // suffix
        if size == before // prefix * count * inner:
            return Labels(axis, labels.ids[np.arange(size) // inner % count])
    return None


def _move(flow: Flow, node: ir.Node) -> tuple[Labels, Labels] | None:
    """Labels before and after, or None after giving up (or if there are none)."""
    incoming = flow.of(operand(node, 0))
    if incoming is None:
        return None
    source, target = shape_of(operand(node, 0)), shape_of(node.outputs[0])
    moved = relabel(incoming, source, target) if source is not None and target is not None else None
    if moved is None:
        flow.give_up(node, f"{node.op_type} from {source} to {target} does not keep the channels apart")
        return None
    return incoming, moved


@couples("Flatten", "Squeeze", "Unsqueeze")
def flatten(flow: Flow, node: ir.Node) -> None:
    moved = _move(flow, node)
    if moved is not None:
        flow.set(node.outputs[0], moved[1].axis, moved[1].ids)


@couples("Reshape")
def reshape(flow: Flow, node: ir.Node) -> None:
    """The target shape is a constant whose entry for the channels' axis is edited; 0 copies an input axis, -1 is inferred."""
    moved = _move(flow, node)
    if moved is None:
        return None
    incoming, outgoing = moved
    target = constant(operand(node, 1))
    if target is None:
        return flow.give_up(node, "its target shape is computed")
    entries = [int(entry) for entry in target.ravel()]
    copies = not int(attribute(node, "allowzero", 0))
    same = outgoing.axis == incoming.axis and len(outgoing.ids) == len(incoming.ids)
    if copies and (entries[outgoing.axis] == 0 and not same):
        return flow.give_up(node, "its target shape copies an axis whose size is another after the cut")
    if copies and incoming.axis < len(entries) and entries[incoming.axis] == 0 and not same:
        return flow.give_up(node, "its target shape copies an axis whose size is another after the cut")
    if entries[outgoing.axis] > 0:
        flow.edits.append(Edit(name_of(node), outgoing.ids, outgoing.axis))
    return flow.set(node.outputs[0], outgoing.axis, outgoing.ids)


@couples("Transpose")
def transpose(flow: Flow, node: ir.Node) -> None:
    incoming, shape = flow.of(operand(node, 0)), shape_of(operand(node, 0))
    if incoming is None:
        return None
    if shape is None:
        return flow.give_up(node, "its shape is not static")
    order = [int(axis) for axis in attribute(node, "perm", range(len(shape))[::-1])]
    return flow.set(node.outputs[0], order.index(incoming.axis), incoming.ids)


@couples("Concat")
def concat(flow: Flow, node: ir.Node) -> None:
    """Along the channels' axis the numbers line up one after the other; along another axis they meet."""
    found = [flow.of(value) for value in node.inputs]
    labelled = [labels for labels in found if labels is not None]
    shape = shape_of(node.outputs[0])
    if not labelled:
        return None
    if shape is None or len({labels.axis for labels in labelled}) != 1:
        return flow.give_up(node, "its inputs have their channels on different axes")
    channel_axis = labelled[0].axis
    if int(attribute(node, "axis", 0)) % len(shape) == channel_axis:
        parts = [labels.ids if labels else _unmoved(flow, node, i, channel_axis) for i, labels in enumerate(found)]
        if any(part is None for part in parts):
            return flow.give_up(node, "an input has no static shape")
        return flow.set(node.outputs[0], channel_axis, np.concatenate([part for part in parts if part is not None]))
    if len(labelled) != len(found):
        return flow.give_up(node, "it joins channels with values that have none")
    for labels in labelled[1:]:
        flow.unite(labelled[0].ids, labels.ids)
    return flow.set(node.outputs[0], channel_axis, labelled[0].ids)


def _unmoved(flow: Flow, node: ir.Node, index: int, axis: int) -> Ids | None:
    """Numbers for an input that nobody can cut (a graph input, say): they exist and stay."""
    shape = shape_of(operand(node, index))
    if shape is None:
        return None
    ids = flow.anonymous(shape[axis])
    flow.pin(ids, node, f"input {index} brings channels that cannot be cut")
    return ids
