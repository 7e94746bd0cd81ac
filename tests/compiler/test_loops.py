"""A loop of run-time steps through the whole build: its shapes, samples without a batch axis, 64-bit integers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compiler.passes.simplify import InferShapes
from compiler.pipeline import build
from compiler.request import BuildRequest
from runtimes.registry import open_session
from tests.compiler.exporters.coreml.support import parse
from tests.compiler.exporters.coreml.test_control import COUNTED

# Steps are constant, but too many to be written out; the loop grows what it carries, or collects values.
LONG = """g (float[2] x) => (float[2] z, float[600, 2] w) {
  y, all = Loop(n, , x) <body = b (int64 i, bool c, float[2] a) => (bool d, float[2] e, float[2] f) {
    d = Identity(c)
    e = Sin(a)
    f = Neg(e)
  }>
  z = Neg(y)
  w = Neg(all)
}"""
GROWING = """g (float[2] x, int64[1] n) => (float[M] z) {
  y = Loop(n, , x) <body = b (int64 i, bool c, float[] a) => (bool d, float[] e) { d = Identity(c) e = Concat<axis = 0>(a, a) }>
  z = Neg(y)
}"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loops")
    onnx.save(parse(COUNTED), folder / "counted.onnx")
    report = build(BuildRequest(str(folder / "counted.onnx"), folder / "out"))
    assert report.ok, [g for g in report.gates if not g.ok]
    return folder / "out"


def test_every_format_is_built_and_verified(built: Path) -> None:
    report = json.loads((built / "report.json").read_text("utf-8"))
    assert {(a["format"], a["precision"]) for a in report["artifacts"]} >= {
        (kind, precision) for kind in ("onnx", "coreml") for precision in ("fp32", "fp16")
    }


def test_self_test_vectors_are_whole_samples(built: Path) -> None:
    with np.load(built / "selftest.npz") as vectors:
        assert len(vectors["in/x"]) == len(vectors["out/z"]) == 2 * len(vectors["in/n"])


def test_64_bit_integers_are_fed_where_they_fit(built: Path) -> None:
    from runtimes.errors import InputMismatch

    x = np.ones((2, 3), np.float32)
    with open_session(built / "counted-fp32.mlpackage", runtime="coreml-reference") as session:
        assert np.isfinite(session.run({"x": x, "n": np.array([3])})["z"]).all()
        with pytest.raises(InputMismatch, match="carries int32"):
            session.run({"x": x, "n": np.array([2**31])})


def _shapes(text: str, **constants: np.ndarray) -> dict[str, object]:
    model = InferShapes()(ir.from_proto(parse(text, **constants))).model
    return {str(v.name): v.shape and v.shape.dims for node in model.graph for v in node.outputs}


def test_what_a_loop_carries_and_collects_has_a_shape() -> None:
    shapes = _shapes(LONG, n=np.array(600))
    assert shapes["y"] == shapes["z"] == (2,)
    assert shapes["all"] == shapes["w"] == (600, 2)


def test_what_a_loop_changes_has_none() -> None:
    assert _shapes(GROWING)["y"] is None
