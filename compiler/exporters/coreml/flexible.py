"""Inputs of several sizes: the hub's static shapes with the flexible axes set free and the shapes behind them inferred anew."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.coreml.unsupported import Unsupported

if TYPE_CHECKING:
    import onnx_ir as ir

Sizes = Sequence[Sequence[tuple[int, int]]]  # for each shape and axis the least and the largest size
ROUNDS = 64  # one for each reshape behind another, which becomes flexible when the one before does
PREFIX = "flexible_"  # of the names of free axes


def free_axes(model: ir.Model, flexible: Mapping[str, Sizes]) -> ir.Model:
    """A copy of ``model`` with symbols for the flexible axes of its inputs, and every shape behind them inferred from these.

    It computes what ``model`` does at the default sizes, and runs in onnxruntime at all others.

    Axes with the same bounds and the same default share a symbol: they have the same size in every call (two inputs of one batch).

    Raises:
        Unsupported: an input does not exist, its rank differs, or the sizes leave out the one that the model was built with.
    """
    from onnx_ir.passes.common import ShapeInferencePass

    if not flexible:
        return model
    model = model.clone()
    inputs = {value.name: value for value in model.graph.inputs}
    for name, sizes in flexible.items():
        if name not in inputs:
            raise Unsupported(f"there is no input {name!r}", f"Name one of {', '.join(map(str, inputs))}.")
        _free(inputs[name], sizes)
    alone = all(is_fixed(axis) for name in flexible for axis in list(inputs[name].shape or ())[1:])
    for _ in range(ROUNDS):
        for output in (output for node in model.graph for output in node.outputs):
            output.shape = None
        model = ShapeInferencePass()(model).model
        if not _free_batches(model, alone):
            break
    for value in model.graph.outputs:
        if value.shape is None:
            raise Unsupported(f"the rank of output {value.name!r} depends on the sizes", "Fix the sizes of the inputs.")
    return model


def at_ends(model: ir.Model, flexible: Mapping[str, Sizes]) -> list[ir.Model]:
    """Copies of ``model`` at each listed shape, or at the least and the largest sizes. Raises Unsupported as ``free_axes``."""
    import onnx_ir as ir
    from onnx_ir.passes.common import ShapeInferencePass

    free, made = free_axes(model, flexible), []
    for shapes in end_shapes(flexible):
        sized = free.clone()
        for value in sized.graph.inputs:
            if value.name in shapes:
                value.shape = ir.Shape(shapes[value.name])
        for output in (output for node in sized.graph for output in node.outputs):
            output.shape = None
        made.append(ShapeInferencePass()(sized).model)
    return made


def end_shapes(flexible: Mapping[str, Sizes]) -> Iterator[dict[str, tuple[int, ...]]]:
    """All inputs at their least, then all at their largest; listed shapes one after the other (a shorter list repeats its last)."""
    columns = {
        name: [tuple(low for low, _ in shape) for shape in sizes]
        if len(sizes) > 1
        else [tuple(low for low, _ in sizes[0]), tuple(high for _, high in sizes[0])]
        for name, sizes in flexible.items()
    }
    for index in range(max(map(len, columns.values()))):
        yield {name: shapes[min(index, len(shapes) - 1)] for name, shapes in columns.items()}


def is_fixed(size: object) -> bool:
    return isinstance(size, int)


def _free_batches(model: ir.Model, alone: bool) -> bool:
    """Let reshapes take any batch: a source that was traced with a batch of one states that one where it means the batch.

    The first axis of a reshape's target becomes -1, which changes nothing at the default size. It holds for other batches where
    the batch is ``alone`` in being flexible, and else where all other axes keep their product. Says whether anything changed.
    """
    changed = False
    for node in model.graph:
        if node.op_type != "Reshape" or node.inputs[0] is None or node.inputs[0].shape is None:
            continue
        target = node.inputs[1]
        if target is None or target.const_value is None:
            continue
        stated = [int(d) for d in target.const_value.numpy()]
        have = list(node.inputs[0].shape)
        keeps = all(map(is_fixed, have[1:])) and math.prod(have[1:]) == math.prod(stated[1:])
        if len(stated) > 1 and min(stated) > 0 and not all(map(is_fixed, have)) and (alone or keeps):
            _state(model, node, [-1, *stated[1:]])
            changed = True
    return changed


def _state(model: ir.Model, node: ir.Node, target: list[int]) -> None:
    """Give one reshape a target of its own; others may share the old one."""
    import onnx_ir as ir

    name = f"{node.name}/any_batch"
    tensor = ir.tensor(np.array(target, np.int64), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape([len(target)]), const_value=tensor)
    model.graph.register_initializer(value)
    node.replace_input_with(1, value)


def _free(value: ir.Value, sizes: Sizes) -> None:
    import onnx_ir as ir

    assert value.shape is not None
    default = tuple(int(d) for d in value.shape)  # type: ignore[arg-type]
    if len(sizes[0]) != len(default):
        raise Unsupported(f"{value.name!r} has {len(default)} axes, its sizes have {len(sizes[0])}")
    if not any(all(low <= d <= high for d, (low, high) in zip(default, shape, strict=True)) for shape in sizes):
        shown = "x".join(map(str, default))
        raise Unsupported(
            f"the sizes of {value.name!r} leave out {shown}", f"Add {shown}, which the model is built with."
        )
    dims: list[int | str] = []
    for axis, size in enumerate(default):
        low, high = min(shape[axis][0] for shape in sizes), max(shape[axis][1] for shape in sizes)
        dims.append(size if low == high else f"{PREFIX}{low}_{high}_{size}")
    value.shape = ir.Shape(dims)
