"""Channels last: which ports are images, and that nothing but the order of axes changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from compiler.hub_session import open_hub
from compiler.importers import import_model
from compiler.io_layout import Layout, TurnedSession, channels_last, input_layout, output_layout, port_layouts
from compiler.passes import clean_up
from compiler.request import BuildRequest
from profiles.schema import Format, Precision
from runtimes.artifact.manifest import read_manifest
from tests.compiler.small_net import save_net

HEAD = '<ir_version: 10, opset_import: ["": 21]> g '


def hub(folder: Path, body: str) -> ir.Model:
    path = folder / "m.onnx"
    onnx.save(onnx.parser.parse_model(HEAD + body), path)
    return clean_up(import_model(str(path)).model)


NCHW = """(float[1,3,6,6] x) => (float[1,3,3,3] y) { a = Mul(x, x) b = Relu(a)
  y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(b) }"""
NHWC = """(float[1,6,6,3] x) => (float[1,3,3,3] y) { t = Transpose<perm = [0, 3, 1, 2]>(x)
  a = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(t) y = Transpose<perm = [0, 2, 3, 1]>(a) }"""
NO_IMAGE = "(float[1,2,6,6] x) => (float[1,2,6,6] y) { t = Transpose<perm = [0, 1, 3, 2]>(x) y = MatMul(x, t) }"


@pytest.mark.parametrize(("body", "layout"), ((NCHW, Layout.NCHW), (NHWC, Layout.NHWC), (NO_IMAGE, None)))
def test_the_layout_is_told_from_the_operators(tmp_path: Path, body: str, layout: Layout | None) -> None:
    model = hub(tmp_path, body)
    assert input_layout(model.graph.inputs[0]) is layout
    assert output_layout(model.graph.outputs[0]) is layout


@pytest.mark.parametrize("body", (NHWC, NO_IMAGE))
def test_other_ports_stay_as_they_are(tmp_path: Path, body: str) -> None:
    model = hub(tmp_path, body)
    turned = channels_last(model)
    assert not turned.inputs and not turned.outputs
    assert len(turned.model.graph) == len(model.graph)


def test_only_the_axes_change_their_order(tmp_path: Path) -> None:
    model = hub(tmp_path, NCHW)
    turned = channels_last(model)
    assert port_layouts(turned.model) == {"x": "NHWC", "y": "NHWC"}
    image = np.random.default_rng(0).standard_normal((1, 6, 6, 3)).astype(np.float32)
    with open_hub(model) as before, open_hub(turned.model) as after, TurnedSession(before, turned) as source:
        want = before.run({"x": image.transpose(0, 3, 1, 2)})["y"].transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(after.run({"x": image})["y"], want)
        np.testing.assert_array_equal(source.run({"x": image})["y"], want)
        assert source.inputs == after.inputs
        assert source.outputs == after.outputs


def test_a_build_takes_data_in_the_sources_layout(tmp_path: Path) -> None:
    from compiler.pipeline import build

    save_net(tmp_path / "net.onnx")
    images = np.random.default_rng(4).random((64, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", image=images)
    request = BuildRequest(
        str(tmp_path / "net.onnx"),
        tmp_path / "out",
        calibration=str(tmp_path / "data.npz"),
        precisions=(Precision.FP32, Precision.INT8),
        io_layout=Layout.NHWC,
    )
    report = build(request)
    assert report.ok
    assert {a.format for a in report.artifacts} == {f.value for f in Format}
    tflite = [a for a in report.artifacts if a.format == "tflite"]
    assert all("0 transpose(s) left" in a.notes for a in tflite)
    (image,) = read_manifest((tmp_path / "out" / "manifest.draft.json").read_bytes()).inputs
    assert (image.shape, image.layout) == ((1, 8, 8, 3), "NHWC")
    with np.load(tmp_path / "out" / "selftest.npz") as vectors:
        assert vectors["in/image"].shape[1:] == (8, 8, 3)


def test_a_source_that_came_quantized_shows_its_layout() -> None:
    """Its first and last operators are QuantizeLinear and DequantizeLinear, which say nothing about axes themselves."""
    model = ir.from_proto(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 21]> g (float[1,3,4,4] x) => (float[1,3,4,4] y) '
            "<float s = {0.1}, int8 z = {0}> { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
            "p = MaxPool<kernel_shape = [1, 1]>(d) r = QuantizeLinear(p, s, z) y = DequantizeLinear(r, s, z) }"
        )
    )
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))
    assert port_layouts(inferred) == {"x": "NCHW", "y": "NCHW"}
