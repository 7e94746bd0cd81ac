"""What was written, read back and executed by runtimes.coreml_reference, which shares no code with the exporter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from runtimes.registry import open_session
from tests.compiler.exporters.coreml.support import Arrays, export, hub, parse, random_feeds, reference, relative_error
from tests.compiler.exporters.coreml.test_operators import CASES, _model, qdq_model


def evaluated(model: ir.Model, feeds: Arrays, folder: Path, precision: str = "fp32", target: str = "iOS17") -> Arrays:
    path, _ = export(model, folder, precision, target)
    with open_session(path, runtime="coreml-reference") as session:
        return session.run({spec.name: feeds[spec.name].astype(spec.dtype) for spec in session.inputs})


@pytest.mark.parametrize("name", CASES)
def test_float32_operators(tmp_path: Path, name: str) -> None:
    model = _model(name)
    feeds = random_feeds(model)
    assert relative_error(evaluated(model, feeds, tmp_path), reference(model, feeds)) <= 1e-6


@pytest.mark.parametrize("name", ["kws", "ic", "vww", "ad"])
@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
def test_real_models(realdata: Path, tmp_path: Path, name: str, target: str) -> None:
    model = hub(onnx.load(realdata / name / "model.onnx"))
    feeds = random_feeds(model)
    want = reference(model, feeds)
    assert relative_error(evaluated(model, feeds, tmp_path, target=target), want) <= 1e-5
    layers = sum(node.op_type in ("Conv", "MatMul", "Gemm") for node in model.graph)
    # As in test_real_models: two roundings by 2**-11 per layer.
    assert relative_error(evaluated(model, feeds, tmp_path, "fp16", target), want) <= 2 * layers * 2**-11


@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
def test_a_quantized_hub(tmp_path: Path, target: str) -> None:
    model = qdq_model()
    feeds = random_feeds(model)
    got, want = evaluated(model, feeds, tmp_path, "int8", target)["y"], reference(model, feeds)["y"]
    assert np.mean(np.abs(got - want) <= 1.001 * 0.05) >= 0.99


def test_names_that_mil_forbids_come_back(tmp_path: Path) -> None:
    model = hub(parse("net (float[1, 2] a) => (float[1, 2] y) { y = Relu(a) }"))
    model.graph.inputs[0].name, model.graph.outputs[0].name = "in/put:0", "1st out"
    got = evaluated(model, {"in/put:0": np.float32([[-1, 2]])}, tmp_path)
    np.testing.assert_array_equal(got["1st out"], [[0, 2]])


def test_int16_activations_are_computed_as_the_standard_defines_them(tmp_path: Path) -> None:
    """Core ML quantizes to eight bits; sixteen are rounded and clipped in float32."""
    text = "net (float[2] x) => (float[2] y) { q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }"
    model = hub(parse(text, s=np.array(0.5, np.float32), z=np.array(3, np.int16)))
    feeds = {"x": np.array([0.26, 1e6], np.float32)}
    np.testing.assert_array_equal(evaluated(model, feeds, tmp_path)["y"], reference(model, feeds)["y"])
