"""Hub models for tests: ONNX text read in place, and real models brought to the hub's opset with a batch of one."""

from __future__ import annotations

import collections
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import numpy_helper, parser, shape_inference, version_converter

from compiler.hub import HUB_IR_VERSION, HUB_OPSET
from runtimes.session import Array

HEADER = f'<ir_version: {HUB_IR_VERSION}, opset_import: ["" : {HUB_OPSET}]>\n'


def hub(text: str, **constants: Array) -> ir.Model:
    """A hub model from the text of a graph; ``constants`` are further initializers, nodes get names."""
    proto = parser.parse_model(HEADER + text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return to_hub(proto)


def load_hub(path: Path) -> ir.Model:
    """A hub model from an .onnx file whose free dimensions are all batch dimensions."""
    proto = onnx.load(path)
    for value in proto.graph.input:
        for dimension in value.type.tensor_type.shape.dim:
            if not dimension.HasField("dim_value"):
                dimension.dim_value = 1
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    del proto.graph.value_info[:]
    return to_hub(version_converter.convert_version(proto, HUB_OPSET))


def to_hub(proto: onnx.ModelProto) -> ir.Model:
    proto.ir_version = HUB_IR_VERSION
    _constants_to_initializers(proto.graph)
    for index, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return ir.from_proto(shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    for node in [n for n in graph.node if n.op_type == "Constant"]:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(onnx.helper.get_attribute_value(node.attribute[0]))
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        graph.node.remove(node)


def kernels(model: ir.Model, folder: Path, *, int8: bool) -> collections.Counter[str]:
    """Operator counts of onnxruntime's own optimised graph."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    if int8:
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return collections.Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)
