"""The hub as bytes, and back: the same model always gives the same bytes."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from compiler.errors import SourceError
from compiler.hub import HUB_IR_VERSION

_PROTOBUF_LIMIT_BYTES = 2**31 - 1  # protobuf refuses larger messages


def to_bytes(model: ir.Model) -> bytes:
    """Serialize with IR version 10, map entries sorted, no external data.

    Raises:
        SourceError: the model is larger than a protobuf message may be (2 GiB).
    """
    size = sum(v.const_value.nbytes for g in model.graphs() for v in g.initializers.values() if v.const_value)
    if size > _PROTOBUF_LIMIT_BYTES:
        raise SourceError(
            f"The model's weights take {size} bytes; one ONNX file holds at most {_PROTOBUF_LIMIT_BYTES}.",
            remedy="Choose a smaller model: edge runtimes do not load this one.",
        )
    proto = ir.to_proto(model)
    proto.ir_version = HUB_IR_VERSION
    return proto.SerializeToString(deterministic=True)


def from_bytes(data: bytes) -> ir.Model:
    """Parse a serialized ModelProto whose tensors lie inside it.

    Raises:
        SourceError: the bytes are not an ONNX model.
    """
    try:
        return ir.from_proto(onnx.load_model_from_string(data))
    except (DecodeError, ValueError, TypeError) as error:
        raise SourceError(
            f"The bytes are not an ONNX model: {error}", remedy="Check that the file is whole and in ONNX format."
        ) from error
