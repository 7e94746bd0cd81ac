"""LiteRT (ai-edge-litert), the runtime of .tflite files on phones and 64-bit boards."""

from __future__ import annotations

from runtimes.litert_base import InterpreterOpener

OPENER = InterpreterOpener(
    name="litert", module="ai_edge_litert.interpreter", package="ai-edge-litert", extra="agent-litert"
)
