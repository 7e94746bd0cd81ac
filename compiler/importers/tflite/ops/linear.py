"""Matrix products."""

from __future__ import annotations

import numpy as np

from compiler.importers.tflite.builder import Builder, Unsupported
from compiler.importers.tflite.reader import Operator, enum_names
from compiler.importers.tflite.table import reads


@reads("FULLY_CONNECTED")
def fully_connected(b: Builder, op: Operator) -> None:
    """x as [rows, I] times weights [O, I], transposed; the leading axes come back with keep_num_dims."""
    if enum_names("FullyConnectedOptionsWeightsFormat")[op.option("weightsFormat")] != "DEFAULT":
        raise Unsupported("its weights are shuffled for one kind of processor")
    outputs, depth = b.shape(op.inputs[1])
    shape, out = b.shape(op.inputs[0]), b.shape(op.outputs[0])
    rows = int(np.prod(shape)) // depth
    x = b.read(op.inputs[0])
    if shape != (rows, depth):
        x = b.emit("Reshape", [x, b.ints([rows, depth])])
    inputs = [x, b.weight(op.inputs[1])]
    bias = op.input(2)
    if bias is not None:
        inputs.append(b.weight(bias))
    result = b.emit("Gemm", inputs, transB=1)
    result = b.activated(enum_names("ActivationFunctionType")[op.option("fusedActivationFunction")], result)
    if out != (rows, outputs):
        result = b.emit("Reshape", [result, b.ints(out)])
    b.bind(op.outputs[0], result)


@reads("BATCH_MATMUL")
def batch_matmul(b: Builder, op: Operator) -> None:
    sides = []
    for index, adjoint in zip(op.inputs, (op.option("adjX", False), op.option("adjY", False)), strict=True):
        rank = len(b.shape(index))
        turned = (*range(rank - 2), rank - 1, rank - 2)
        sides.append(b.read(index, turned) if adjoint else b.read(index))
    b.bind(op.outputs[0], b.emit("MatMul", sides))


@reads("EMBEDDING_LOOKUP")
def embedding_lookup(b: Builder, op: Operator) -> None:
    """Rows of a table: inputs are indices and the table."""
    b.bind(op.outputs[0], b.emit("Gather", [b.weight(op.inputs[1]), b.read(op.inputs[0])], axis=0))
