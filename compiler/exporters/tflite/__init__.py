"""Hub to .tflite, written directly with the schema's own classes.

exporter.py    the walk over the hub, refusals, the file
context.py     what a lowering asks: inputs in an axis order, outputs, fused activations
layout.py      axis orders: the algebra, and the first choice
relayout/      axis orders assigned over the whole graph
kernels.py     what LiteRT's kernels demand of quantized operators
writer.py      tensors, buffers, operators -> flatbuffer;  versions.py  operator versions
ops/           one file per operator family, registered in table.py
"""

from __future__ import annotations

from compiler.exporters.tflite.exporter import EXPORTER, TFLiteExporter

__all__ = ["EXPORTER", "TFLiteExporter"]
