"""KERNELS against the interpreter, which refuses files that break an enforced rule, and against the planner's table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compiler.exporters.tflite.kernels import KERNELS, Kernel
from compiler.exporters.tflite.tensors import QuantParams, Tensor, per_tensor
from compiler.exporters.tflite.writer import GraphWriter
from compiler.quantization.rules import FIXED_INT16, NO_INT16, RULES, Kind

pytest.importorskip("ai_edge_litert")
SHAPE = (1, 4, 4, 2)
POOL = {"padding": 1, "strideH": 1, "strideW": 1, "filterHeight": 1, "filterWidth": 1}
# Per builtin whose output is tied to its input: more inputs, the options table and its fields.
FORMS: dict[str, tuple[list[Any], str | None, dict[str, Any]]] = {
    "SOFTMAX": ([], "SoftmaxOptions", {"beta": 1.0}),
    "LOGISTIC": ([], None, {}),
    "TANH": ([], None, {}),
    "MAX_POOL_2D": ([], "Pool2DOptions", POOL),
    "AVERAGE_POOL_2D": ([], "Pool2DOptions", POOL),
    "CONCATENATION": ([], "ConcatenationOptions", {"axis": 3}),
    "RESHAPE": ([SHAPE], None, {}),
    "TRANSPOSE": ([(0, 1, 2, 3)], None, {}),
    "PAD": ([[(0, 0)] * 4], "PadOptions", {}),
    "GATHER": ([(0, 1)], "GatherOptions", {"axis": 3}),
    "TILE": ([(1, 1, 1, 1)], None, {}),
    "RESIZE_BILINEAR": ([(4, 4)], "ResizeBilinearOptions", {}),
    "STRIDED_SLICE": ([(0, 0, 0, 0), SHAPE, (1, 1, 1, 1)], "StridedSliceOptions", {}),
}
TIED = {kernel.code: kernel for kernel in KERNELS.values() if kernel.code in FORMS}


def accepted(code: str, source: QuantParams, result: QuantParams) -> bool:
    """Whether the interpreter takes one operator with these parameters of its input and output, delegates left out."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    writer = GraphWriter()
    x = writer.tensor("x", SHAPE, source.dtype, source)
    y = writer.tensor("y", SHAPE, result.dtype, result)
    more, options, fields = FORMS[code]
    arguments: list[Tensor | None] = [x, *(writer.constant("c", np.asarray(v, np.int32)) for v in more)]
    writer.operator(code, arguments, [y], options, **fields)
    content = bytes(writer.finish([("x", x)], [("y", y)], description="", metadata={}))
    interpreter = Interpreter(
        model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    try:
        interpreter.allocate_tensors()
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("code", sorted(TIED))
def test_what_the_table_says_is_accepted(code: str) -> None:
    source = per_tensor(0.05, 3)
    assert accepted(code, source, TIED[code].fixed or source)
    wide = per_tensor(0.001, 0, bits=16)
    assert accepted(code, wide, TIED[code].fixed_wide or wide) or not TIED[code].wide


@pytest.mark.parametrize("code", sorted(TIED))
def test_enforced_is_what_the_interpreter_refuses(code: str) -> None:
    source = per_tensor(0.05, 3)
    assert accepted(code, source, per_tensor(0.2, 3)) is not TIED[code].enforced


@pytest.mark.parametrize("op_type", sorted(set(RULES) & set(KERNELS)))
def test_the_planner_plans_what_the_kernels_take(op_type: str) -> None:
    rule, kernel = RULES[op_type], KERNELS[op_type]
    assert (op_type in NO_INT16) is not kernel.wide
    if kernel.same_scale:
        assert rule.kind is Kind.SAME_SCALE
    if kernel.fixed is not None:
        assert rule.kind is Kind.FIXED
        assert rule.fixed == (kernel.fixed.scale[0], kernel.fixed.zero_point[0])
        assert _wide(kernel) == FIXED_INT16


def _wide(kernel: Kernel) -> tuple[float, int]:
    assert kernel.fixed_wide is not None
    return kernel.fixed_wide.scale[0], kernel.fixed_wide.zero_point[0]


def test_every_rule_of_the_planner_has_a_kernel() -> None:
    assert set(RULES) <= set(KERNELS)
