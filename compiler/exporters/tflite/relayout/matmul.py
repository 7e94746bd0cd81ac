"""BATCH_MATMUL: each operand may lie with its matrix axes swapped, and so may the product, for (A B)' = B' A'."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from compiler.exporters.tflite.layout import Perm, identity
from compiler.exporters.tflite.relayout.config import Config, Constant, Port, Rewritten, tensor_at, transposition_cost
from compiler.exporters.tflite.tensors import Tensor
from compiler.exporters.tflite.writer import Operation


def swapped(perm: Perm) -> Perm:
    return (*perm[:-2], perm[-1], perm[-2])


class BatchMatMul:
    """Batch axes in any common order before the two matrix axes."""

    why = "it multiplies matrices, which lie in the last two axes"

    def propose(self, operation: Operation, port: Port, perm: Perm) -> Sequence[Config]:
        rank = len(perm)
        if {*perm[-2:]} != {rank - 2, rank - 1} or min(len(t.shape) for t in operation.inputs if t) < 2:
            return ()
        batch = perm[:-2]
        if batch != tuple(range(rank - 2)) and not _one_rank(operation):
            return ()
        configs = (_config(operation, batch, flips) for flips in product((False, True), repeat=3))
        return [config for config in configs if config is not None and config.order(port) == perm]

    def rewrite(
        self, operation: Operation, config: Config, inputs: Sequence[Tensor | None], constant: Constant
    ) -> Rewritten:
        flips = [perm is not None and perm[-1] != len(perm) - 1 for perm in config.inputs]
        adjoint = [
            bool(operation.fields.get("adjX")) != flips[0],
            bool(operation.fields.get("adjY")) != flips[1],
        ]
        first, second = (_constant(t, config, constant) for t in inputs)
        out = config.outputs[0]
        if out[-1] != len(out) - 1:
            first, second = second, first
            adjoint = [not adjoint[1], not adjoint[0]]
        fields = {**operation.fields, "adjX": adjoint[0], "adjY": adjoint[1]}
        return Rewritten(operation.code, (first, second), operation.options, fields)


def _constant(tensor: Tensor | None, config: Config, constant: Constant) -> Tensor | None:
    """A constant operand with its batch axes in the order of the others."""
    batch = config.outputs[0][:-2]
    if tensor is None or tensor.data is None or batch == tuple(range(len(batch))):
        return tensor
    rank = len(tensor.shape)
    return constant("matrix", np.transpose(tensor.data, (*batch, rank - 2, rank - 1)), tensor.quant)


def _one_rank(operation: Operation) -> bool:
    return len({len(t.shape) for t in (*operation.inputs, *operation.outputs) if t is not None}) == 1


def _config(operation: Operation, batch: Perm, flips: tuple[bool, ...]) -> Config | None:
    """``flips``: whether the first operand, the second and the product lie swapped.

    None if a constant would, or if a constant or the operand of another type would come first.
    """
    inputs: list[Perm | None] = []
    types = {tensor.dtype for tensor in operation.inputs if tensor is not None}
    for tensor, flip in zip(operation.inputs, flips, strict=False):
        assert tensor is not None
        if (tensor.data is not None and (flip or flips[2])) or (flips[2] and len(types) > 1):
            return None
        inputs.append(None if tensor.data is not None else _order(len(tensor.shape), batch, flip))
    out = _order(len(operation.outputs[0].shape), batch, flips[2])
    return Config(tuple(inputs), (out,), _adjoint_cost(operation, flips))


def _order(rank: int, batch: Perm, flip: bool) -> Perm:
    own = batch if len(batch) == rank - 2 else tuple(range(rank - 2))
    perm = (*own, rank - 2, rank - 1)
    return swapped(perm) if flip else perm


def _adjoint_cost(operation: Operation, flips: tuple[bool, ...]) -> int:
    """The kernel transposes a first operand that comes swapped into a buffer of its own.

    Source: LiteRT kernels/batch_matmul.cc, adj_x; its XNNPACK delegate does not take adj_x at all. adj_y costs nothing.
    """
    exchanged = flips[2]
    left = 1 if exchanged else 0
    flag = bool(operation.fields.get("adjY" if exchanged else "adjX")) != flips[left]
    if exchanged:
        flag = not flag
    shape = tensor_at(operation, Port(left)).shape
    rank = len(shape)
    return transposition_cost(shape, swapped(identity(rank))) if flag else 0
