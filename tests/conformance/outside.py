"""What a format has no representation for, as data: the cases that need one of these are outside its denominator, and no others.

A case is outside for what its inputs, outputs and operators *are*, never for what our exporters lack.
``tests/conformance/test_outside.py`` asks LiteRT itself about the types.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conformance.suite import Case

_EVERYWHERE: dict[str, str] = {
    "foreign": "an operator of another domain than ONNX's own (ai.onnx.ml, ai.onnx.preview.training, ai.onnx.preview)",
    "sequence": "sequences and optional values: a port carries one tensor",
    "string": "strings: tensors of text, and operators that split, join, match or compare them",
    "data-dependent": "the result's shape depends on the data's content (Unique, decoded images)",
    "random": "random numbers: the suite's own results cannot be reproduced, or are not given",
    "float8_e4m3fn": "type float8 (e4m3fn)",
    "float8_e4m3fnuz": "type float8 (e4m3fnuz)",
    "float8_e5m2": "type float8 (e5m2)",
    "float8_e5m2fnuz": "type float8 (e5m2fnuz)",
    "float8_e8m0fnu": "type float8 (e8m0)",
    "float4_e2m1fn": "type float4 (e2m1)",
    "int2": "type int2",
    "uint2": "type uint2",
}
OUTSIDE: dict[str, dict[str, str]] = {
    # LiteRT's schema names float8 and int2; no kernel of ai-edge-litert converts them (CAST refuses, or gives other numbers).
    "tflite": _EVERYWHERE,
    # Types: coremltools' MIL (types of the cast operation) and MLMultiArray. int64, int16, uint16, bytes and booleans are in: they
    # travel as int32. Source: coremltools docs, "Typed execution"; MIL ops cast, reshape (rank at most 5), placeholder.
    "coreml": {
        **_EVERYWHERE,
        "sized by data": "the result's shape depends on the data's content (NonZero, NonMaxSuppression)",
        "float16": "type float16: the table is about float32 programs",
        "bfloat16": "type bfloat16",
        "float64": "type float64",
        "uint32": "type uint32",
        "uint64": "type uint64",
        "int4": "type int4 at run time (weights alone can be stored so)",
        "uint4": "type uint4 at run time (weights alone can be stored so)",
        "empty": "a tensor without elements",
        "scalar input": "an input of rank 0: a multi-array has at least one axis",
        "rank": "a tensor of rank 6 or more",
    },
}
PEERS = {"onnxsim": "coreml"}


def outside(case: Case, fmt: str) -> str:
    """Why ``fmt`` cannot represent ``case``, by the first reason of its table; empty if it can."""
    reasons = OUTSIDE[PEERS.get(fmt, fmt)]
    return next((reason for construct, reason in reasons.items() if construct in case.constructs), "")


def counted(cases: Sequence[Case], fmt: str) -> list[tuple[int, str]]:
    """How many cases each reason puts outside, the most frequent first."""
    found = Counter(reason for case in cases if (reason := outside(case, fmt)))
    return [(count, reason) for reason, count in sorted(found.items(), key=lambda item: (-item[1], item[0]))]
