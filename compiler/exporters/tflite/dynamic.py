"""A file whose batch size is free: two lowerings at different sizes agree in everything that does not depend on it.

Tensors that grow with the batch get -1 in their signature; LiteRT's kernels work out all shapes anew when an input is resized.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from compiler.errors import Refusal
from compiler.exporters.tflite.tensors import Array
from compiler.exporters.tflite.writer import GraphWriter
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
                reason = f"{first.name(a.index)!r} does not grow in proportion to the batch"
                refusals.append(_refusal(first.name(a.index), "tensor", reason))
            else:
                first.free(a.index, *found)
    return refusals


def _same_operators(first: GraphWriter, second: GraphWriter) -> bool:
    pairs = zip(first.operators, second.operators, strict=True)
    return len(first.operators) == len(second.operators) and all(_signature(a) == _signature(b) for a, b in pairs)


def _signature(operator: Any) -> tuple[object, ...]:
    options = vars(operator.builtinOptions) if operator.builtinOptions is not None else {}
    fields = {name: list(value) if isinstance(value, (list, np.ndarray)) else value for name, value in options.items()}
    return operator.opcodeIndex, list(operator.inputs), list(operator.outputs), fields


def _free_constant(writer: GraphWriter, index: int, first: Array, second: Array) -> list[Refusal]:
    """Shapes of RESHAPE get -1, sizes of SLICE too where they reach the end, equal rows of a broadcast operand become one."""
    readers = list(writer.readers(index))
    replacement: Array | None = None
    if all((code, place) == ("RESHAPE", 1) for code, place, _ in readers):
        replacement = freed_entry(first, second)
    elif all((code, place) == ("SLICE", 2) for code, place, _ in readers) and _to_the_end(writer, readers, first):
        replacement = np.where(first == second, first, -1).astype(first.dtype)
    elif all(code in BROADCASTS for code, _, _ in readers):
        replacement = one_row(first, second)
    if replacement is None:
        code, _, number = readers[0] if readers else ("nothing", 0, 0)
        origin = writer.origins[number] if readers else writer.name(index)
        return [_refusal(origin, code, "a constant of its holds the batch size and has no form for every size")]
    writer.exchange(index, replacement)
    return []


def _to_the_end(writer: GraphWriter, readers: list[tuple[str, int, int]], sizes: Array) -> bool:
    """Whether every slice of these sizes ends where its input does, along the axes that grow."""
    for _, _, number in readers:
        source, begin, _ = (writer.tensors[i] for i in writer.operators[number].inputs)
        if begin.data is None or any(b and b + s != n for b, s, n in zip(begin.data, sizes, source.shape, strict=True)):
            return False
    return True


def _refusal(node: str, op_type: str, reason: str) -> Refusal:
    return Refusal(node, op_type, reason, "tflite", REMEDY)
