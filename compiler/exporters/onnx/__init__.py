"""Hub to .onnx. The hub already is ONNX: this exporter converts precision, checks and writes."""

from __future__ import annotations

from compiler.exporters.onnx.exporter import EXPORTER

__all__ = ["EXPORTER"]
