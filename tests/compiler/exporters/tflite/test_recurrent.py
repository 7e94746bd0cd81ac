"""LSTM and RNN as LiteRT's fused operators against onnxruntime: states start anew at every invocation, with or without XNNPACK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compiler.importers.base import ImportOptions
from compiler.importers.hub_form import to_hub
from compiler.importers.tflite.importer import TFLiteImporter
from compiler.pipeline import build
from compiler.request import BuildRequest
from profiles.schema import Format, Precision
from runtimes.litert_session import OPENER
from runtimes.registry import open_session
from runtimes.session import SessionOptions
from tests.compiler.exporters.tflite import support

pytest.importorskip("ai_edge_litert")

STEPS, BATCH, INPUT, HIDDEN = 6, 2, 5, 7  # rows that begin at no multiple of 16 bytes
FUSED = {"LSTM": "UNIDIRECTIONAL_SEQUENCE_LSTM", "RNN": "UNIDIRECTIONAL_SEQUENCE_RNN"}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
# float32 sums of at most 12 products of size 1, and functions with slope 1 at most, over six steps.
ATOL = 2e-6


def recurrent(
    op_type: str, *, direction: str = "forward", start: str = "", peepholes: bool = False, steps: int = STEPS,
    batch: int | str = BATCH, activations: list[str] | None = None,
) -> onnx.ModelProto:  # fmt: skip
    """One node with all its outputs. ``start``: where the initial states come from, "constant" or "input"."""
    rng = np.random.default_rng(0)
    gates, count = GATES[op_type], 2 if direction == "bidirectional" else 1
    weights = {
        "W": rng.standard_normal((count, gates * HIDDEN, INPUT)) / np.sqrt(INPUT),
        "R": rng.standard_normal((count, gates * HIDDEN, HIDDEN)) / np.sqrt(HIDDEN),
        "B": rng.standard_normal((count, 2 * gates * HIDDEN)) * 0.2,
    }
    shape, names = [count, batch, HIDDEN], ["x", "W", "R", "B"]
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [steps, batch, INPUT])]
    states = ["h", "c"] if op_type == "LSTM" else ["h"]
    if start:
        names += ["", *states]
    if start == "constant":
        weights |= {state: rng.standard_normal((count, BATCH, HIDDEN)) for state in states}
    if start == "input":
        inputs += [helper.make_tensor_value_info(state, onnx.TensorProto.FLOAT, shape) for state in states]
    if peepholes:
        names += [""] * (7 - len(names)) + ["P"]
        weights["P"] = rng.standard_normal((count, 3 * HIDDEN)) * 0.3
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [steps, count, batch, HIDDEN])]
    outputs += [helper.make_tensor_value_info(f"{state}_end", onnx.TensorProto.FLOAT, shape) for state in states]
    node = helper.make_node(
        op_type,
        names,
        [value.name for value in outputs],
        name="net",
        hidden_size=HIDDEN,
        direction=direction,
    )
    if activations is not None:
        node.attribute.append(helper.make_attribute("activations", activations))
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph([node], "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def export(model: onnx.ModelProto, path: Path, precision: Precision = Precision.FP32) -> Path:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    support.export(to_hub(copy, ImportOptions(batch=BATCH)), path, precision)
    return path


def fed(model: onnx.ModelProto, seed: int) -> dict[str, support.Array]:
    rng = np.random.default_rng(seed)
    shapes = {v.name: [dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in model.graph.input}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def same(model: onnx.ModelProto, path: Path, atol: float = ATOL) -> None:
    """Three runs of one interpreter: what a run leaves behind shows in the next one."""
    truth = support.reference_runner(model)
    with OPENER.open(path, SessionOptions()) as session:
        for seed in range(3):
            feeds = fed(model, seed)
            got, want = session.run(feeds), truth(feeds)
            assert got.keys() == want.keys()
            for name in want:
                np.testing.assert_allclose(got[name], want[name], atol=atol, err_msg=name)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("start", ["", "constant", "input"])
@pytest.mark.parametrize("op_type", FUSED)
def test_fused_and_started_anew_each_time(tmp_path: Path, op_type: str, start: str, direction: str) -> None:
    model = recurrent(op_type, direction=direction, start=start)
    path = export(model, tmp_path / "m.tflite")
    assert support.ops_in(path).count(FUSED[op_type]) == (2 if direction == "bidirectional" else 1)
    same(model, path)


@pytest.mark.parametrize("start", ["", "constant", "input"])
def test_without_delegates(tmp_path: Path, start: str) -> None:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    model = recurrent("LSTM", direction="bidirectional", start=start)
    path, truth = export(model, tmp_path / "m.tflite"), support.reference_runner(model)
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_path=str(path), experimental_op_resolver_type=plain)
    interpreter.allocate_tensors()
    inputs, outputs = (
        {d["name"]: d["index"] for d in found}
        for found in (interpreter.get_input_details(), interpreter.get_output_details())
    )
    for seed in range(2):
        feeds = fed(model, seed)
        for name, value in feeds.items():
            interpreter.set_tensor(inputs[name], value)
        interpreter.invoke()
        for name, want in truth(feeds).items():
            np.testing.assert_allclose(interpreter.get_tensor(outputs[name]), want, atol=ATOL, err_msg=name)


def test_peepholes_and_other_activations(tmp_path: Path) -> None:
    for model in (
        recurrent("LSTM", peepholes=True, start="input"),
        recurrent("LSTM", activations=["Sigmoid", "Relu", "Relu"]),
        recurrent("RNN", activations=["Relu"]),
    ):
        path = export(model, tmp_path / "m.tflite")
        assert FUSED[model.graph.node[0].op_type] in support.ops_in(path)
        same(model, path)


@pytest.mark.parametrize("activations", [["Sigmoid", "Tanh", "Relu"], ["HardSigmoid", "Tanh", "Tanh"]])
def test_what_the_kernel_says_otherwise_is_written_out(tmp_path: Path, activations: list[str]) -> None:
    model = recurrent("LSTM", activations=activations)
    path = export(model, tmp_path / "m.tflite")
    assert FUSED["LSTM"] not in support.ops_in(path)
    same(model, path)


def test_a_thousand_steps_are_as_small_as_ten(tmp_path: Path) -> None:
    sizes = [export(recurrent("LSTM", steps=n), tmp_path / "m.tflite").stat().st_size for n in (10, 1000)]
    same(recurrent("LSTM", steps=1000), tmp_path / "m.tflite", atol=1e-5)
    assert sizes[1] == sizes[0]


def test_half_precision_weights(tmp_path: Path) -> None:
    model = recurrent("LSTM", direction="bidirectional")
    same(model, export(model, tmp_path / "m.tflite", Precision.FP16), atol=4e-3)


def test_a_free_batch_is_written_out(tmp_path: Path) -> None:
    source, model = tmp_path / "net.onnx", recurrent("LSTM", batch="N")
    turn = helper.make_node("Transpose", ["rows"], ["x"], "turn", perm=[1, 0, 2])
    back = helper.make_node("Transpose", ["y"], ["z"], "back", perm=[2, 0, 1, 3])
    nodes = [turn, *model.graph.node, back]
    del model.graph.node[:], model.graph.input[:], model.graph.output[:]
    model.graph.node.extend(nodes)
    model.graph.input.append(helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, ["N", STEPS, INPUT]))
    model.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["N", STEPS, 1, HIDDEN]))
    onnx.save_model(model, source)
    request = BuildRequest(
        str(source), tmp_path / "out", dynamic_batch=True, formats=(Format.TFLITE,), precisions=(Precision.FP32,)
    )
    assert build(request).ok
    path = next(p for p in (tmp_path / "out").iterdir() if p.suffix == ".tflite")
    assert FUSED["LSTM"] not in support.ops_in(path)
    with open_session(source) as truth, open_session(path) as session:
        for batch in (1, 4, 3):
            rows = np.random.default_rng(batch).standard_normal((batch, STEPS, INPUT)).astype(np.float32)
            np.testing.assert_allclose(session.run({"rows": rows})["z"], truth.run({"rows": rows})["z"], atol=ATOL)


def test_read_back_it_says_the_same(tmp_path: Path) -> None:
    """The importer knows that the states were written, and reads what the operator left in them."""
    model = recurrent("LSTM", start="input")
    path = export(model, tmp_path / "m.tflite")
    feeds = fed(model, 5)
    shapes = {name: value.shape for name, value in feeds.items()}
    again = TFLiteImporter().load(str(path), ImportOptions(input_shapes=shapes)).model
    want, got = support.reference(model, feeds), support.reference(again, feeds)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], atol=ATOL, err_msg=name)
