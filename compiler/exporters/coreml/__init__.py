"""Core ML: hub model to a deterministic .mlpackage that holds an ML program.

target.py      deployment targets, and coremltools imported late and quietly
names.py       ONNX names to MIL identifiers
constants.py   constants on their way into the program, quantized ones with their scales
compressed.py  weights from tables and sparse weights as constexpr operations
context.py     what a lowering sees: values as MIL variables, constants, the compute type
attention.py   attention as one operation, since iOS18
lowering/      one file per operator family, each filling lowering/table.py's LOWERINGS
build.py       walks the hub, calls the lowerings, collects every refusal
package.py     writes the folder, byte for byte the same for the same program
exporter.py    EXPORTER
"""

from __future__ import annotations

from compiler.exporters.coreml.exporter import EXPORTER

__all__ = ["EXPORTER"]
