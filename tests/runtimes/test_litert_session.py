"""The LiteRT session on files from elsewhere and on a hand-built one; foreign files run in a child process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtimes.errors import InferenceFailed, InputMismatch, ModelLoadError, RuntimeMissing
from runtimes.litert_session import OPENER
from runtimes.session import SessionOptions, TensorSpec
from runtimes.tflite_runtime_session import OPENER as OLD

pytest.importorskip("ai_edge_litert")


def _relu_file(path: Path, *, dynamic: bool = False, signature: bool = True) -> Path:
    """y = max(x, 0) on float32[2,3] (or [?,3]), written with the schema alone."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as fb

    def tensor(name: str) -> object:
        t = fb.TensorT()
        t.name, t.shape, t.type = name, [2, 3], fb.TensorType.FLOAT32
        t.shapeSignature = [-1, 3] if dynamic else None
        return t

    graph, code, operator, model = fb.SubGraphT(), fb.OperatorCodeT(), fb.OperatorT(), fb.ModelT()
    graph.tensors, graph.inputs, graph.outputs = [tensor("serving_default_x:0"), tensor("Identity:0")], [0], [1]
    code.builtinCode = code.deprecatedBuiltinCode = fb.BuiltinOperator.RELU
    operator.inputs, operator.outputs = [0], [1]
    graph.operators, model.subgraphs = [operator], [graph]
    model.version, model.operatorCodes, model.buffers = 3, [code], [fb.BufferT()]
    if signature:
        definition = fb.SignatureDefT()
        definition.signatureKey = "serving_default"
        for attribute, name, index in (("inputs", "x", 0), ("outputs", "y", 1)):
            entry = fb.TensorMapT()
            entry.name, entry.tensorIndex = name, index
            setattr(definition, attribute, [entry])
        model.signatureDefs = [definition]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def test_names_come_from_the_signature_and_outputs_survive_the_next_run(tmp_path: Path) -> None:
    with OPENER.open(_relu_file(tmp_path / "m.tflite"), SessionOptions(threads=2)) as session:
        assert session.inputs == (TensorSpec("x", "float32", (2, 3)),)
        assert session.outputs == (TensorSpec("y", "float32", (2, 3)),)
        assert session.runtime.name == "litert"
        first = session.run({"x": np.full((2, 3), 2, np.float32)})["y"]
        session.run({"x": np.full((2, 3), -2, np.float32)})
        np.testing.assert_array_equal(first, np.full((2, 3), 2, np.float32))


def test_a_file_without_signature_is_read_by_tensor_names(tmp_path: Path) -> None:
    session = OPENER.open(_relu_file(tmp_path / "m.tflite", signature=False), SessionOptions())
    assert [s.name for s in (*session.inputs, *session.outputs)] == ["x", "Identity"]


def test_a_free_batch_takes_any_size(tmp_path: Path) -> None:
    session = OPENER.open(_relu_file(tmp_path / "m.tflite", dynamic=True), SessionOptions())
    assert session.inputs[0].shape == (None, 3)
    for batch in (5, 1, 5):
        x = np.linspace(-1, 1, batch * 3, dtype=np.float32).reshape(batch, 3)
        np.testing.assert_array_equal(session.run({"x": x})["y"], np.maximum(x, 0))


def test_feeds_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    session = OPENER.open(_relu_file(tmp_path / "m.tflite"), SessionOptions())
    with pytest.raises(InputMismatch, match="float64"):
        session.run({"x": np.zeros((2, 3))})
    with pytest.raises(InputMismatch, match="missing"):
        session.run({})


def test_a_closed_session_says_so(tmp_path: Path) -> None:
    session = OPENER.open(_relu_file(tmp_path / "m.tflite"), SessionOptions())
    session.close()
    session.close()
    with pytest.raises(InferenceFailed, match="closed"):
        session.run({"x": np.zeros((2, 3), np.float32)})


@pytest.mark.parametrize("content", [b"", b"\x08\x03ONNX not a flatbuffer", b"\x1c\0\0\0TFL3" + b"\xff" * 64])
def test_damaged_files_are_a_load_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"m\.tflite"):
        OPENER.open(path, SessionOptions())


def test_a_missing_file_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="Cannot read"):
        OPENER.open(tmp_path / "absent.tflite", SessionOptions())


def test_providers(tmp_path: Path) -> None:
    path = _relu_file(tmp_path / "m.tflite")
    for provider in ("xnnpack", "builtin", "reference"):
        session = OPENER.open(path, SessionOptions(provider=provider))
        assert session.run({"x": np.ones((2, 3), np.float32)})["y"].sum() == 6
    with pytest.raises(RuntimeMissing, match="no provider 'gpu'"):
        OPENER.open(path, SessionOptions(provider="gpu"))


def test_the_old_runtime_names_its_extra_where_it_is_absent(tmp_path: Path) -> None:
    if OLD.available() is None:
        assert OLD.open(_relu_file(tmp_path / "m.tflite"), SessionOptions()).inputs[0].name == "x"
        return
    with pytest.raises(RuntimeMissing) as caught:
        OLD.open(_relu_file(tmp_path / "m.tflite"), SessionOptions())
    assert "agent-tflite-runtime" in caught.value.remedy


CHILD = """
import sys; from pathlib import Path; import numpy as np
from runtimes.litert_session import OPENER; from runtimes.session import SessionOptions
session = OPENER.open(Path(sys.argv[1]), SessionOptions())
spec = session.inputs[0]
out = session.run({spec.name: np.zeros(tuple(d or 1 for d in spec.shape), spec.dtype)})
print(spec.name, spec.dtype, spec.shape, [(k, v.dtype.name, v.shape) for k, v in out.items()])
"""


def test_a_foreign_int8_file_runs(realdata: Path) -> None:
    path = realdata / "kws" / "reference_int8.tflite"
    child = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, timeout=60)
    assert child.returncode == 0, child.stderr[-2000:]
    assert "float32 (None, 49, 10, 1)" in child.stdout  # its int8 input has a scale
    assert "'float32', (1, 12)" in child.stdout
