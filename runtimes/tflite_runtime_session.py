"""tflite-runtime, the last .tflite runtime with wheels for 32-bit ARM boards; it needs numpy below 2."""

from __future__ import annotations

from runtimes.litert_base import InterpreterOpener

OPENER = InterpreterOpener(
    name="tflite-runtime",
    module="tflite_runtime.interpreter",
    package="tflite-runtime",
    extra="agent-tflite-runtime",
)
