"""A reduction that keeps its axes for a RESHAPE to drop them: the reduction drops them itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

from compiler.exporters.tflite.tensors import Tensor
from compiler.exporters.tflite.writer import GraphWriter, Operation

REDUCTIONS = frozenset({"MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"})


def fold_reductions(writer: GraphWriter, kept: Collection[int]) -> list[Operation]:
    """The writer's operations without the RESHAPEs that only drop what one reduction left with size 1.

    What is left of the two tensors goes by the reduction's name, which is the hub's: the RESHAPE's may be a step of its own.

    Args:
        kept: indices of tensors that must stay, the graph's outputs.
    """
    operations = writer.operations
    readers = Counter(t.index for operation in operations for t in operation.inputs if t is not None)
    by_output = {operation.outputs[0].index: operation for operation in operations if operation.code in REDUCTIONS}
    replaced: dict[int, Operation] = {}
    dropped = set()
    for operation in operations:
        source = operation.inputs[0] if operation.code == "RESHAPE" else None
        reduction = by_output.get(source.index) if source is not None else None
        if source is None or reduction is None or readers[source.index] != 1 or source.index in kept:
            continue
        if operation.outputs[0].shape == _reduced_shape(reduction):
            fields = {**reduction.fields, "keepDims": False}
            replaced[id(reduction)] = replace(reduction, outputs=operation.outputs, fields=fields)
            dropped.add(id(operation))
            if operation.outputs[0].index not in kept:
                _hand_over_name(writer, source, operation.outputs[0])
    return [replaced.get(id(operation), operation) for operation in operations if id(operation) not in dropped]


def _hand_over_name(writer: GraphWriter, source: Tensor, result: Tensor) -> None:
    name = writer.name(source)
    writer.rename(source, f"{name}/kept")
    writer.rename(result, name)


def _reduced_shape(reduction: Operation) -> tuple[int, ...] | None:
    source, axes = reduction.inputs[0], reduction.inputs[1]
    if source is None or axes is None or axes.data is None or not reduction.fields.get("keepDims"):
        return None
    gone = {int(axis) % len(source.shape) for axis in axes.data.reshape(-1)}
    return tuple(size for axis, size in enumerate(source.shape) if axis not in gone)
