"""The denominator is honest: LiteRT itself says which element types it can carry, and nothing else is outside for its type."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.conformance.outside import OUTSIDE, counted, outside
from tests.conformance.suite import suite

pytest.importorskip("ai_edge_litert")
CARRIED = (
    "float16",
    "bfloat16",
    "float64",
    "int64",
    "int16",
    "int8",
    "uint8",
    "uint16",
    "uint32",
    "bool",
    "int4",
    "uint4",
)
ABSENT = {"FLOAT8_E4M3FN": "float8_e4m3fn", "FLOAT8_E5M2": "float8_e5m2", "INT2": "int2"}


def _through_cast(tmp_path: Path, schema_type: str, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """What a file with CAST from float32 to ``schema_type`` and back gives for 0, 1, 1.5 and 2."""
    from ai_edge_litert.interpreter import Interpreter

    from compiler.exporters.tflite import writer

    monkeypatch.setitem(writer._TYPES, "complex64", schema_type)  # a stand-in that the exporter never writes
    graph = writer.GraphWriter()
    x, y = (graph.tensor(name, (4,), np.dtype(np.float32)) for name in "xy")
    middle = graph.tensor("middle", (4,), np.dtype(np.complex64))
    graph.operator("CAST", [x], [middle], None, to=np.dtype(np.float32))
    graph.operator("CAST", [middle], [y], None, to=np.dtype(np.float32))
    content = graph.finish([("x", x)], [("y", y)], description="", metadata={})
    session = Interpreter(model_content=bytes(content))
    session.allocate_tensors()
    session.set_tensor(session.get_input_details()[0]["index"], np.asarray([0, 1, 1.5, 2], np.float32))
    session.invoke()
    return np.asarray(session.get_tensor(session.get_output_details()[0]["index"]))


@pytest.mark.parametrize("name", CARRIED)
def test_types_in_the_denominator_have_a_kernel(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    found = _through_cast(tmp_path, name.upper(), monkeypatch)
    np.testing.assert_array_equal(found, np.asarray([0, 1, 1.5, 2], np.float32).astype(dtype).astype(np.float32))
    assert name not in OUTSIDE["tflite"]


@pytest.mark.parametrize("schema_type", ABSENT)
def test_types_outside_of_it_have_none(schema_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ABSENT[schema_type] in OUTSIDE["tflite"]
    try:
        found = _through_cast(tmp_path, schema_type, monkeypatch)
    except RuntimeError as error:
        assert "is unsupported by op Cast" in str(error)
    else:  # two bits hold 1 and -2, and nothing came back
        assert found.tolist()[1:] != [1, 1, -2]


@pytest.mark.parametrize("fmt", ["tflite", "coreml"])
def test_every_case_is_inside_or_counted_once(fmt: str) -> None:
    inside = [case for case in suite() if not outside(case, fmt)]
    assert len(inside) + sum(count for count, _ in counted(suite(), fmt)) == len(suite())
    assert all(case.model is not None and case.expected for case in inside)


def test_a_compress_whose_condition_is_a_constant_is_inside() -> None:
    cases = {case.name: case for case in suite()}
    assert not outside(cases["test_compress_0"], "tflite")
    assert "content" in outside(cases["test_unique_sorted_without_axis"], "tflite")
    # LiteRT allocates results while it runs; Core ML's shapes are known before.
    assert not outside(cases["test_nonzero_example"], "tflite")
    assert "content" in outside(cases["test_nonzero_example"], "coreml")
    assert "rank 6" in outside(cases["test_unsqueeze_three_axes"], "coreml")
