"""The hub as bytes and back."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest

from compiler.errors import SourceError
from compiler.hub import HUB_IR_VERSION
from compiler.passes.serialize import from_bytes, to_bytes

MODEL = (
    '<ir_version: 9, opset_import: ["" : 21]> g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }'
)


def test_a_round_trip_changes_no_byte_after_the_ir_version_is_set() -> None:
    data = to_bytes(from_bytes(onnx.parser.parse_model(MODEL).SerializeToString()))
    assert to_bytes(from_bytes(data)) == data
    assert onnx.load_model_from_string(data).ir_version == HUB_IR_VERSION


def test_bytes_that_are_no_model_are_a_source_error() -> None:
    with pytest.raises(SourceError, match="not an ONNX model"):
        from_bytes(b"\xff\xfe not a model")
