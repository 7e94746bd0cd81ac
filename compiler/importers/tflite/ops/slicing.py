"""SLICE and STRIDED_SLICE with constant bounds."""

from __future__ import annotations

from compiler.importers.tflite.builder import Builder, Unsupported
from compiler.importers.tflite.reader import Operator
from compiler.importers.tflite.table import reads
from runtimes.session import Array

Cut = tuple[int, int, int]
_LOWEST = -(2**31)


@reads("SLICE")
def slice_(b: Builder, op: Operator) -> None:
    """Begins and sizes; the sizes are the output's."""
    perm = b.perm(op.inputs[0])
    begins = [int(v) for v in b.required(op, 1, "begin").reshape(-1)]
    ends = [begin + size for begin, size in zip(begins, b.shape(op.outputs[0]), strict=True)]
    positions = [perm.index(axis) for axis in range(len(perm))]
    inputs = [b.read(op.inputs[0], perm), b.ints(begins), b.ints(ends), b.ints(positions)]
    b.bind(op.outputs[0], b.emit("Slice", inputs), perm)


@reads("STRIDED_SLICE")
def strided_slice(b: Builder, op: Operator) -> None:
    """numpy's indexing. Bit i of a mask speaks of entry i of the index, not of axis i. Source: kernels/strided_slice.cc."""
    shape = b.shape(op.inputs[0])
    cuts = _cuts(op, shape, *(b.required(op, i, what) for i, what in ((1, "begin"), (2, "end"), (3, "strides"))))
    value = b.read(op.inputs[0])
    moved = [axis for axis, cut in enumerate(cuts) if cut != (0, shape[axis], 1)]
    if moved:
        starts, ends, steps = zip(*(cuts[axis] for axis in moved), strict=True)
        # In ONNX -1 counts from the end: a step back that takes element 0 too ends at the lowest integer.
        ends = tuple(_LOWEST if step < 0 and end < 0 else end for end, step in zip(ends, steps, strict=True))
        value = b.emit("Slice", [value, *(b.ints(row) for row in (starts, ends, moved, steps))])
    b.bind(op.outputs[0], b.emit("Reshape", [value, b.ints(b.shape(op.outputs[0]))]))


def _cuts(op: Operator, shape: tuple[int, ...], begins: Array, ends: Array, strides: Array) -> list[Cut]:
    """(start, stop, step) of every axis. New axes cut nothing: the output's shape says where they are."""
    cuts: list[Cut] = []
    entries = [i for i in range(begins.size) if not op.option("newAxisMask") >> i & 1]
    for place, i in enumerate(entries):
        if op.option("ellipsisMask") >> i & 1:
            through = len(shape) - (len(entries) - place - 1)
            cuts += [(0, size, 1) for size in shape[len(cuts) : through]]
        elif len(cuts) == len(shape):
            raise Unsupported("its index has more entries than the tensor has axes")
        else:
            cuts.append(_cut(op, i, shape[len(cuts)], int(begins[i]), int(ends[i]), int(strides[i])))
    return cuts + [(0, size, 1) for size in shape[len(cuts) :]]


def _cut(op: Operator, i: int, size: int, begin: int, end: int, step: int) -> Cut:
    if op.option("shrinkAxisMask") >> i & 1:
        place = begin + size if begin < 0 else begin
        return place, place + 1, 1
    if op.option("offset", False):
        end += begin
    start = None if op.option("beginMask") >> i & 1 else begin
    return slice(start, None if op.option("endMask") >> i & 1 else end, step).indices(size)
