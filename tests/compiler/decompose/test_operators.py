"""Decompositions where the node suite is thin: random operands through LiteRT, held against numpy and onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from compiler.exporters import EXPORTERS
from compiler.exporters.base import ExportOptions
from compiler.importers.base import ImportOptions
from compiler.importers.hub_form import to_hub
from profiles.schema import Precision
from runtimes.onnxruntime_session import open_bytes
from runtimes.registry import open_session

pytest.importorskip("ai_edge_litert")
Array = NDArray[Any]


def _model(
    op_type: str, feeds: dict[str, Array], outputs: dict[str, Array], opset: int, **attributes: Any
) -> onnx.ModelProto:
    def port(name: str, array: Array) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)

    node = helper.make_node(op_type, list(feeds), list(outputs), name="n", **attributes)
    ports = [[port(name, array) for name, array in arrays.items()] for arrays in (feeds, outputs)]
    graph = helper.make_graph([node], "g", *ports)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _run(tmp_path: Path, model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    path = tmp_path / "model.tflite"
    EXPORTERS.get("tflite").export(to_hub(model, ImportOptions()), path, ExportOptions(Precision.FP32))
    with open_session(path) as session:
        return session.run(feeds)


def _whole(dtype: str, count: int = 64) -> Array:
    """Numbers of every size, the limits among them."""
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(3)
    bits = np.minimum(rng.integers(0, limits.bits, count), 63)
    numbers = rng.integers(limits.min, limits.max, count, dtype, endpoint=True) >> bits.astype(dtype)
    numbers[:2] = limits.min, limits.max
    return numbers.astype(dtype)


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("op_type", ["BitwiseAnd", "BitwiseXor"])
def test_bits_of_every_width(tmp_path: Path, dtype: str, op_type: str) -> None:
    feeds = {"x": _whole(dtype), "y": _whole(dtype)[::-1].copy()}
    expected = {"BitwiseAnd": np.bitwise_and, "BitwiseXor": np.bitwise_xor}[op_type](feeds["x"], feeds["y"])
    found = _run(tmp_path, _model(op_type, feeds, {"z": expected}, 18), feeds)
    np.testing.assert_array_equal(found["z"], expected)


@pytest.mark.parametrize("dtype", ["uint32", "int64", "uint64"])
@pytest.mark.parametrize("op_type", ["Div", "Max", "Less"])
def test_integers_without_a_kernel_are_exact(tmp_path: Path, dtype: str, op_type: str) -> None:
    x, y = _whole(dtype), _whole(dtype)[::-1].copy()
    y[y == 0] = 3
    x[x == np.iinfo(np.int64).min] += 1 if dtype == "int64" else 0  # ONNX leaves -2^63 / -1 open
    if op_type == "Div":  # toward zero; Python's integers do not overflow
        pairs = zip(x.tolist(), y.tolist(), strict=True)
        expected = np.asarray([abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1) for a, b in pairs]).astype(dtype)
    else:
        expected = np.maximum(x, y) if op_type == "Max" else x < y
    found = _run(tmp_path, _model(op_type, {"x": x, "y": y}, {"z": expected}, 14), {"x": x, "y": y})
    np.testing.assert_array_equal(found["z"], expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "uint64"])
@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_shifts_by_every_amount(tmp_path: Path, dtype: str, direction: str) -> None:
    bits = np.iinfo(dtype).bits
    x = np.resize(_whole(dtype, 16), bits)
    feeds = {"x": x, "y": np.arange(bits).astype(dtype)}
    expected = (np.left_shift if direction == "LEFT" else np.right_shift)(feeds["x"], feeds["y"])
    found = _run(tmp_path, _model("BitShift", feeds, {"z": expected}, 11, direction=direction), feeds)
    np.testing.assert_array_equal(found["z"], expected)


@pytest.mark.parametrize("order", [1, 2, 5, 7])
def test_determinants(tmp_path: Path, order: int) -> None:
    x = np.random.default_rng(order).standard_normal((2, 3, order, order)).astype(np.float32)
    expected = np.linalg.det(x.astype(np.float64)).astype(np.float32)
    found = _run(tmp_path, _model("Det", {"x": x}, {"y": expected}, 11), {"x": x})
    np.testing.assert_allclose(found["y"], expected, rtol=2e-4, atol=1e-5)


CONVOLUTIONS = [
    ("Conv", {"strides": [2, 1, 2], "pads": [1, 0, 1, 0, 1, 1]}),
    ("Conv", {"strides": [2, 1, 1], "auto_pad": "SAME_UPPER"}),
    ("Conv", {"dilations": [2, 1, 1]}),
    ("Conv", {"group": 2}),
    ("ConvTranspose", {"strides": [2, 2, 1], "pads": [1, 0, 0, 0, 1, 1]}),
    ("ConvTranspose", {"strides": [3, 1, 2], "output_padding": [1, 0, 1]}),
]


@pytest.mark.parametrize(("op_type", "attributes"), CONVOLUTIONS)
def test_convolutions_over_three_axes(tmp_path: Path, op_type: str, attributes: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    channels = 4 // attributes.get("group", 1)
    x = rng.standard_normal((2, 4, 5, 6, 7)).astype(np.float32)
    shape = (6, channels, 3, 2, 3) if op_type == "Conv" else (4, 6, 3, 2, 3)
    weight, bias = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(6).astype(np.float32)
    model = _model(op_type, {"x": x, "w": weight, "b": bias}, {"y": x}, 13, **attributes)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    for name, array in (("w", weight), ("b", bias)):
        model.graph.input.remove(next(value for value in model.graph.input if value.name == name))
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    truth = open_bytes(model.SerializeToString()).run({"x": x})["y"]
    found = _run(tmp_path, model, {"x": x})["y"]
    np.testing.assert_allclose(found, truth, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "attributes", [{"strides": [2, 2]}, {"pads": [1, 1, 1, 1], "storage_order": 1}, {"dilations": [2, 1]}]
)
def test_places_of_maxima(tmp_path: Path, attributes: dict[str, Any]) -> None:
    x = np.random.default_rng(1).permutation(2 * 3 * 7 * 6).reshape(2, 3, 7, 6).astype(np.float32)
    model = _model(
        "MaxPool", {"x": x}, {"y": x, "i": np.zeros((1,) * 4, np.int64)}, 12, kernel_shape=[2, 3], **attributes
    )
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    truth = open_bytes(model.SerializeToString()).run({"x": x})
    found = _run(tmp_path, model, {"x": x})
    np.testing.assert_array_equal(found["y"], truth["y"])
    np.testing.assert_array_equal(found["i"], truth["i"])
