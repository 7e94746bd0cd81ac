"""TFLITE: the operator lowerings of this exporter. Each family in ops/ adds its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from compiler.exporters.base import LoweringTable
from compiler.exporters.tflite.context import LoweringContext

if TYPE_CHECKING:
    import onnx_ir as ir

Lowering = Callable[[LoweringContext, "ir.Node"], None]

TFLITE: LoweringTable[Lowering] = LoweringTable("tflite")
lowers = TFLITE.lowers
