"""The first tensor that parts from the hub is named: in the report, and to a person with --intermediates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from compiler.cli.main import cli
from compiler.exporters.base import ExportOptions
from compiler.exporters.coreml import EXPORTER
from compiler.request import BuildRequest
from compiler.verification.diverging import divergences, first_diverging
from profiles.schema import Format, Precision
from runtimes.coreml_reference.registry import EVALUATIONS, Call
from runtimes.session import Array
from tests.compiler.exporters.coreml.support import hub, parse
from tests.compiler.small_net import save_net

TEXT = """
net (float[1, 4] x) => (float[1, 4] y) {
  a = Mul (x, two)
  b = Sigmoid (a)
  c = Add (b, two)
  y = Tanh (c)
}
"""


def _broken(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The evaluator's own sigmoid (or another operation) is wrong from here on: what a wrong lowering looks like."""
    right = EVALUATIONS.get(kind)

    def wrong(call: Call) -> Array:
        result = right(call)
        assert isinstance(result, np.ndarray)
        return result * np.float32(1.5)

    monkeypatch.setitem(EVALUATIONS._entries, kind, wrong)


def test_the_first_wrong_tensor_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hub(parse(TEXT, two=np.float32(2)))
    path = EXPORTER.export(model, tmp_path / "x.mlpackage", ExportOptions(Precision.FP32)).path
    feeds = {"x": np.float32([[-1, 0, 1, 2]])}
    assert [d.tensor for d in divergences(path, model, feeds)] == ["a", "b", "c", "y"]
    assert first_diverging(path, model, feeds, 1e-5) is None
    _broken(monkeypatch, "sigmoid")
    first = first_diverging(path, model, feeds, 1e-5)
    assert first is not None and (first.tensor, first.op_type, first.position) == ("b", "sigmoid", 2)
    assert "'b' (sigmoid, operation 2) is off by" in str(first)


def test_a_failed_gate_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verification runs in a child, out of reach of the patch: float16 of a net that loses it is what fails here."""
    from compiler.pipeline import build

    text = "net (float[1, 8] x) => (float[1, 8] y) { s = Add (x, large) \n d = Sub (s, large) \n y = Mul (d, x) }"
    onnx.save(parse(text, large=np.float32(np.linspace(900, 1000, 8))), tmp_path / "net.onnx")
    request = BuildRequest(
        str(tmp_path / "net.onnx"), tmp_path / "out", formats=(Format.COREML,), precisions=(Precision.FP16,)
    )
    report = build(request)
    (gate,) = [g for g in report.gates if g.name == "parity"]
    assert not gate.ok and "First of all, 'd' (sub, operation" in gate.reason
    assert (
        "float16 roundings may add up to" in gate.reason and gate.limit <= 1e-2
    )  # what was measured, and what is explained
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "First of all" in page


def test_intermediates(tmp_path: Path) -> None:
    model = hub(parse(TEXT, two=np.float32(2)))
    path = EXPORTER.export(model, tmp_path / "x.mlpackage", ExportOptions(Precision.FP32)).path
    np.savez(tmp_path / "in.npz", x=np.float32([[-1, 0, 1, 2], [3, 4, 5, 6]]))
    tensors = tmp_path / "tensors.npz"
    arguments = ["run", str(path), "--inputs", str(tmp_path / "in.npz"), "-o", str(tmp_path / "out.npz")]
    done = CliRunner().invoke(cli, [*arguments, "--intermediates", str(tensors)])
    assert done.exit_code == 0, done.output
    with np.load(tensors) as found, np.load(tmp_path / "out.npz") as answers:
        assert list(found) == ["0001/mul/a", "0002/sigmoid/b", "0003/add/c", "0004/tanh/y"]
        assert np.array_equal(found["0004/tanh/y"], answers["y"][:1])
    again = CliRunner().invoke(cli, [*arguments, "--force", "--intermediates", str(tensors)])
    assert again.exit_code == 0
    save_net(tmp_path / "net.onnx")
    other = ["run", str(tmp_path / "net.onnx"), "--inputs", str(tmp_path / "im.npz"), "-o", str(tmp_path / "o.npz")]
    np.savez(tmp_path / "im.npz", image=np.zeros((1, 3, 8, 8), np.float32))
    refused = CliRunner().invoke(cli, [*other, "--intermediates", str(tmp_path / "t.npz")])
    assert refused.exit_code != 0 and "no Core ML package" in str(refused.exception)
