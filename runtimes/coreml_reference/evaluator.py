"""Run a program: operations in order, each result rounded to its declared type, each tensor dropped after its last use.

Precision: operands in float16 are widened to float32, the whole operation (a convolution with its bias, a softmax) is
computed there, and the result is rounded to float16 once, ties to even. Apple's CPU and GPU accumulate in float16 or
float32 depending on kernel; the wider choice is the one that every target approximates.

A program that quantizes activations is computed in float64, its float32 tensors too: between dequantize and quantize integer
hardware adds up integers, which rounds nothing (docs/adr/0029-exact-between-integers.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from runtimes.coreml_reference import ops  # noqa: F401  (registers every family)
from runtimes.coreml_reference.control import CONTROL, run_control
from runtimes.coreml_reference.program import Operation, Output, Program, Ref, Value
from runtimes.coreml_reference.registry import EVALUATIONS, Call, Real, Result
from runtimes.coreml_reference.types import State, TensorList
from runtimes.errors import InferenceFailed, ModelLoadError
from runtimes.session import Array

Settle = Callable[[str, Array], Array]

# What numpy and the argument accessors raise on operands that do not fit an operation.
_OPERAND_ERRORS = (ValueError, IndexError, KeyError, TypeError, ZeroDivisionError, OverflowError, MemoryError)


@dataclass(frozen=True, slots=True)
class Step:
    """One computed tensor of a trace."""

    name: str
    op_type: str
    output: Array


class Evaluator:
    """A program ready to run.

    Args:
        settle: what becomes of a result, by its name; default: it stays what it is (shaking.py has another).

    Raises:
        ModelLoadError: the program has operations that the evaluator does not know (all are listed), or compressed
            weights that cannot be decoded.
    """

    def __init__(self, program: Program, settle: Settle | None = None) -> None:
        _refuse_unknown(program)
        self._program = program
        self._settle = settle or _as_it_is
        self._real: Real = np.float64 if "quantize" in _kinds(program.operations) else np.float32
        self._constants = dict(program.constants)
        self._steps: list[Operation] = []
        for op in program.operations:
            # Weights decode once. A chain of constexpr operations only ever reads constants.
            if op.type.startswith("constexpr_") and all(name in self._constants for name in op.reads()):
                try:
                    self._constants.update(self._apply(op, self._constants))
                except InferenceFailed as error:
                    raise ModelLoadError(error.message, remedy=error.remedy) from error
            else:
                self._steps.append(op)
        self._last_use = self._find_last_uses()

    def _find_last_uses(self) -> list[tuple[str, ...]]:
        """For each step, the names that nothing reads afterwards."""
        seen = set(self._program.outputs) | set(self._constants)
        dying: list[tuple[str, ...]] = []
        for op in reversed(self._steps):
            names = {*op.reads(), *(o.name for o in op.outputs)} - seen
            dying.append(tuple(names))
            seen |= names
        return dying[::-1]

    def run(self, feeds: Mapping[str, Array], kept: dict[str, Array] | None = None) -> dict[str, Array]:
        """Outputs by their MIL names. ``feeds`` are the program's inputs by MIL name. Raises InferenceFailed.

        ``kept``: what the program keeps between runs, by MIL name; updated if the run succeeds. Without it, zeros.
        """
        states = self._states(kept or {})
        values: dict[str, Value] = {**feeds, **states}
        for _ in self._execute(values):
            pass
        outputs = {name: self._array(values, name) for name in self._program.outputs}
        if kept is not None:
            kept.update((name, state.content) for name, state in states.items())
        return outputs

    def _states(self, kept: Mapping[str, Array]) -> dict[str, State]:
        return {
            name: State(kept[name] if name in kept else np.zeros(found.static_shape(name), found.dtype.numpy))
            for name, found in self._program.states.items()
        }

    def trace(self, feeds: Mapping[str, Array], kept: Mapping[str, Array] | None = None) -> Iterator[Step]:
        """Every tensor the program computes, in order; a consumer that keeps none of them needs no more memory than run.

        What the program keeps between runs starts as ``kept`` says, and is forgotten.
        """
        values: dict[str, Value] = {**feeds, **self._states(kept or {})}
        for op in self._execute(values, keep_last=True):
            for output in op.outputs:
                if not isinstance(values[output.name], TensorList):
                    yield Step(output.name, op.type, self._array(values, output.name))

    def _execute(self, values: dict[str, Value], *, keep_last: bool = False) -> Iterator[Operation]:
        for op, dying in zip(self._steps, self._last_use, strict=True):
            values.update(self._apply(op, values, self._constants))
            if keep_last:
                yield op
            for name in dying:
                values.pop(name, None)

    def _array(self, values: dict[str, Value], name: str) -> Array:
        value = values[name] if name in values else self._constants[name]
        if not isinstance(value, np.ndarray):
            raise InferenceFailed(f"Output {name!r} is no tensor.", remedy="Return tensors from the program.")
        return value.astype(np.float32) if value.dtype == self._real else value

    def _apply(self, op: Operation, *scopes: Mapping[str, Value]) -> dict[str, Value]:
        return _apply(op, *scopes, real=self._real, settle=self._settle)


def _refuse_unknown(program: Program) -> None:
    unknown = sorted({kind for kind in _kinds(program.operations) if kind not in EVALUATIONS and kind not in CONTROL})
    if unknown:
        raise ModelLoadError(
            f"The program uses operations that the reference evaluator does not know: {', '.join(unknown)}.",
            remedy="Run it with the coreml runtime on macOS, or add them in runtimes/coreml_reference/ops/.",
        )


def _kinds(operations: Iterable[Operation]) -> Iterator[str]:
    for op in operations:
        yield op.type
        for body in op.blocks:
            yield from _kinds(body.operations)


def _as_it_is(name: str, result: Array) -> Array:
    return result


def _apply(op: Operation, *scopes: Mapping[str, Value], real: Real, settle: Settle) -> dict[str, Value]:
    """Compute ``op``, floats in ``real``. Raises InferenceFailed naming it."""

    def resolve(arg: Ref | Value) -> Value:
        return next(scope[arg.name] for scope in scopes if arg.name in scope) if isinstance(arg, Ref) else arg

    try:
        if op.type in CONTROL:
            results = run_control(op, scopes, partial(_apply, real=real, settle=settle))
            return {o.name: _as_declared(o, _tensors(results[o.name]), real) for o in op.outputs}
        call = Call(op, {key: tuple(resolve(arg) for arg in args) for key, args in op.args.items()}, real)
        # Overflow to infinity, 0/0 and log(0) are results here, as they are on the device.
        with np.errstate(all="ignore"):
            result = EVALUATIONS.get(op.type)(call)
            return _finish(op, result, real, settle)
    except _OPERAND_ERRORS as error:
        raise InferenceFailed(
            f"{op.type} {op.name!r}: {str(error) or type(error).__name__}.",
            remedy="Check how this operation was exported; its operands do not fit the MIL documentation.",
        ) from error


def _finish(op: Operation, result: Result, real: Real, settle: Settle) -> dict[str, Value]:
    results = result if isinstance(result, tuple) else (result,)
    if len(results) < len(op.outputs):
        raise ValueError(f"yields {len(results)} outputs, the program declares {len(op.outputs)}")
    if (
        op.type == "classify"
    ):  # a name and a dictionary, which are no tensors in MIL: arrays of names and of scores here
        return {o.name: r for o, r in zip(op.outputs, results, strict=False)}
    declared = {o.name: _as_declared(o, r, real) for o, r in zip(op.outputs, results, strict=False)}
    return {name: settle(name, r) if isinstance(r, np.ndarray) else r for name, r in declared.items()}


def _tensors(value: Value) -> Array | TensorList:
    if not isinstance(value, (np.ndarray, TensorList)):
        raise ValueError(f"its block yields a {type(value).__name__}, blocks give tensors and lists")
    return value


def _as_declared(output: Output, result: Array | TensorList, real: Real) -> Array | TensorList:
    """Round to the declared type (float32 means ``real``); another shape or kind than declared is an error in the program."""
    if isinstance(result, TensorList):
        if output.type is not None:
            raise ValueError(f"yields a list, the program declares {output.name!r} as a tensor")
        return result
    result = np.asarray(result)
    if output.type is None:
        raise ValueError(f"output {output.name!r} is declared as something other than a tensor")
    declared = np.dtype(real if output.type.dtype.name == "FLOAT32" else output.type.dtype.numpy)
    if result.dtype != declared:
        if _kind(result.dtype) != _kind(declared):
            raise ValueError(f"yields {result.dtype}, the program declares {declared}")
        result = result.astype(declared)
    shape = output.type.shape
    if shape is not None and (
        len(shape) != result.ndim
        or any(want not in (None, have) for want, have in zip(shape, result.shape, strict=True))
    ):
        raise ValueError(f"yields shape {list(result.shape)}, the program declares {list(shape)}")
    return result


def _kind(dtype: np.dtype[np.generic]) -> str:
    return {"f": "float", "i": "integer", "u": "integer", "b": "bool"}.get(dtype.kind, dtype.kind)
