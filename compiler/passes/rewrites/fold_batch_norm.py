"""BatchNormalization after Conv, ConvTranspose or Gemm becomes part of their weight and bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.passes.base import Rewrite
from compiler.passes.edit import float_constant, integer, number, only_used_by, out, producer
from compiler.passes.rewrites.linear import LINEAR, fold_affine, linear_refusal


@dataclass(frozen=True, slots=True)
class Match:
    linear: ir.Node
    norm: ir.Node


class FoldBatchNorm(Rewrite[Match]):
    """y = gamma * (x - mean) / sqrt(var + epsilon) + beta, a scale and a shift per channel.

    Source: ONNX operator BatchNormalization-15, inference mode.
    """

    name = "fold_batch_norm"
    op_types = frozenset({"BatchNormalization"})

    def pattern(self, node: ir.Node) -> Match | None:
        linear = producer(node.inputs[0], *LINEAR)
        return Match(linear, node) if linear is not None else None

    def check(self, match: Match) -> str | None:
        if integer(match.norm, "training_mode", 0):
            return "it is in training mode"
        if any(float_constant(value) is None for value in match.norm.inputs[1:5]):
            return "its statistics are not constants"
        if not only_used_by(out(match.linear), match.norm):
            return "the un-normalized result is read elsewhere"
        return linear_refusal(match.linear)

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        gamma, beta, mean, var = (_vector(value) for value in match.norm.inputs[1:5])
        scale = gamma / np.sqrt(var + number(match.norm, "epsilon", 1e-5))
        fold_affine(graph, match.linear, match.norm, scale, beta - mean * scale)


def _vector(value: ir.Value | None) -> NDArray[Any]:
    array = float_constant(value)
    assert array is not None
    return array
