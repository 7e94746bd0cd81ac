"""The TFLite importer against LiteRT itself: ONNX's node tests written as .tflite and read back, and files made by others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler.errors import SourceError, UnsupportedModel
from compiler.exporters.base import ExportOptions
from compiler.exporters.tflite import EXPORTER
from compiler.hub_session import open_hub
from compiler.importers import import_model
from compiler.importers.base import ImportOptions
from compiler.importers.hub_form import to_hub
from compiler.importers.tflite.importer import to_onnx
from compiler.importers.tflite.reader import read_graph
from compiler.importers.tflite.settling import execute
from profiles.schema import Precision
from runtimes.registry import open_session
from runtimes.session import Array
from tests.conformance.outside import outside
from tests.conformance.suite import Case, suite

FLOAT = ExportOptions(precision=Precision.FP32)
EVERY = 12  # of some 500 all-float cases; all of them pass, which takes a minute


def _own_file(case: Case, folder: Path) -> Path | None:
    """The case written by the exporter, None where TFLite cannot hold it."""
    assert case.model is not None
    path = folder / f"{case.name}.tflite"
    try:
        EXPORTER.export(to_hub(case.model, ImportOptions()), path, FLOAT)
    except (UnsupportedModel, SourceError):
        return None
    return path


def test_node_tests_read_back_give_what_litert_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # These files are our own: they may run in this process.
    monkeypatch.setattr(
        "compiler.importers.tflite.settling.run_isolated", lambda target, kwargs, timeout_s: execute(**kwargs)
    )
    monkeypatch.setattr(
        "compiler.importers.tflite.importer.open_isolated", lambda path, runtime, timeout_s: open_session(path)
    )
    read, wrong = 0, []
    for case in [c for c in suite() if c.all_float and not outside(c, "tflite")][::EVERY]:
        path = _own_file(case, tmp_path)
        if path is None:
            continue
        read += 1
        imported = import_model(str(path))
        want = imported.reference.run(case.feeds)
        with open_hub(imported.model) as hub:
            got = hub.run(case.feeds)
        if not all(np.allclose(got[n], want[n], rtol=1e-4, atol=1e-5, equal_nan=True) for n in want):
            wrong.append(case.name)
    assert read > 30
    assert not wrong


def _agree(path: Path, feeds: dict[str, Array], options: ImportOptions | None = None) -> None:
    imported = import_model(str(path), options)
    want = imported.reference.run(feeds)
    with open_hub(imported.model) as hub:
        got = hub.run(feeds)
    for name, expected in want.items():
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=1e-5 * np.ptp(expected))


@pytest.mark.parametrize(
    "source", ["mnist/conv_fc_float.tflite", "ultraface/slim_320_raw.tflite", "basic_pitch/nmp.tflite"]
)
def test_files_by_other_converters(source: str, realdata: Path) -> None:
    path = realdata / source
    shapes = {name: read_graph(path).tensors[i].shape for name, i in read_graph(path).inputs}
    rng = np.random.default_rng(0)
    _agree(path, {name: rng.random(shape, np.float32) for name, shape in shapes.items()})


def test_a_free_batch_takes_the_size_asked_for(realdata: Path) -> None:
    path = realdata / "mnist" / "conv_fc_float.tflite"
    feed = np.random.default_rng(0).random((5, 28, 28, 1), np.float32)
    _agree(path, {"conv2d_input": feed}, ImportOptions(batch=5))


def test_convolutions_stay_channels_first_between_each_other(realdata: Path) -> None:
    imported = import_model(str(realdata / "ultraface" / "slim_320_raw.tflite"))
    ops = [node.op_type for node in imported.model.graph]
    assert ops.count("Conv") == 42
    assert ops.count("Transpose") == 9  # the input, and the eight heads that are reshaped channels-last


def test_all_refusals_are_listed_with_their_shapes(tmp_path: Path) -> None:
    """A file with two operators that have no ONNX form: both are named."""
    from ai_edge_litert import schema_py_generated as schema

    path = tmp_path / "two.tflite"
    case = next(c for c in suite() if c.name == "test_mul")
    written = _own_file(case, tmp_path)
    assert written is not None
    model = schema.ModelT.InitFromPackedBuf(bytearray(written.read_bytes()), 0)
    graph = model.subgraphs[0]
    graph.operators.append(graph.operators[0])
    model.operatorCodes[0].deprecatedBuiltinCode = 127
    model.operatorCodes[0].builtinCode = schema.BuiltinOperator.ATAN2
    path.write_bytes(_packed(model))
    with pytest.raises(UnsupportedModel, match=r"ATAN2.*\n.*ATAN2.*float32\[3, 4, 5\]"):
        to_onnx(read_graph(path))


def _packed(model: object) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")  # type: ignore[attr-defined]
    return bytes(builder.Output())


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, 0.99])
def test_damaged_files_are_refused(keep: float, tmp_path: Path) -> None:
    case = next(c for c in suite() if c.name == "test_conv_with_strides_padding")
    whole = _own_file(case, tmp_path)
    assert whole is not None
    data = whole.read_bytes()
    path = tmp_path / "cut.tflite"
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(SourceError) as caught:
        import_model(str(path))
    assert caught.value.remedy


def test_the_reader_survives_flipped_bytes(tmp_path: Path) -> None:
    """The parser alone, without LiteRT's own check before it: any outcome but a foreign exception."""
    case = next(c for c in suite() if c.name == "test_conv_with_strides_padding")
    whole = _own_file(case, tmp_path)
    assert whole is not None
    rng = np.random.default_rng(0)
    path, refused = tmp_path / "flipped.tflite", 0
    for _ in range(150):
        data = bytearray(whole.read_bytes())
        for place in rng.integers(8, len(data), 6):
            data[place] = int(rng.integers(256))
        path.write_bytes(data)
        try:
            to_onnx(read_graph(path))
        except (SourceError, UnsupportedModel):
            refused += 1
    assert refused > 50


def test_a_missing_file_and_an_unknown_input(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not a file"):
        import_model(str(tmp_path / "none.tflite"))
    case = next(c for c in suite() if c.name == "test_relu")
    path = _own_file(case, tmp_path)
    with pytest.raises(SourceError, match="inputs are"):
        import_model(str(path), ImportOptions(input_shapes={"other": (1,)}))
