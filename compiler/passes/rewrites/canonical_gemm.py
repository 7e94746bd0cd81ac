"""Gemm without alpha and beta: exporters and the quantizer then see y = x W + b and nothing else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.passes.base import Rewrite
from compiler.passes.edit import number
from compiler.passes.rewrites.linear import fold_affine, linear_refusal, out_channels


class CanonicalGemm(Rewrite[ir.Node]):
    name = "canonical_gemm"
    op_types = frozenset({"Gemm"})

    def pattern(self, node: ir.Node) -> ir.Node | None:
        return node if number(node, "alpha", 1.0) != 1.0 or number(node, "beta", 1.0) != 1.0 else None

    def check(self, match: ir.Node) -> str | None:
        return linear_refusal(match)

    def rewrite(self, graph: ir.Graph, match: ir.Node) -> None:
        channels = out_channels(match)
        fold_affine(graph, match, match, np.ones(channels), np.zeros(channels))
