"""MatMul of a rank-2 input with a constant 2-D weight becomes Gemm, which has a place for the bias."""

from __future__ import annotations

import onnx_ir as ir

from compiler.passes.base import Rewrite
from compiler.passes.edit import float_constant, rank, replace


class MatMulToGemm(Rewrite[ir.Node]):
    """The Add behind it, if any, is folded by ``fold_affine``: one rule for every per-channel constant."""

    name = "matmul_to_gemm"
    op_types = frozenset({"MatMul"})

    def pattern(self, node: ir.Node) -> ir.Node | None:
        return node

    def check(self, match: ir.Node) -> str | None:
        weight = float_constant(match.inputs[1])
        if weight is None:
            return "the second input is not a constant"
        if weight.ndim != 2 or rank(match.inputs[0]) != 2:
            return "it is a batch of products, or a product with a vector"
        return None

    def rewrite(self, graph: ir.Graph, match: ir.Node) -> None:
        replace(graph, [match], [ir.node("Gemm", list(match.inputs))], at=match)
