"""QUANTIZE, DEQUANTIZE and their like: the pairs are made where tensors are bound, so that only the value passes on."""

from __future__ import annotations

from compiler.importers.tflite.builder import INTEGERS, Builder, Unsupported
from compiler.importers.tflite.reader import Operator
from compiler.importers.tflite.table import reads


@reads("DEQUANTIZE", "QUANTIZE")
def convert(b: Builder, op: Operator) -> None:
    """DEQUANTIZE also widens float16; a QUANTIZE between two integer tensors changes their scale."""
    info = b.tensor(op.inputs[0])
    if info.dtype not in (*INTEGERS, "float16", "float32"):
        raise Unsupported(f"its input is {info.dtype}")
    if info.data is not None and info.quantization is not None:
        b.bind(op.outputs[0], b.weight(op.inputs[0]))
        return
    perm = b.perm(op.inputs[0])
    b.bind(op.outputs[0], b.read(op.inputs[0], perm), perm)


@reads("FAKE_QUANT")
def fake_quant(b: Builder, op: Operator) -> None:
    raise Unsupported("it is a training operator")
