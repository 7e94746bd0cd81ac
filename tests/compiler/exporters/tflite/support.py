"""Loading and running helpers of these tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import shape_inference, version_converter

from compiler.exporters.base import ExportOptions, ExportResult
from compiler.exporters.tflite import EXPORTER
from profiles.schema import Precision
from runtimes.litert_session import OPENER
from runtimes.session import SessionOptions

Array = NDArray[Any]


def hub(model: onnx.ModelProto) -> ir.Model:
    """Names on all nodes, batch 1, opset 21, shapes inferred."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.dim_value:
                dim.dim_value = 1
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    del copy.graph.value_info[:]
    if copy.opset_import[0].version != 21:
        copy = version_converter.convert_version(copy, 21)
    copy.ir_version = 10
    for index, node in enumerate(copy.graph.node):
        node.name = node.name or f"n{index}"
    return ir.from_proto(shape_inference.infer_shapes(copy, strict_mode=True, data_prop=True))


def text(source: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(source)


def export(model: ir.Model, path: Path, precision: Precision = Precision.FP32) -> ExportResult:
    return EXPORTER.export(model, path, ExportOptions(precision=precision))


def run(path: Path, feeds: dict[str, Array]) -> dict[str, Array]:
    with OPENER.open(path, SessionOptions()) as session:
        return session.run(feeds)


def reference(model: onnx.ModelProto | ir.Model, feeds: dict[str, Array]) -> dict[str, Array]:
    """Run once; see ``reference_runner``."""
    return reference_runner(model)(feeds)


def reference_runner(model: onnx.ModelProto | ir.Model) -> Callable[[dict[str, Array]], dict[str, Array]]:
    """onnxruntime without graph optimization, so that QDQ is executed as it is written."""
    import onnxruntime as ort

    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


def relative_error(got: Array, want: Array) -> float:
    return float(np.abs(got - want).max() / max(float(np.ptp(want)), 1e-12))


def ops_in(path: Path) -> list[str]:
    from ai_edge_litert import schema_py_generated as fb

    names = {number: name for name, number in vars(fb.BuiltinOperator).items() if isinstance(number, int)}
    model = fb.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    codes = [names[code.builtinCode] for code in model.operatorCodes]
    return [codes[operator.opcodeIndex] for operator in model.subgraphs[0].operators]
