"""Products that runtimes lack in this form: convolutions with groups that their kernels refuse, integer products."""

from __future__ import annotations

from typing import Any

import numpy as np

from compiler.decompose.builder import Builder
from compiler.decompose.ops.volumes import transposed
from compiler.decompose.table import Undecomposable, decomposes


@decomposes("ConvTranspose")
def grouped_conv_transpose(b: Builder) -> None:
    """One transposed convolution per group; a dilated one as an undilated one whose kernel holds zeros between its taps."""
    groups, weight = b.attribute("group", 1), b.operand(1)
    if weight is None or weight.constant is None:
        raise Undecomposable("its weight is computed at run time")
    spatial = len(b.x.shape) - 2
    dilations = b.attribute("dilations", None) or [1] * spatial
    if spatial == 3:
        transposed(b)
        return
    if _grown(b, weight.shape[2:], dilations):
        return
    if groups == 1 and set(dilations) == {1}:
        raise Undecomposable("it has one group and no dilation")
    kernel = _spread(weight.constant, dilations)
    bias = b.operand(2)
    each_in, each_out = b.x.shape[1] // groups, kernel.shape[1]
    attributes = _kept(b, ("auto_pad", "output_padding", "output_shape", "pads", "strides"))
    parts = []
    for group in range(groups):
        source = b.x.name if groups == 1 else b.take(b.x.name, 1, group * each_in, (group + 1) * each_in)
        arguments = [source, b.constant(np.ascontiguousarray(kernel[group * each_in : (group + 1) * each_in]))]
        if bias is not None:
            first = group * each_out
            arguments.append(bias.name if groups == 1 else b.take(bias.name, 0, first, first + each_out))
        parts.append(b.op("ConvTranspose", *arguments, kernel_shape=list(kernel.shape[2:]), **attributes))
    b.output(parts[0] if groups == 1 else b.op("Concat", *parts, axis=1))


def _grown(b: Builder, kernel: tuple[int, ...], dilations: list[int]) -> bool:
    """An output larger than everything that the kernel reaches: zeros behind the full convolution, then the bias."""
    spatial, strides = len(kernel), b.attribute("strides", None) or [1] * (len(b.x.shape) - 2)
    full = [(b.x.shape[2 + i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 for i in range(spatial)]
    more = [b.y.shape[2 + i] - full[i] for i in range(spatial)]
    if b.attribute("output_shape", None) is None or min(more) < 0 or not any(more):
        return False
    kept = _kept(b, ("dilations", "group", "strides"))
    result = b.op("ConvTranspose", b.x.name, b.node.input[1], kernel_shape=list(kernel), **kept)
    pads = np.asarray([0] * (spatial + 4) + more, np.int64)
    result = b.op("Pad", result, pads, b.like(0.0))
    if b.operand(2) is not None:
        result = b.op("Add", result, b.reshape(b.node.input[2], [1, -1, *[1] * spatial]))
    b.output(result)
    return True


def _spread(weight: np.ndarray, dilations: list[int]) -> np.ndarray:
    shape = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilations, strict=True)]
    result = np.zeros((*weight.shape[:2], *shape), weight.dtype)
    result[(slice(None), slice(None), *(slice(None, None, step) for step in dilations))] = weight
    return result


def _kept(b: Builder, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name in names if (value := b.attribute(name, None)) is not None}


@decomposes("MatMulInteger")
def matmul_integer(b: Builder) -> None:
    """(A - a0)(B - b0) in float32, exact as long as every sum stays below 2^24."""
    left, right = b.x, b.operand(1)
    assert right is not None
    if left.shape[-1] * 255 * 255 >= 2**24:
        raise Undecomposable("its sums may exceed what float32 holds exactly")
    product = b.op("MatMul", _centred(b, 0, 2, row=True), _centred(b, 1, 3, row=False))
    b.output(b.op("Cast", product, to=6))


@decomposes("ConvInteger")
def conv_integer(b: Builder) -> None:
    """As MatMulInteger. Padding is zero after the shift, as the standard says."""
    weight = b.operand(1)
    assert weight is not None
    if int(np.prod(weight.shape[1:])) * 255 * 255 >= 2**24:
        raise Undecomposable("its sums may exceed what float32 holds exactly")
    attributes = _kept(b, ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"))
    result = b.op("Conv", _centred(b, 0, 2, row=True), _centred(b, 1, 3, row=False), **attributes)
    b.output(b.op("Cast", result, to=6))


def _centred(b: Builder, index: int, zero_index: int, *, row: bool) -> str:
    name = b.op("Cast", b.node.input[index], to=1)
    zero = b.operand(zero_index)
    if zero is None:
        return name
    value = b.op("Cast", zero.name, to=1)
    if len(zero.shape) == 1 and zero.shape[0] > 1:
        operand = b.operand(index)
        assert operand is not None
        rank = len(operand.shape)
        if b.node.op_type == "ConvInteger":
            value = b.reshape(value, [-1, *([1] * (rank - 1))])
        elif row:
            value = b.reshape(value, [-1, 1])
    return b.op("Sub", name, value)
