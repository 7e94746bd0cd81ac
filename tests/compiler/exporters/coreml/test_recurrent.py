"""LSTM, GRU and RNN as MIL's own operations, against onnxruntime: both directions, layouts, states, long and flexible sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.exporters.base import CoreMLInterface, ExportOptions
from compiler.exporters.coreml import EXPORTER
from compiler.exporters.coreml.build import build
from compiler.exporters.coreml.flexible import free_axes
from profiles.schema import Precision
from runtimes.registry import open_session
from tests.compiler.exporters.coreml.support import export, hub, random_feeds, reference, relative_error

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
INPUTS, HIDDEN, BATCH = 3, 5, 2


def model(
    kind: str, steps: int = 7, states: bool = False, seed: int = 0, inner_bias: bool = False, **attrs: Any
) -> ir.Model:
    """One recurrent layer of seeded weights; x and, with ``states``, the first states are inputs."""
    rng, gates, layout = np.random.default_rng(seed), GATES[kind], attrs.get("layout", 0)
    count = 2 if attrs.get("direction") == "bidirectional" else 1
    shapes = {
        "w": (count, gates * HIDDEN, INPUTS),
        "r": (count, gates * HIDDEN, HIDDEN),
        "b": (count, 2 * gates * HIDDEN),
    }
    weights = {name: (0.4 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    if kind == "GRU":
        attrs = {"linear_before_reset": 1, **attrs}
        if not inner_bias:
            weights["b"][:, -HIDDEN:] = 0
    x_shape = [BATCH, steps, INPUTS] if layout else [steps, BATCH, INPUTS]
    state = [BATCH, count, HIDDEN] if layout else [count, BATCH, HIDDEN]
    y_shape = [BATCH, steps, count, HIDDEN] if layout else [steps, count, BATCH, HIDDEN]
    extra = (["h0", "c0"] if kind == "LSTM" else ["h0"]) if states else []
    outputs = {"y": y_shape, "y_h": state} | ({"y_c": state} if kind == "LSTM" else {})
    node = helper.make_node(
        kind,
        ["x", "w", "r", "b", *(["", *extra] if extra else [])],
        [*outputs],
        hidden_size=HIDDEN,
        name="layer",
        **attrs,
    )

    def port(name: str, shape: list[int]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        [node],
        "g",
        [port("x", x_shape), *(port(name, state) for name in extra)],
        [port(name, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return hub(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def operations(one: ir.Model) -> list[str]:
    function = build(one, ExportOptions(Precision.FP32, "iOS17")).program.functions["main"]
    return [op.op_type for op in function.operations if op.op_type != "const"]


def error(one: ir.Model, folder: Path, precision: str = "fp32", target: str = "iOS17") -> float:
    feeds = random_feeds(one)
    path, _ = export(one, folder, precision, target)
    want = reference(one, feeds)
    with open_session(path, runtime="coreml-reference") as session:
        return relative_error(session.run(feeds), want)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", GATES)
def test_directions(tmp_path: Path, kind: str, direction: str) -> None:
    one = model(kind, states=True, direction=direction)
    assert kind.lower() in operations(one) and "matmul" not in operations(one)
    assert error(one, tmp_path) <= 1e-6


@pytest.mark.parametrize("target", ["iOS15", "iOS17", "iOS18"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_targets(tmp_path: Path, precision: str, target: str) -> None:
    """float16: one rounding of operands and result, fed back through the gates 7 times, each of which contracts."""
    assert error(model("LSTM"), tmp_path, precision, target) <= (1e-6 if precision == "fp32" else 7 * 2**-11)


@pytest.mark.parametrize("kind", GATES)
def test_longer_than_unrolled(tmp_path: Path, kind: str) -> None:
    one = model(kind, steps=600, direction="bidirectional")
    assert len(operations(one)) < 20
    assert error(one, tmp_path) <= 1e-5


def test_other_activations(tmp_path: Path) -> None:
    one = model("LSTM", activations=["Sigmoid", "Relu", "Tanh"])
    assert "lstm" in operations(one)
    assert error(one, tmp_path) <= 1e-6


def test_a_long_one_with_an_activation_that_mil_lacks_is_taken_apart_into_a_loop(tmp_path: Path) -> None:
    one = model("LSTM", activations=["Sigmoid", "Softsign", "Tanh"], steps=600)
    assert error(one, tmp_path) <= 1e-5


def test_short_ones_that_mil_lacks_are_unrolled(tmp_path: Path) -> None:
    assert error(model("GRU", inner_bias=True), tmp_path) <= 1e-6
    assert error(model("GRU", linear_before_reset=0), tmp_path) <= 1e-6


def test_flexible_steps_and_batches(tmp_path: Path) -> None:
    """The states start from zeros of the size at hand."""
    one = model("LSTM", direction="bidirectional")
    flexible = {"x": (((1, 9), (1, 4), (INPUTS, INPUTS)),)}
    path = tmp_path / "flexible.mlpackage"
    EXPORTER.export(one, path, ExportOptions(Precision.FP32, interface=CoreMLInterface(flexible=flexible)))
    free = free_axes(one, flexible)
    with open_session(path, runtime="coreml-reference") as session:
        for steps, batch in ((7, 2), (1, 1), (9, 4), (3, 3)):
            x = np.random.default_rng(steps).standard_normal((steps, batch, INPUTS)).astype(np.float32)
            assert relative_error(session.run({"x": x}), reference(free, {"x": x})) <= 1e-6
