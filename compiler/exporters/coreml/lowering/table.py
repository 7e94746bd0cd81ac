"""LOWERINGS: ONNX operator to MIL operations, one function each; the families fill it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from compiler.exporters.base import LoweringTable

if TYPE_CHECKING:
    import onnx_ir as ir

    from compiler.exporters.coreml.context import Context


class Lowering(Protocol):
    """Emits the node's operations into the open MIL block and calls ``ctx.set`` for every output that is used.

    Raises Unsupported, with the reason, for what Core ML cannot express; what was emitted until then is thrown away
    with the program.
    """

    def __call__(self, ctx: Context, node: ir.Node) -> None: ...


LOWERINGS: LoweringTable[Lowering] = LoweringTable("coreml")
