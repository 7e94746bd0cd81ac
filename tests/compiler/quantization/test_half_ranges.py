"""float16 exceptions from data: what is found, what is left alone, and that it helps where it should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from compiler.calibration.dataset import make_dataset
from compiler.exporters import EXPORTERS
from compiler.exporters.base import ExportOptions
from compiler.hub_session import open_hub
from compiler.hubfacts import hub_inputs
from compiler.importers import import_model
from compiler.passes import clean_up
from compiler.quantization.half_ranges import mark_float32
from profiles.schema import Precision
from runtimes.registry import open_session
from runtimes.session import Array, run_dataset


def net(tmp_path: Path, body: str) -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["": 21]> g (float[1,8] x) => (float[1,8] y) {{ {body} }}'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    return clean_up(import_model(str(tmp_path / "m.onnx")).model)


def reasons(model: ir.Model, scale: float = 1.0) -> dict[str, str]:
    data = np.random.default_rng(0).standard_normal((48, 8)).astype(np.float32) * np.float32(scale)
    _, found = mark_float32(model, make_dataset({"x": data}, hub_inputs(model), where="test"))
    types = {str(node.name): node.op_type for node in model.graph}
    return {types[name]: reason for name, reason in found.items()}


def test_ordinary_values_are_left_alone(tmp_path: Path) -> None:
    assert reasons(net(tmp_path, "a = Sigmoid(x) b = Mul(a, x) y = Tanh(b)")) == {}


def test_overflow(tmp_path: Path) -> None:
    found = reasons(net(tmp_path, "a = Mul(x, x) y = Sqrt(a)"), scale=1000.0)
    assert set(found) == {"Mul", "Sqrt"} and "65504" in found["Mul"]


def test_underflow(tmp_path: Path) -> None:
    found = reasons(net(tmp_path, "a = Mul(x, x) y = Sqrt(a)"), scale=1e-3)
    assert list(found) == ["Mul"] and "so small" in found["Mul"]


def test_cancellation(tmp_path: Path) -> None:
    body = "m = ReduceMax<keepdims = 1>(x) a = Sub(x, m) y = Exp(a)"
    assert reasons(net(tmp_path, body)) == {}
    shifted = "a = Tanh(x) b = Mul(a, small) c = Add(b, big) d = Sub(c, big) y = Exp(d)"
    consts = "<float small = {0.01}, float big = {100.0}>"
    text = f'<ir_version: 10, opset_import: ["": 21]> g (float[1,8] x) => (float[1,8] y) {consts} {{ {shifted} }}'
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
    assert "cancel" in reasons(model)["Sub"]


@pytest.mark.parametrize("scale", (0.05, 1e-3))
def test_what_leads_to_a_logarithm(tmp_path: Path, scale: float) -> None:
    found = reasons(net(tmp_path, "a = Mul(x, x) b = Abs(a) y = Log(b)"), scale)
    assert {"Mul", "Abs"} <= set(found)
    assert "logarithm" in found["Abs"] or "so small" in found["Abs"]


@pytest.mark.realdata
def test_basic_pitch_keeps_its_quiet_octaves(realdata: Path, tmp_path: Path) -> None:
    """Without marks: 0.044 off."""
    imported = import_model(str(realdata / "basic_pitch" / "nmp.onnx"))
    model, windows = imported.model, np.load(realdata / "basic_pitch" / "windows.npz")["windows"]
    (spec,) = hub_inputs(model)
    feeds = {spec.name: windows.reshape(-1, *(d or 1 for d in spec.shape[1:]))}
    marked, found = mark_float32(model, make_dataset(feeds, hub_inputs(model), where="test"))
    assert 0 < len(found) < len(model.graph)
    with open_hub(model) as session:
        want = run_dataset(session, feeds)
    for name, suffix in (("onnx", ".onnx"), ("coreml", ".mlpackage")):
        path = tmp_path / f"m{suffix}"
        EXPORTERS.get(name).export(marked, path, ExportOptions(Precision.FP16))
        with open_session(path) as session:
            got = run_dataset(session, feeds)
        assert max(_error(got[key], want[key]) for key in want) < 0.003, name


def _error(got: Array, want: Array) -> float:
    return float(np.abs(got - want).max())
