"""Flatten, Squeeze, Unsqueeze and every other way of renaming axes becomes Reshape with the whole shape written out."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.passes.base import Rewrite
from compiler.passes.edit import add_initializer, constant, input_of, out, replace, static_shape


class ShapesToReshape(Rewrite[ir.Node]):
    """With static shapes they all copy the same numbers in the same order; exporters then need one lowering."""

    name = "shapes_to_reshape"
    op_types = frozenset({"Flatten", "Squeeze", "Unsqueeze", "Reshape"})

    def pattern(self, node: ir.Node) -> ir.Node | None:
        return node

    def check(self, match: ir.Node) -> str | None:
        shape, source = static_shape(out(match)), static_shape(match.inputs[0])
        if shape is None or source is None:
            return "a shape is not known"
        if 0 in shape:
            return "a tensor without elements: zero means 'copy' in Reshape"
        if match.op_type == "Reshape":
            target = constant(input_of(match, 1))
            if target is not None and tuple(target.tolist()) == shape and "allowzero" not in match.attributes:
                return "it is in the canonical form"
        return None

    def rewrite(self, graph: ir.Graph, match: ir.Node) -> None:
        shape = static_shape(out(match))
        target = add_initializer(graph, f"{out(match).name}_shape", np.array(shape, np.int64))
        replace(graph, [match], [ir.node("Reshape", [match.inputs[0], target])], at=match)
