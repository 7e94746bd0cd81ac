"""A file whose batch size is free: two lowerings at different sizes agree in everything that does not depend on it.

Tensors that grow with the batch get -1 in their signature; LiteRT's kernels work out all shapes anew when an input is resized.
"""

from __future__ import annotations

import numpy as np

from compiler.errors import Refusal
from compiler.exporters.tflite.tensors import Array
from compiler.exporters.tflite.writer import GraphWriter, Operation
from compiler.rebatch import REMEDY, at_one, freed_entry, one_row

BROADCASTS = frozenset({
    "ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "POW", "SELECT_V2", "EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL",
})  # fmt: skip


def free_batch(first: GraphWriter, second: GraphWriter) -> list[Refusal]:
    """Change ``first`` into the form for every batch size; what stands in the way otherwise."""
    left, right = first.tensors, second.tensors
    if len(left) != len(right) or not _same_operators(first, second):
        return [_refusal("", "model", "the graph changes with the batch size")]
    refusals = []
    for a, b in zip(left, right, strict=True):
        if a.data is not None and b.data is not None:
            if a.data.shape != b.data.shape or a.data.tobytes() != b.data.tobytes():
                refusals += _free_constant(first, a.index, a.data, b.data)
        elif a.shape != b.shape:
            found = at_one(a.shape, b.shape)
            if found is None:
                reason = f"{first.name(a)!r} does not grow in proportion to the batch"
                refusals.append(_refusal(first.name(a), "tensor", reason))
            else:
                first.free(a.index, *found)
    return refusals


def _same_operators(first: GraphWriter, second: GraphWriter) -> bool:
    return [_signature(one) for one in first.operations] == [_signature(one) for one in second.operations]


def _signature(operation: Operation) -> tuple[object, ...]:
    fields = {name: list(v) if isinstance(v, (list, tuple, np.ndarray)) else v for name, v in operation.fields.items()}
    inputs = [None if tensor is None else tensor.index for tensor in operation.inputs]
    return operation.code, inputs, [tensor.index for tensor in operation.outputs], fields


def _free_constant(writer: GraphWriter, index: int, first: Array, second: Array) -> list[Refusal]:
    """Shapes of RESHAPE get -1, sizes of SLICE too where they reach the end, equal rows of a broadcast operand become one."""
    readers = list(writer.readers(index))
    replacement: Array | None = None
    if all((operation.code, place) == ("RESHAPE", 1) for place, operation in readers):
        replacement = freed_entry(first, second)
    elif all((one.code, place) == ("SLICE", 2) for place, one in readers) and _to_the_end(readers, first):
        replacement = np.where(first == second, first, -1).astype(first.dtype)
    elif all(operation.code in BROADCASTS for _, operation in readers):
        replacement = one_row(first, second)
    if replacement is None:
        code, origin = (readers[0][1].code, readers[0][1].origin) if readers else ("nothing", "")
        return [_refusal(origin, code, "a constant of its holds the batch size and has no form for every size")]
    writer.exchange(index, replacement)
    return []


def _to_the_end(readers: list[tuple[int, Operation]], sizes: Array) -> bool:
    """Whether every slice of these sizes ends where its input does, along the axes that grow."""
    for _, operation in readers:
        source, begin = operation.inputs[:2]
        assert source is not None and begin is not None, "SLICE has three inputs"
        if begin.data is None or any(b and b + s != n for b, s, n in zip(begin.data, sizes, source.shape, strict=True)):
            return False
    return True


def _refusal(node: str, op_type: str, reason: str) -> Refusal:
    return Refusal(node, op_type, reason, "tflite", REMEDY)
