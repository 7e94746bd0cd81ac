"""FAMILIES: which axis orders LiteRT's builtin operators can run in. Operators without an entry keep the order they have.

Source: the shapes and parameters that the kernels read, LiteRT's tflite/kernels/<operator>.cc.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from compiler.exporters.tflite import layout
from compiler.exporters.tflite.layout import Perm
from compiler.exporters.tflite.relayout.config import (
    Config,
    Constant,
    Family,
    Port,
    Rewritten,
    tensor_at,
    uniform,
)
from compiler.exporters.tflite.relayout.matmul import BatchMatMul
from compiler.exporters.tflite.relayout.reshapes import through
from compiler.exporters.tflite.tensors import Array, Tensor
from compiler.exporters.tflite.writer import Operation


class Fixed:
    """Works on the axes as they are."""

    why = "it computes with its axes in this order"

    def propose(self, operation: Operation, port: Port, perm: Perm) -> Sequence[Config]:
        keep = uniform(operation, lambda t: layout.identity(len(t.shape)), lambda t: layout.identity(len(t.shape)))
        return [keep] if keep.order(port) == perm else []

    def rewrite(
        self, operation: Operation, config: Config, inputs: Sequence[Tensor | None], constant: Constant
    ) -> Rewritten:
        return Rewritten(operation.code, tuple(inputs), operation.options, operation.fields)


class Elementwise(Fixed):
    """Any order that all operands share. A constant or a single element follows for nothing."""

    why = "its operands share one order"

    def propose(self, operation: Operation, port: Port, perm: Perm) -> Sequence[Config]:
        rank = len(operation.outputs[0].shape)
        if len(perm) != rank or not all(_fits(t, rank) for t in operation.inputs if t is not None):
            return super().propose(operation, port, perm)
        return [uniform(operation, lambda t: perm if len(t.shape) == rank else (*range(len(t.shape)),), lambda t: perm)]

    def rewrite(
        self, operation: Operation, config: Config, inputs: Sequence[Tensor | None], constant: Constant
    ) -> Rewritten:
        perm = config.outputs[0]
        ordered = [t if t is None or t.data is None else _ordered(t, perm, constant) for t in inputs]
        return Rewritten(operation.code, tuple(ordered), operation.options, operation.fields)


def _fits(tensor: Tensor, rank: int) -> bool:
    return len(tensor.shape) == rank or tensor.data is not None or int(np.prod(tensor.shape)) == 1


def _ordered(tensor: Tensor, perm: Perm, constant: Constant) -> Tensor:
    """A constant of at most the rank of ``perm``, broadcast from the last axis, in that order."""
    assert tensor.data is not None
    if tensor.data.size == 1 or perm == layout.identity(len(perm)):
        return tensor
    added = len(perm) - tensor.data.ndim
    data = np.transpose(tensor.data.reshape((1,) * added + tensor.data.shape), perm)
    quant = tensor.quant
    if quant is not None and not quant.per_tensor:
        quant = replace(quant, axis=perm.index(quant.axis + added))
    return constant("ordered", data, quant)


class Along(Elementwise):
    """Any order; the axes among its parameters are renumbered.

    Args:
        fields: options that hold one axis.
        axes: inputs that list axes. rows: inputs that have one entry per axis. masks: options with one bit per axis.
    """

    why = "its operands share one order"

    def __init__(
        self,
        fields: Sequence[str] = (),
        axes: Sequence[int] = (),
        rows: Sequence[int] = (),
        masks: Sequence[str] = (),
    ) -> None:
        self._fields, self._axes, self._rows, self._masks = fields, axes, rows, masks

    def propose(self, operation: Operation, port: Port, perm: Perm) -> Sequence[Config]:
        parameters = [operation.inputs[i] for i in (*self._axes, *self._rows) if i < len(operation.inputs)]
        ranks = {len(tensor_at(operation, p).shape) for p in _data_ports(operation)}
        first = operation.inputs[0]
        narrow = 0 not in self._axes and first is not None and first.data is not None and {first.data.ndim} != ranks
        if len(ranks) != 1 or narrow or any(t is None or t.data is None for t in parameters):
            return Fixed.propose(self, operation, port, perm)
        return [uniform(operation, lambda t: perm, lambda t: perm)]

    def rewrite(
        self, operation: Operation, config: Config, inputs: Sequence[Tensor | None], constant: Constant
    ) -> Rewritten:
        perm = _working(config)
        rank, fields, ordered = len(perm), dict(operation.fields), list(inputs)
        for name in self._fields:
            fields[name] = perm.index(int(fields.get(name, 0)) % rank)
        for name in self._masks:
            fields[name] = _mask(int(fields.get(name, 0)), perm)
        for index, tensor in enumerate(inputs):
            if tensor is None or tensor.data is None:
                continue
            if index in self._axes:
                ordered[index] = constant("axes", _renumbered(tensor.data, perm), None)
            elif index in self._rows:
                ordered[index] = constant("rows", tensor.data[list(perm)], None)
            elif tensor.data.ndim == rank:
                ordered[index] = _ordered(tensor, perm, constant)
        return Rewritten(operation.code, tuple(ordered), operation.options, fields)


def _working(config: Config) -> Perm:
    return next((perm for perm in config.inputs if perm is not None), config.outputs[0])


def _renumbered(axes: Array, perm: Perm) -> Array:
    """Sorted, so that equal sets are equal constants; a single number stays a scalar."""
    numbers = sorted(perm.index(int(axis) % len(perm)) for axis in axes.reshape(-1))
    return np.asarray(numbers, axes.dtype).reshape(axes.shape)


def _mask(bits: int, perm: Perm) -> int:
    return sum(1 << stored for stored, axis in enumerate(perm) if bits >> axis & 1)


def _data_ports(operation: Operation) -> list[Port]:
    read = [Port(i) for i, t in enumerate(operation.inputs) if t is not None and t.data is None]
    return read + [Port(i, is_output=True) for i in range(len(operation.outputs))]


class Dropping(Along):
    """Any order of the input; the axes that go away (or stay with size 1) are renumbered."""

    def propose(self, operation: Operation, port: Port, perm: Perm) -> Sequence[Config]:
        source, axes = operation.inputs[0], operation.inputs[1]
        if source is None or source.data is not None or axes is None or axes.data is None:
            return Fixed.propose(self, operation, port, perm)
        rank = len(source.shape)
        gone = {int(axis) % rank for axis in axes.data.reshape(-1)}
        if len(operation.outputs[0].shape) == rank:
            return [uniform(operation, lambda t: perm, lambda t: perm)]
        if port.is_output:
            kept = [axis for axis in range(rank) if axis not in gone]
            perm = (*(kept[axis] for axis in perm), *sorted(gone))
        return [uniform(operation, lambda t: perm, lambda t: layout.without(perm, gone))]


class LastAxis(Along):
    """Any order that leaves the last axis in its place, along which the kernel works."""

    why = "its kernel works along the last axis"

    def propose(self, operation: Operation, port: Port, perm: Perm) -> Sequence[Config]:
        if perm[-1:] != (len(perm) - 1,):
            return []
        return super().propose(operation, port, perm)


class FullyConnected(LastAxis):
    """With kept axes, any order of those before the last."""

    why = "it sums over the last axis"

    def propose(self, operation: Operation, port: Port, perm: Perm) -> Sequence[Config]:
        if not operation.fields.get("keepNumDims") or any(t and t.data is None for t in operation.inputs[1:]):
            return Fixed.propose(self, operation, port, perm)
        return super().propose(operation, port, perm)

    def rewrite(
        self, operation: Operation, config: Config, inputs: Sequence[Tensor | None], constant: Constant
    ) -> Rewritten:
        return Fixed.rewrite(self, operation, config, inputs, constant)


class Gather(Fixed):
    """One row of indices, or a single index, whose axis then goes away."""

    why = "its operands share one order"

    def propose(self, operation: Operation, port: Port, perm: Perm) -> Sequence[Config]:
        source, indices = operation.inputs[0], operation.inputs[1]
        assert source is not None and indices is not None
        if source.data is not None or len(indices.shape) > 1 or operation.fields.get("batchDims"):
            return super().propose(operation, port, perm)
        if indices.data is None and port == Port(1):
            return super().propose(operation, port, perm)
        axis = int(operation.fields.get("axis", 0)) % len(source.shape)
        dropped = () if len(indices.shape) else (axis,)
        if dropped and port.is_output:
            perm = (axis, *(a + (a >= axis) for a in perm))
        return [
            uniform(
                operation,
                lambda t: perm if t is source else (*range(len(t.shape)),),
                lambda t: layout.without(perm, dropped),
            )
        ]

    def rewrite(
        self, operation: Operation, config: Config, inputs: Sequence[Tensor | None], constant: Constant
    ) -> Rewritten:
        perm = config.inputs[0]
        if perm is None:
            return super().rewrite(operation, config, inputs, constant)
        fields = {**operation.fields, "axis": perm.index(int(operation.fields.get("axis", 0)) % len(perm))}
        return Rewritten(operation.code, tuple(inputs), operation.options, fields)


class Reshape(Fixed):
    """Orders whose memory is that of an order of the other shape."""

    why = "it joins or splits axes that must lie together"

    def propose(self, operation: Operation, port: Port, perm: Perm) -> Sequence[Config]:
        source, output = operation.inputs[0], operation.outputs[0]
        if source is None or source.data is not None:
            return super().propose(operation, port, perm)
        shapes = (output.shape, source.shape) if port.is_output else (source.shape, output.shape)
        other = through(perm, *shapes)
        if other is None:
            return []
        before, after = (other, perm) if port.is_output else (perm, other)
        return [Config((before, *(None for _ in operation.inputs[1:])), (after,))]

    def rewrite(
        self, operation: Operation, config: Config, inputs: Sequence[Tensor | None], constant: Constant
    ) -> Rewritten:
        shape = layout.permuted(operation.outputs[0].shape, config.outputs[0])
        sizes = constant("shape", np.asarray(shape, np.int32), None)
        return Rewritten("RESHAPE", (inputs[0], sizes), None, {})


_ELEMENTWISE = """ABS ADD ADD_N ATAN2 BITWISE_XOR CAST CEIL COS DEQUANTIZE DIV ELU EQUAL EXP FLOOR FLOOR_DIV FLOOR_MOD GELU
GREATER GREATER_EQUAL HARD_SWISH LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC MAXIMUM MINIMUM MUL
NEG NOT_EQUAL POW PRELU QUANTIZE RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 RIGHT_SHIFT ROUND RSQRT SELECT_V2 SIGN SIN SQRT SQUARE
SQUARED_DIFFERENCE SUB TANH"""
_STRIDED = Along(rows=(1, 2, 3), masks=("beginMask", "endMask"))
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(_ELEMENTWISE.split(), Elementwise()),
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "REDUCE_ANY"), Dropping(axes=(1,))),
    **dict.fromkeys(("ARG_MAX", "ARG_MIN"), Dropping(axes=(1,))),
    **dict.fromkeys(("PAD", "PADV2", "MIRROR_PAD", "TILE", "BROADCAST_TO"), Along(rows=(1,))),
    **dict.fromkeys(("SOFTMAX", "LOG_SOFTMAX", "TOPK_V2"), LastAxis()),
    **dict.fromkeys(("REVERSE_V2", "CUMSUM"), Along(axes=(1,))),
    "CONCATENATION": Along(fields=("axis",)),
    "SLICE": Along(rows=(1, 2)),
    "SPLIT": Along(axes=(0,)),
    "SPLIT_V": Along(axes=(2,)),
    "GATHER": Gather(),
    "FULLY_CONNECTED": FullyConnected(),
    "BATCH_MATMUL": BatchMatMul(),
    **dict.fromkeys(("RESHAPE", "SQUEEZE", "EXPAND_DIMS"), Reshape()),
}
_FIXED = Fixed()


def family(operation: Operation) -> Family:
    """The rule for an operator; one that keeps every order for operators without an entry."""
    if operation.code == "STRIDED_SLICE":
        plain = not any(operation.fields.get(name) for name in ("ellipsisMask", "newAxisMask", "shrinkAxisMask"))
        return _STRIDED if plain else _FIXED
    return FAMILIES.get(operation.code, _FIXED)
