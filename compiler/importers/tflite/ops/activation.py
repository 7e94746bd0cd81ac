"""Activations."""

from __future__ import annotations

import numpy as np

from compiler.importers.tflite.builder import Builder, Unsupported
from compiler.importers.tflite.reader import Operator
from compiler.importers.tflite.table import reads

_PLAIN = {"LOGISTIC": "Sigmoid", "HARD_SWISH": "HardSwish", "ELU": "Elu"}


@reads("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "TANH")
def clipped(b: Builder, op: Operator) -> None:
    perm = b.perm(op.inputs[0])
    b.bind(op.outputs[0], b.activated(op.type, b.read(op.inputs[0], perm)), perm)


@reads(*_PLAIN)
def plain(b: Builder, op: Operator) -> None:
    perm = b.perm(op.inputs[0])
    b.bind(op.outputs[0], b.emit(_PLAIN[op.type], [b.read(op.inputs[0], perm)]), perm)


@reads("LEAKY_RELU")
def leaky_relu(b: Builder, op: Operator) -> None:
    perm = b.perm(op.inputs[0])
    result = b.emit("LeakyRelu", [b.read(op.inputs[0], perm)], alpha=float(op.option("alpha", 0.0)))
    b.bind(op.outputs[0], result, perm)


@reads("GELU")
def gelu(b: Builder, op: Operator) -> None:
    perm = b.perm(op.inputs[0])
    form = "tanh" if op.option("approximate", False) else "none"
    b.bind(op.outputs[0], b.emit("Gelu", [b.read(op.inputs[0], perm)], approximate=form), perm)


@reads("PRELU")
def prelu(b: Builder, op: Operator) -> None:
    """The slope broadcasts from the last axis on; it follows the data's axis order."""
    slope = b.required(op, 1, "slope")
    perm = b.perm(op.inputs[0])
    slope = slope.reshape((1,) * (len(perm) - slope.ndim) + slope.shape).transpose(perm)
    b.bind(op.outputs[0], b.emit("PRelu", [b.read(op.inputs[0], perm), b.constant(slope)]), perm)


@reads("SOFTMAX")
def softmax(b: Builder, op: Operator) -> None:
    """Over the last axis, of beta * x."""
    x, perm = op.inputs[0], b.perm(op.inputs[0])
    value, beta = b.read(x, perm), float(op.option("beta", 1.0))
    if beta == 0.0:
        raise Unsupported("its beta is 0")
    if beta != 1.0:
        value = b.emit("Mul", [value, b.constant(np.array(beta, np.float32))])
    b.bind(op.outputs[0], b.emit("Softmax", [value], axis=perm.index(len(perm) - 1)), perm)


@reads("LOG_SOFTMAX")
def log_softmax(b: Builder, op: Operator) -> None:
    perm = b.perm(op.inputs[0])
    result = b.emit("LogSoftmax", [b.read(op.inputs[0], perm)], axis=perm.index(len(perm) - 1))
    b.bind(op.outputs[0], result, perm)
