"""The numbers of an INT8 .tflite artifact: tensors under the names that the TFLite exporter gave them."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from compiler.importers.tflite.reader import Graph, TensorInfo, read_graph
from compiler.previous.numbers import Codes, Numbers, codes_of
from compiler.quantization.spec import QParams

# From the file's layout to the hub's.
_WEIGHTED = {"CONV_2D": (0, 3, 1, 2), "DEPTHWISE_CONV_2D": (3, 0, 1, 2), "FULLY_CONNECTED": (0, 1)}


def read(path: Path, _hub: ir.Model) -> Numbers:
    """Raises SourceError, ExtraMissing."""
    graph = read_graph(path)
    numbers = Numbers({name: params for info in graph.tensors for name, params in _activation(info)})
    for operator in graph.operators:
        axes = _WEIGHTED.get(operator.type)
        weight = _codes(graph, operator.input(1), axes) if axes else None
        if weight is None:
            continue
        name = graph.tensors[operator.inputs[1]].name.partition("/dequantized")[0]
        numbers.constants[name] = weight
        bias = _codes(graph, operator.input(2), (0,))
        if bias is not None:
            numbers.biases[name] = bias
    return numbers


def _activation(info: TensorInfo) -> list[tuple[str, QParams]]:
    if info.data is not None or info.dtype != "int8" or info.quantization is None:
        return []
    name = info.name.removesuffix("/quantize").removesuffix("/Q").removesuffix("/float")
    return [(name, QParams("int8", info.quantization.scale, int(info.quantization.zero_point[0])))]


def _codes(graph: Graph, index: int | None, axes: tuple[int, ...]) -> Codes | None:
    if index is None:
        return None
    info = graph.tensors[index]
    if info.data is None or info.quantization is None:
        return None
    scale, points = info.quantization.scale, info.quantization.zero_point
    axis = None if scale.size == 1 else axes.index(info.quantization.axis)
    return codes_of(info.data.transpose(axes), scale, int(points[0]), axis)
