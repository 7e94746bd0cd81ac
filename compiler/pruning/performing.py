"""Perform: follow a plan's instructions on a copy of the model, and infer the shapes anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.errors import DataError
from compiler.pruning.flow import constant, name_of
from compiler.pruning.types import Cut, PrunePlan, SetDimension, SetGroups


def perform(model: ir.Model, plan: PrunePlan) -> ir.Model:
    """Return a new hub model without the channels that ``plan`` names; ``model`` stays as it is.

    Raises:
        DataError: the plan was made for another model.
    """
    result = ir.from_proto(ir.to_proto(model))
    nodes = {name_of(node): node for node in result.graph}
    for instruction in plan.instructions:
        if instruction.node not in nodes:
            raise _mismatch(f"it has no node {instruction.node!r}")
        if isinstance(instruction, Cut):
            _cut(result, instruction)
        elif isinstance(instruction, SetGroups):
            _set_groups(nodes[instruction.node], instruction)
        else:
            _set_dimension(result, nodes[instruction.node], instruction)
    return infer_shapes(result)


def infer_shapes(model: ir.Model) -> ir.Model:
    """Drop the shapes of all computed values and infer them again; strict, so that a wrong cut cannot pass unseen."""
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    return ir.from_proto(inferred)


def _cut(model: ir.Model, cut: Cut) -> None:
    value = model.graph.initializers.get(cut.initializer)
    array = constant(value)
    if value is None or array is None or array.ndim <= cut.axis or array.shape[cut.axis] != cut.size:
        raise _mismatch(f"it has no initializer {cut.initializer!r} with {cut.size} entries on axis {cut.axis}")
    replace_array(value, np.delete(array, cut.remove, axis=cut.axis))


def replace_array(value: ir.Value, array: NDArray[Any]) -> None:
    """Give an initializer other content (and shape), of the dtype that it had."""
    had = value.const_value
    assert had is not None
    value.const_value = ir.tensor(np.ascontiguousarray(array.astype(had.numpy().dtype)), name=value.name)
    value.shape = ir.Shape(array.shape)


def _set_groups(node: ir.Node, instruction: SetGroups) -> None:
    found = node.attributes.get("group")
    if found is None or found.as_int() != instruction.before:
        raise _mismatch(f"node {instruction.node!r} has not {instruction.before} groups")
    node.attributes["group"] = ir.AttrInt64("group", instruction.after)


def _set_dimension(model: ir.Model, node: ir.Node, instruction: SetDimension) -> None:
    """The target shape may serve other nodes, so the edited one is a new initializer of this node alone."""
    shape = node.inputs[1] if len(node.inputs) > 1 else None
    array = constant(shape)
    if shape is None or array is None or array.ravel()[instruction.index] != instruction.before:
        raise _mismatch(f"the target shape of {instruction.node!r} has no {instruction.before} at {instruction.index}")
    edited = array.copy().astype(np.int64)
    edited[instruction.index] = instruction.after
    name = free_name(model, f"{shape.name}_pruned")
    replacement = add_initializer(model, name, edited)
    node.replace_input_with(1, replacement)
    if not shape.uses():
        model.graph.initializers.pop(shape.name or "")


def add_initializer(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    model.graph.register_initializer(value)
    return value


def free_name(model: ir.Model, wish: str) -> str:
    taken = set(model.graph.initializers) | {v.name for v in model.graph.inputs}
    taken |= {output.name for node in model.graph for output in node.outputs}
    name, count = wish, 0
    while name in taken:
        count += 1
        name = f"{wish}_{count}"
    return name


def _mismatch(why: str) -> DataError:
    return DataError(f"The plan was made for another model: {why}.", remedy="Make the plan again for this model.")
