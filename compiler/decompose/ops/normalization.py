"""Normalizations whose statistics come from the data."""

from __future__ import annotations

import numpy as np

from compiler.decompose.builder import Builder
from compiler.decompose.table import Undecomposable, decomposes


def _standardized(b: Builder, name: str, axes: list[int], epsilon: float) -> tuple[str, str, str]:
    """(x - mean) / sqrt(variance + epsilon); also the mean and 1 / sqrt(...)."""
    numbers = np.asarray(axes, np.int64)
    mean = b.op("ReduceMean", name, numbers, keepdims=1)
    centred = b.op("Sub", name, mean)
    variance = b.op("ReduceMean", b.op("Mul", centred, centred), numbers, keepdims=1)
    deviation = b.op("Sqrt", b.op("Add", variance, b.like(epsilon)))
    inverse = b.op("Div", b.like(1.0), deviation)
    return b.op("Mul", centred, inverse), mean, inverse


def _channels(b: Builder, index: int, rank: int) -> str:
    """Input ``index`` ([channels]) shaped for axis 1 of a value of ``rank``."""
    operand = b.operand(index)
    assert operand is not None
    return b.reshape(operand.name, [operand.shape[0], *([1] * (rank - 2))])


@decomposes("LayerNormalization")
def layer_normalization(b: Builder) -> None:
    axis = b.attribute("axis", -1) % len(b.x.shape)
    axes = list(range(axis, len(b.x.shape)))
    normal, mean, inverse = _standardized(b, b.x.name, axes, b.attribute("epsilon", 1e-5))
    result = b.op("Mul", normal, b.node.input[1])
    bias = b.operand(2)
    b.output(result if bias is None else b.op("Add", result, bias.name))
    b.output(mean, 1)
    b.output(inverse, 2)


@decomposes("InstanceNormalization")
def instance_normalization(b: Builder) -> None:
    rank = len(b.x.shape)
    normal, _, _ = _standardized(b, b.x.name, list(range(2, rank)), b.attribute("epsilon", 1e-5))
    b.output(b.op("Add", b.op("Mul", normal, _channels(b, 1, rank)), _channels(b, 2, rank)))


@decomposes("GroupNormalization")
def group_normalization(b: Builder) -> None:
    """Groups of channels standardized together, then scaled and moved channel by channel (opset 21)."""
    groups, rank = b.attribute("num_groups", 1), len(b.x.shape)
    grouped = b.reshape(b.x.name, [b.x.shape[0], groups, -1])
    normal, _, _ = _standardized(b, grouped, [2], b.attribute("epsilon", 1e-5))
    normal = b.reshape(normal, b.x.shape)
    b.output(b.op("Add", b.op("Mul", normal, _channels(b, 1, rank)), _channels(b, 2, rank)))


@decomposes("LpNormalization")
def lp_normalization(b: Builder) -> None:
    """x / |x|_p; where the norm is zero the result is zero."""
    axes = np.asarray([b.attribute("axis", -1) % len(b.x.shape)], np.int64)
    if b.attribute("p", 2) == 1:
        norm = b.op("ReduceSum", b.op("Abs", b.x.name), axes, keepdims=1)
    else:
        norm = b.op("Sqrt", b.op("ReduceSum", b.op("Mul", b.x.name, b.x.name), axes, keepdims=1))
    nothing = b.op("Equal", norm, b.like(0.0))
    b.output(b.op("Div", b.x.name, b.op("Where", nothing, b.like(1.0), norm)))


@decomposes("LRN")
def lrn(b: Builder) -> None:
    """x / (bias + alpha / size * sum of x^2 over ``size`` neighbouring channels)^beta, the window cut off at the ends."""
    size, rank = b.attribute("size", 1), len(b.x.shape)
    if rank < 2:
        raise Undecomposable("it has no channels")
    channels = b.x.shape[1]
    before = (size - 1) // 2
    offset = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    band = ((offset >= -before) & (offset <= size - 1 - before)).astype(np.float32)
    order = [0, *range(2, rank), 1]
    squares = b.transpose(b.op("Mul", b.x.name, b.x.name), order)
    sums = b.transpose(b.op("MatMul", squares, np.ascontiguousarray(band.T)), [0, rank - 1, *range(1, rank - 1)])
    scaled = b.op("Mul", sums, b.like(b.attribute("alpha", 1e-4) / size))
    base = b.op("Add", scaled, b.like(b.attribute("bias", 1.0)))
    b.output(b.op("Div", b.x.name, b.op("Pow", base, b.like(b.attribute("beta", 0.75)))))


@decomposes("BatchNormalization")
def batch_normalization_training(b: Builder) -> None:
    """In training mode: the batch's own statistics, and the running ones moved towards them."""
    if not b.attribute("training_mode", 0):
        raise Undecomposable("at inference it is the runtime's own operator")
    rank = len(b.x.shape)
    axes = [0, *range(2, rank)]
    numbers = np.asarray(axes, np.int64)
    normal, mean, _ = _standardized(b, b.x.name, axes, b.attribute("epsilon", 1e-5))
    b.output(b.op("Add", b.op("Mul", normal, _channels(b, 1, rank)), _channels(b, 2, rank)))
    momentum = b.attribute("momentum", 0.9)
    centred = b.op("Sub", b.x.name, mean)
    variance = b.op("ReduceMean", b.op("Mul", centred, centred), numbers, keepdims=1)
    for index, (running, now) in enumerate(((3, mean), (4, variance)), 1):
        if b.wanted(index):
            kept = b.op("Mul", b.node.input[running], b.like(momentum))
            fresh = b.op("Mul", b.reshape(now, [b.x.shape[1]]), b.like(1 - momentum))
            b.output(b.op("Add", kept, fresh), index)
