"""cond and while_loop: operations that hold blocks of operations. Source: coremltools MIL ops, iOS15 control_flow.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from runtimes.coreml_reference.program import Body, Operation, Ref, Value

CONTROL = ("cond", "while_loop")
MAX_ITERATIONS = 1_000_000

Apply = Callable[..., dict[str, Value]]


def run_control(op: Operation, scopes: tuple[Mapping[str, Value], ...], apply: Apply) -> dict[str, Value]:
    """The outputs of ``op``. ``apply`` computes one operation. Raises ValueError where blocks and operands do not fit."""
    if len(op.blocks) != 2:
        raise ValueError(f"it has {len(op.blocks)} blocks, expected 2")
    if op.type == "cond":
        pred = _look_up(op.args.get("pred", (None,))[0], scopes)
        results = _run(op.blocks[0 if _truth(pred) else 1], (), scopes, apply)
    else:
        results = _loop(op, scopes, apply)
    if len(results) != len(op.outputs):
        raise ValueError(f"its block yields {len(results)} values, the program declares {len(op.outputs)}")
    return {output.name: result for output, result in zip(op.outputs, results, strict=True)}


def _loop(op: Operation, scopes: tuple[Mapping[str, Value], ...], apply: Apply) -> tuple[Value, ...]:
    condition, body = op.blocks
    values = tuple(_look_up(arg, scopes) for arg in op.args.get("loop_vars", ()))
    for _ in range(MAX_ITERATIONS):
        goes_on = _run(condition, values, scopes, apply)
        if len(goes_on) != 1:
            raise ValueError(f"its condition yields {len(goes_on)} values, expected 1")
        if not _truth(goes_on[0]):
            return values
        values = _run(body, values, scopes, apply)
    raise ValueError(f"it still runs after {MAX_ITERATIONS} iterations")


def _run(
    body: Body, values: tuple[Value, ...], scopes: tuple[Mapping[str, Value], ...], apply: Apply
) -> tuple[Value, ...]:
    if len(values) != len(body.inputs):
        raise ValueError(f"its block takes {len(body.inputs)} values, {len(values)} are given")
    inner: dict[str, Value] = {**body.constants, **dict(zip(body.inputs, values, strict=True))}
    for operation in body.operations:
        inner.update(apply(operation, inner, *scopes))
    return tuple(_look_up(Ref(name), (inner, *scopes)) for name in body.outputs)


def _look_up(arg: Ref | Value | None, scopes: tuple[Mapping[str, Value], ...]) -> Value:
    if arg is None:
        raise ValueError("an operand is missing")
    return next(scope[arg.name] for scope in scopes if arg.name in scope) if isinstance(arg, Ref) else arg


def _truth(value: Value) -> bool:
    if not isinstance(value, np.ndarray) or value.size != 1:
        raise ValueError("its condition is no single value")
    return bool(value.reshape(()))
