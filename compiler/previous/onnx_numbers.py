"""The numbers of an INT8 .onnx artifact: QDQ pairs under the names that compiler/quantization/perform.py gave them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from compiler.importers.onnx_importer import read_model
from compiler.previous.numbers import Codes, Numbers, codes_of
from compiler.quantization.spec import QParams
from runtimes.session import Array

_WITH_BIAS = ("Conv", "ConvTranspose", "Gemm")


def read(path: Path, _hub: ir.Model) -> Numbers:
    """Raises SourceError."""
    graph = read_model(path).graph
    arrays = {tensor.name: _signed(numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    weight_of = {n.input[2]: n.input[1] for n in graph.node if n.op_type in _WITH_BIAS and len(n.input) > 2}
    numbers, names = Numbers(), {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and set(node.input[1:]) <= arrays.keys():
            scale, point = (arrays[name] for name in node.input[1:])
            numbers.activations[node.name.removesuffix("/Q")] = QParams("int8", scale.reshape(-1), int(point))
        elif node.op_type == "DequantizeLinear" and set(node.input) <= arrays.keys():
            name = names[node.output[0]] = node.input[0].partition("/quantized")[0]
            codes = _codes(node, arrays)
            if codes.codes.dtype == np.int32:
                numbers.biases[names.get(weight_of.get(node.output[0], ""), "")] = codes
            else:
                numbers.constants[name] = codes
    return numbers


def _signed(codes: Array) -> Array:
    """uint8 as int8: the same numbers moved by 128."""
    return (codes.astype(np.int16) - 128).astype(np.int8) if codes.dtype == np.uint8 else codes


def _codes(node: onnx.NodeProto, arrays: Mapping[str, Array]) -> Codes:
    codes, scale, points = (arrays[name] for name in node.input)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1) if scale.ndim else None
    return codes_of(codes, scale, int(points.reshape(-1)[0]), axis)
