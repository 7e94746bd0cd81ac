"""Identity, and Dropout as it is after training, go."""

from __future__ import annotations

import onnx_ir as ir

from compiler.passes.base import Rewrite
from compiler.passes.edit import bypass, can_bypass, constant, input_of


class DropIdentity(Rewrite[ir.Node]):
    name = "drop_identity"
    op_types = frozenset({"Identity", "Dropout"})

    def pattern(self, node: ir.Node) -> ir.Node | None:
        return node

    def check(self, match: ir.Node) -> str | None:
        if match.op_type == "Dropout":
            if len(match.outputs) > 1 and (match.outputs[1].uses() or match.outputs[1].is_graph_output()):
                return "its mask is read"
            training = input_of(match, 2)
            flag = constant(training)
            if training is not None and (flag is None or bool(flag.reshape(()))):
                return "it is in training mode"
        return can_bypass(match)

    def rewrite(self, graph: ir.Graph, match: ir.Node) -> None:
        bypass(graph, match)
