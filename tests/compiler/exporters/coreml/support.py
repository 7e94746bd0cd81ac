"""Models for these tests: made static, checked by onnxruntime, exported, run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from compiler.exporters.base import ExportOptions, ExportResult
from compiler.exporters.coreml import EXPORTER
from profiles.schema import Precision
from runtimes.onnxruntime_session import open_exact
from tests.compiler.exporters.coreml.interpreter import run_package

Arrays = dict[str, np.ndarray[Any, Any]]


def hub(proto: onnx.ModelProto) -> ir.Model:
    """``proto`` with batch 1 for free dimensions, shapes inferred, Constant nodes as initializers."""
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    for value in [*proto.graph.input, *proto.graph.output]:
        for dimension in value.type.tensor_type.shape.dim:
            if not dimension.HasField("dim_value"):
                dimension.dim_value = 1
    del proto.graph.value_info[:]
    constants = [node for node in proto.graph.node if node.op_type == "Constant"]
    for node in constants:
        tensor = onnx.TensorProto.FromString(node.attribute[0].t.SerializeToString())
        tensor.name = node.output[0]
        proto.graph.initializer.append(tensor)
        proto.graph.node.remove(node)
    for index, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    return ir.from_proto(inferred)


def parse(text: str, **initializers: np.ndarray[Any, Any]) -> onnx.ModelProto:
    """ONNX text at the hub's opset, plus initializers."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]>\n{text}')
    for name, array in initializers.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def reference(model: ir.Model, feeds: Arrays) -> Arrays:
    """onnxruntime's answer."""
    import onnxruntime

    proto = ir.to_proto(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = open_exact(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def random_feeds(model: ir.Model, seed: int = 0) -> Arrays:
    generator = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.inputs:
        shape = tuple(int(d) for d in value.shape)  # type: ignore[union-attr, arg-type]
        feeds[value.name or ""] = generator.standard_normal(shape).astype(np.float32)
    return feeds


def export(
    model: ir.Model, folder: Path, precision: str = "fp32", target: str = "iOS17", **metadata: str
) -> tuple[Path, ExportResult]:
    destination = folder / f"model_{precision}_{target}.mlpackage"
    result = EXPORTER.export(model, destination, ExportOptions(Precision(precision), target, metadata))
    return destination, result


def exported_answers(
    model: ir.Model, feeds: Arrays, folder: Path, precision: str = "fp32", target: str = "iOS17"
) -> Arrays:
    path, _ = export(model, folder, precision, target)
    return run_package(path, feeds)


def relative_error(got: Arrays, want: Arrays) -> float:
    """Largest absolute error over each output's range."""
    worst = 0.0
    for name, array in want.items():
        assert got[name].shape == array.shape
        wide = array.astype(np.float64)
        span = max(float(wide.max() - wide.min()), float(np.abs(wide).max()), 1e-12)
        worst = max(worst, float(np.abs(got[name].astype(np.float64) - wide).max()) / span)
    return worst
