"""A Core ML package written byte by byte, independent of coremltools' writer."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtimes.coreml_reference.proto import model_class, proto_folder

FLOAT32, INT32 = 11, 23  # MIL.proto's DataType
ARRAY_FLOAT32 = 65568  # ArrayFeatureType.ArrayDataType


def tensor(message: Any, shape: list[int], dtype: int = FLOAT32) -> None:
    message.tensorType.dataType = dtype
    message.tensorType.rank = len(shape)
    for size in shape:
        message.tensorType.dimensions.add().constant.size = size


def write_package(path: Path, spec: Any, weights: bytes) -> Path:
    folder = path / "Data" / "com.apple.CoreML"
    (folder / "weights").mkdir(parents=True)
    (folder / "model.mlmodel").write_bytes(spec.SerializeToString())
    (folder / "weights" / "weight.bin").write_bytes(weights)
    entry = {"path": "com.apple.CoreML/model.mlmodel", "name": "model.mlmodel"}
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": {"a": entry}, "rootModelIdentifier": "a"}
    (path / "Manifest.json").write_text(json.dumps(manifest), "utf-8")
    return path


def tiny_spec() -> tuple[Any, bytes]:
    """y = relu(x + w), x [2, 3], w [3] in the weight file; metadata maps mil_x to x and mil_y to y."""
    spec = model_class()()
    spec.specificationVersion = 6
    for feature, name, shape in ((spec.description.input, "mil_x", [2, 3]), (spec.description.output, "mil_y", [2, 3])):
        port = feature.add()
        port.name = name
        port.type.multiArrayType.shape.extend(shape)
        port.type.multiArrayType.dataType = ARRAY_FLOAT32
    spec.description.metadata.userDefined["edgewright.inputs"] = '{"mil_x": "x"}'
    spec.description.metadata.userDefined["edgewright.outputs"] = '{"mil_y": "y"}'
    function = spec.mlProgram.functions["main"]
    function.opset = "CoreML5"
    named = function.inputs.add()
    named.name = "mil_x"
    tensor(named.type, [2, 3])
    block = function.block_specializations["CoreML5"]
    const = block.operations.add()
    const.type = "const"
    const.outputs.add().name = "w"
    tensor(const.outputs[0].type, [3])
    tensor(const.attributes["val"].type, [3])
    const.attributes["val"].blobFileValue.fileName = "@model_path/weights/weight.bin"
    const.attributes["val"].blobFileValue.offset = 64
    for kind, result, args in (("add", "sum", {"x": "mil_x", "y": "w"}), ("relu", "mil_y", {"x": "sum"})):
        op = block.operations.add()
        op.type = kind
        op.outputs.add().name = result
        tensor(op.outputs[0].type, [2, 3])
        for key, value in args.items():
            op.inputs[key].arguments.add().name = value
    block.outputs.append("mil_y")
    data = np.array([-1, 0, 1], np.float32).tobytes()
    weights = struct.pack("<II56x", 1, 2) + struct.pack("<IIQQQ32x", 0xDEADBEEF, 2, len(data), 128, 0) + data
    return spec, weights


@pytest.fixture
def tiny_package(tmp_path: Path) -> Path:
    if proto_folder() is None:
        pytest.skip("coremltools, whose protobuf classes write the package, is not installed")
    return write_package(tmp_path / "tiny.mlpackage", *tiny_spec())
