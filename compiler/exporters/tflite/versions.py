"""The operator versions that a .tflite file must declare.

An interpreter refuses a file whose operator version it does not know, so each operator gets the lowest version that covers
what it uses. Source: ``GetBuiltinOperatorVersion`` in LiteRT's tflite/tools/versioning/op_version.cc; rules for types that
this exporter never writes (strings, complex numbers) are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from compiler.exporters.tflite.tensors import Tensor

Inputs = Sequence[Tensor | None]
Options = Mapping[str, Any]
Rule = Callable[[Inputs, Options], int]

# Version of the int8 form where no rule below says more.
_INT8 = {
    "DEPTHWISE_CONV_2D": 3,
    "MAX_POOL_2D": 2,
    "AVERAGE_POOL_2D": 2,
    "RELU": 2,
    "RELU6": 2,
    "TANH": 2,
    "LOGISTIC": 2,
    "EQUAL": 2,
    "NOT_EQUAL": 2,
    "BATCH_MATMUL": 2,
    "CONCATENATION": 2,
    "SOFTMAX": 2,
    "LOG_SOFTMAX": 2,
    "MEAN": 2,
    "MIRROR_PAD": 2,
    "REDUCE_MAX": 2,
    "REDUCE_MIN": 2,
    "RSQRT": 2,
    "LESS": 2,
    "LESS_EQUAL": 2,
    "GREATER": 2,
    "GREATER_EQUAL": 2,
    "SPLIT_V": 2,
    "SUM": 2,
    "SPACE_TO_DEPTH": 2,
    "DEPTH_TO_SPACE": 2,
    "EXP": 2,
    "LOG": 2,
    "REDUCE_PROD": 2,
    "GELU": 2,
    "DEQUANTIZE": 2,
    "TILE": 3,
    "ARG_MAX": 2,
    "ARG_MIN": 2,
    "ADD": 2,
}
# The same for int16. CONV_2D, DEPTHWISE_CONV_2D and FULLY_CONNECTED have 4, 5 and 7 for int16 weights in that source, which the
# 16x8 kernels share.
_INT16 = {
    "CONV_2D": 4,
    "DEPTHWISE_CONV_2D": 5,
    "FULLY_CONNECTED": 7,
    "TRANSPOSE_CONV": 3,
    "MUL": 4,
    "ADD": 3,
    "SUB": 5,
    "MAX_POOL_2D": 3,
    "AVERAGE_POOL_2D": 3,
    "TRANSPOSE": 5,
    "RELU": 3,
    "RELU6": 3,
    "LEAKY_RELU": 2,
    "TANH": 3,
    "LOGISTIC": 3,
    "SOFTMAX": 3,
    "MEAN": 3,
    "MIRROR_PAD": 3,
    "REDUCE_MAX": 3,
    "REDUCE_MIN": 3,
    "MAXIMUM": 4,
    "MINIMUM": 4,
    "RESIZE_BILINEAR": 4,
    "RESIZE_NEAREST_NEIGHBOR": 4,
    "BATCH_MATMUL": 3,
    "PAD": 3,
    "PADV2": 3,
    "CONCATENATION": 3,
    "GATHER": 4,
    "SLICE": 4,
    "DEQUANTIZE": 3,
    "BROADCAST_TO": 3,
}
_RULES: dict[str, Rule] = {}


def version(code: str, inputs: Inputs, options: Options) -> int:
    """The version of builtin operator ``code`` (its name in the schema) with these inputs and options."""
    if code == "QUANTIZE":
        return _quantize(inputs, options)
    data = 2 if code == "TRANSPOSE_CONV" else 0  # its first two inputs are the output's shape and the weight
    if _dtype(inputs, data) == np.int16:
        return _int16(code, inputs)
    rule = _RULES.get(code)
    if rule is not None:
        return rule(inputs, options)
    return _INT8.get(code, 1) if _dtype(inputs, 0) == np.int8 else 1


def _int16(code: str, inputs: Inputs) -> int:
    if code == "TRANSPOSE" and _rank(inputs[:1]) > 5:
        return 6
    return max(_INT16.get(code, 1), 4 if code in ("PAD", "PADV2", "STRIDED_SLICE") and _rank(inputs[:1]) > 4 else 1)


def _rule(*codes: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(codes, rule))
        return rule

    return register


def _dtype(inputs: Inputs, position: int) -> np.dtype[Any] | None:
    tensor = inputs[position] if position < len(inputs) else None
    return None if tensor is None else tensor.dtype


def _rank(inputs: Inputs) -> int:
    return max((len(tensor.shape) for tensor in inputs if tensor is not None), default=0)


def _broadcasts(inputs: Inputs) -> bool:
    return len({tensor.shape for tensor in inputs[:2] if tensor is not None}) > 1


def _int8(inputs: Inputs, yes: int, no: int = 1) -> int:
    return yes if _dtype(inputs, 0) == np.int8 else no


def _hybrid(inputs: Inputs) -> bool:
    """Integer weights under a float input: the kernel quantizes what comes."""
    return _dtype(inputs, 0) == np.float32 and _dtype(inputs, 1) == np.int8


def _per_channel(inputs: Inputs, position: int) -> bool:
    tensor = inputs[position]
    return tensor is not None and tensor.quant is not None and not tensor.quant.per_tensor


@_rule("CONV_2D")
def _conv(inputs: Inputs, options: Options) -> int:
    data, weight = inputs[0], inputs[1]
    assert data is not None and weight is not None
    if data.shape[3] != weight.shape[3]:
        return 6
    return _int8(inputs, 3) if not _hybrid(inputs) else 5 if _per_channel(inputs, 1) else 2


@_rule("DEPTHWISE_CONV_2D")
def _depthwise(inputs: Inputs, options: Options) -> int:
    dilated = options["dilationHFactor"] != 1 or options["dilationWFactor"] != 1
    if _hybrid(inputs):
        return 6 if _per_channel(inputs, 1) else 4
    return _int8(inputs, 3, 2 if dilated else 1)


@_rule("TRANSPOSE_CONV")
def _transpose_conv(inputs: Inputs, options: Options) -> int:
    if len(inputs) == 4:
        return 3
    return 2 if _dtype(inputs, 1) == np.int8 else 1


@_rule("FULLY_CONNECTED")
def _fully_connected(inputs: Inputs, options: Options) -> int:
    if _hybrid(inputs) and _per_channel(inputs, 1):
        return 12
    if len(inputs) == 2:
        return 6
    if options.get("keepNumDims"):
        return 5
    return _int8(inputs, 4, 9 if _hybrid(inputs) else 1)


@_rule("GATHER")
def _gather(inputs: Inputs, options: Options) -> int:
    return 3 if _dtype(inputs, 0) == np.bool_ else _int8(inputs, 2)


@_rule("MUL")
def _mul(inputs: Inputs, options: Options) -> int:
    if _dtype(inputs, 0) == np.int64:
        return 5
    # Version 3 is for s1 * s2 / s_out >= 1; declaring it always costs nothing and the output is not at hand here.
    return _int8(inputs, 3)


@_rule("ADD")
def _add(inputs: Inputs, options: Options) -> int:
    return 4 if _dtype(inputs, 0) == np.int64 else _int8(inputs, 2)


@_rule("SUB")
def _sub(inputs: Inputs, options: Options) -> int:
    if _dtype(inputs, 0) == np.int64:
        return 4
    return 3 if _broadcasts(inputs) and _rank(inputs) > 4 else _int8(inputs, 2)


@_rule("DIV")
def _div(inputs: Inputs, options: Options) -> int:
    return 2 if _broadcasts(inputs) and _rank(inputs) > 4 else 1


@_rule("MAXIMUM", "MINIMUM")
def _extremum(inputs: Inputs, options: Options) -> int:
    return 3 if _broadcasts(inputs) and _rank(inputs) > 4 else _int8(inputs, 2)


@_rule("TRANSPOSE")
def _transpose(inputs: Inputs, options: Options) -> int:
    rank = _rank(inputs[:1])
    if rank > 4:
        return 6 if rank > 5 else 4
    return 3 if _dtype(inputs, 0) == np.bool_ else _int8(inputs, 2)


@_rule("SPLIT")
def _split(inputs: Inputs, options: Options) -> int:
    return {np.dtype(np.int32): 3, np.dtype(np.int8): 2}.get(_dtype(inputs, 1) or np.dtype(np.float32), 1)


@_rule("STRIDED_SLICE")
def _strided_slice(inputs: Inputs, options: Options) -> int:
    if _rank(inputs[:1]) > 4:
        return 4
    return 3 if _dtype(inputs, 0) == np.bool_ else _int8(inputs, 2)


@_rule("PAD", "PADV2")
def _pad(inputs: Inputs, options: Options) -> int:
    if _dtype(inputs, 0) == np.bool_:
        return 5
    return 4 if _rank(inputs[:1]) > 4 else _int8(inputs, 2)


@_rule("DEQUANTIZE")
def _dequantize(inputs: Inputs, options: Options) -> int:
    if _dtype(inputs, 0) == ml_dtypes.int4:
        return 6
    if _dtype(inputs, 0) == np.float16:
        return 3
    return _int8(inputs, 5 if _per_channel(inputs, 0) else 2)


@_rule("QUANTIZE")
def _quantize(inputs: Inputs, options: Options) -> int:
    return 2 if options["to"] == np.int16 else 1


@_rule("RESIZE_BILINEAR")
def _bilinear(inputs: Inputs, options: Options) -> int:
    return 3 if options.get("halfPixelCenters") else _int8(inputs, 2)


@_rule("RESIZE_NEAREST_NEIGHBOR")
def _nearest(inputs: Inputs, options: Options) -> int:
    return 3 if options.get("halfPixelCenters") or options.get("alignCorners") else _int8(inputs, 2)


@_rule("ABS")
def _abs(inputs: Inputs, options: Options) -> int:
    return 5 if _dtype(inputs, 0) == np.int32 else _int8(inputs, 2)


@_rule("SIGN")
def _sign(inputs: Inputs, options: Options) -> int:
    return 2 if _dtype(inputs, 0) == np.int32 else 1


@_rule("CAST")
def _cast(inputs: Inputs, options: Options) -> int:
    types = {_dtype(inputs, 0), options["to"]}
    if np.dtype(ml_dtypes.bfloat16) in types:
        return 7
    if _dtype(inputs, 0) == np.dtype(ml_dtypes.int4) and options["to"] == np.dtype(np.float32):
        return 6
    if np.dtype(np.float64) in types or np.dtype(np.float16) in types:
        return 5
    if np.dtype(np.uint16) in types:
        return 4
    if np.dtype(np.int8) in types:
        return 3
    return 2 if np.dtype(np.uint32) in types else 1


@_rule("BROADCAST_TO")
def _broadcast_to(inputs: Inputs, options: Options) -> int:
    return _int8(inputs, 3, 2)
