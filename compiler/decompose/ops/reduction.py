"""Reductions, arguments of extrema and cumulative operators."""

from __future__ import annotations

import numpy as np

from compiler.decompose.builder import Builder
from compiler.decompose.table import Undecomposable, decomposes

FLOATS = ("float32",)


@decomposes("ReduceProd")
def reduce_prod(b: Builder) -> None:
    """Halves along each axis multiplied until one is left: log2(n) products of slices, in float32's own rounding."""
    axes, keep = _axes(b)
    result, shape = b.x.name, list(b.x.shape)
    if any(shape[axis] == 0 for axis in axes):  # the product of nothing
        b.output(b.constant(np.ones(b.y.shape, b.x.dtype)))
        return
    for axis in axes:
        while shape[axis] > 1:
            half = shape[axis] // 2
            product = b.op("Mul", b.take(result, axis, 0, half), b.take(result, axis, half, 2 * half))
            if shape[axis] % 2:
                product = b.op("Concat", product, b.take(result, axis, shape[axis] - 1, shape[axis]), axis=axis)
            result, shape[axis] = product, half + shape[axis] % 2
    b.output(result if keep else b.reshape(result, [s for i, s in enumerate(shape) if i not in axes]))


@decomposes("ReduceL1")
def reduce_l1(b: Builder) -> None:
    b.output(_reduced(b, "ReduceSum", b.op("Abs", b.x.name)))


@decomposes("ReduceSumSquare")
def reduce_sum_square(b: Builder) -> None:
    b.output(_reduced(b, "ReduceSum", b.op("Mul", b.x.name, b.x.name)))


@decomposes("ReduceL2")
def reduce_l2(b: Builder) -> None:
    b.output(b.op("Sqrt", _reduced(b, "ReduceSum", b.op("Mul", b.x.name, b.x.name))))


@decomposes("ReduceLogSum")
def reduce_log_sum(b: Builder) -> None:
    b.output(b.op("Log", _reduced(b, "ReduceSum", b.x.name)))


@decomposes("ReduceLogSumExp")
def reduce_log_sum_exp(b: Builder) -> None:
    """m + log(sum(e^(x - m))), m the maximum: the plain form overflows above 88."""
    axes, keep = _axes(b)
    if b.x.dtype.name not in FLOATS:
        raise Undecomposable(f"its input is {b.x.dtype}")
    numbers = np.asarray(axes, np.int64)
    top = b.op("ReduceMax", b.x.name, numbers, keepdims=1)
    total = b.op("ReduceSum", b.op("Exp", b.op("Sub", b.x.name, top)), numbers, keepdims=1)
    result = b.op("Add", top, b.op("Log", total))
    b.output(result if keep else b.reshape(result, b.y.shape))


def _axes(b: Builder) -> tuple[list[int], bool]:
    """The axes, sorted, and keepdims. Raises Undecomposable if they are computed at run time."""
    given = b.operand(1)
    rank = len(b.x.shape)
    if given is not None and given.constant is None:
        raise Undecomposable("its axes are computed at run time")
    axes = [] if given is None or given.constant is None else [int(axis) % rank for axis in given.constant.ravel()]
    if not axes and not b.attribute("noop_with_empty_axes", 0):
        axes = list(range(rank))
    return sorted(axes), bool(b.attribute("keepdims", 1))


def _reduced(b: Builder, op_type: str, name: str) -> str:
    axes, keep = _axes(b)
    return b.op(op_type, name, np.asarray(axes, np.int64), keepdims=int(keep)) if axes else name


@decomposes("ArgMax", "ArgMin")
def arg_extremum(b: Builder) -> None:
    """The last of equal extrema is the first of the flipped input; the first one is what runtimes have."""
    if not b.attribute("select_last_index", 0):
        raise Undecomposable("the runtime's own operator is needed")
    axis = b.attribute("axis", 0) % len(b.x.shape)
    size = b.x.shape[axis]
    flipped = b.take(b.x.name, axis, -1, -size - 1, -1)
    first = b.op(b.node.op_type, flipped, axis=axis, keepdims=b.attribute("keepdims", 1))
    b.output(b.op("Sub", np.asarray(size - 1, np.int64), first))


@decomposes("CumSum")
def cum_sum(b: Builder) -> None:
    """A product with a triangular matrix of ones along the axis."""
    axis = b.operand(1)
    if axis is None or axis.constant is None or b.x.dtype.name not in FLOATS:
        raise Undecomposable("it needs a constant axis and float32")
    where = int(axis.constant.ravel()[0]) % len(b.x.shape)
    size = b.x.shape[where]
    ones = np.triu(np.ones((size, size), np.float32), 1 if b.attribute("exclusive", 0) else 0)
    b.output(_along(b, b.x.name, where, ones.T if b.attribute("reverse", 0) else ones))


@decomposes("CumProd")
def cum_prod(b: Builder) -> None:
    """Log-step doubling: after step k each element holds the product of 2^k neighbours."""
    axis = b.operand(1)
    if axis is None or axis.constant is None:
        raise Undecomposable("it needs a constant axis")
    where = int(axis.constant.ravel()[0]) % len(b.x.shape)
    size, result = b.x.shape[where], b.x.name
    reverse = bool(b.attribute("reverse", 0))

    def shifted(name: str, by: int) -> str:
        ones = b.constant(np.ones([by if i == where else s for i, s in enumerate(b.x.shape)], b.x.dtype))
        if reverse:
            return b.op("Concat", b.take(name, where, by, size), ones, axis=where)
        return b.op("Concat", ones, b.take(name, where, 0, size - by), axis=where)

    if b.attribute("exclusive", 0):
        result = shifted(result, 1) if size > 1 else b.constant(np.ones(b.x.shape, b.x.dtype))
    step = 1
    while step < size:
        result = b.op("Mul", result, shifted(result, step))
        step *= 2
    b.output(result)


def _along(b: Builder, name: str, axis: int, matrix: np.ndarray) -> str:
    """``matrix`` [in, out] applied along one axis."""
    order = [i for i in range(len(b.x.shape)) if i != axis] + [axis]
    product = b.op("MatMul", b.transpose(name, order), matrix)
    return b.transpose(product, [order.index(i) for i in range(len(order))])
