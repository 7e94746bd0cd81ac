"""EXPORTER for ONNX files."""

from __future__ import annotations

from compiler.exporters.onnx.exporter import EXPORTER

__all__ = ["EXPORTER"]
