"""Loop and Scan as MIL's while_loop. Values carried from step to step keep their shapes; values of all steps collect in lists.

Source: ONNX's definitions of Loop and Scan (opset 21); coremltools MIL ops, iOS15 control_flow.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.exporters.coreml.constants import INT32
from compiler.exporters.coreml.context import (
    Context,
    Unsupported,
    int_attr,
    ints_attr,
    is_fixed,
    is_used,
    known_shape,
    optional_input,
)
from compiler.exporters.coreml.lowering.control import compute_wide, flat, inlined, scalar, set_results, wide
from compiler.exporters.coreml.lowering.table import LOWERINGS
from compiler.exporters.coreml.target import Var
from compiler.passes.carried import constant_steps

if TYPE_CHECKING:
    import onnx_ir as ir

_ENDLESS_REMEDY = "Give the loop a number of steps, or a condition."


@dataclass(frozen=True, slots=True)
class _Collected:
    """What the body gives as its output ``end`` in every step, together the node's output ``index``, along ``axis``."""

    index: int
    end: int
    axis: int = 0
    backwards: bool = False


@LOWERINGS.lowers("Loop")
def loop(ctx: Context, node: ir.Node) -> None:
    """while i < steps and condition: (i, condition, *carried) = (i + 1, *body(i, condition, *carried))."""
    body, carried = node.attributes["body"].as_graph(), len(node.inputs) - 2
    compute_wide(ctx, node)
    steps, condition = _steps(ctx, node), scalar(ctx, node, 1)
    if steps is None and condition is None:
        raise Unsupported("it has neither a number of steps nor a condition", _ENDLESS_REMEDY)
    go = ctx.mb.const(val=np.ones(1, np.bool_), name=ctx.name(node, suffix="_go")) if condition is None else condition

    def goes_on(i: Var, go: Var, *_: Var) -> Var:
        less = None if steps is None else ctx.mb.less(x=i, y=steps, name=ctx.name(node, suffix="_less"))
        if condition is None:
            return less
        more = flat(ctx, go, ctx.name(node, suffix="_more"))
        return more if less is None else ctx.mb.logical_and(x=less, y=more, name=ctx.name(node, suffix="_on"))

    collected = [_Collected(k, k + 1) for k in range(carried, len(node.outputs)) if is_used(node.outputs[k])]
    values = [go, *(ctx.input(node, 2 + k) for k in range(carried))]
    run = _Run(ctx, node, body, collected, constant_steps(node))
    results = run(goes_on, lambda i, *state: [i, *state], values)
    set_results(ctx, node, results[1:])


@LOWERINGS.lowers("Scan", since=11)
def scan(ctx: Context, node: ir.Node) -> None:
    """Loop over slices of the last inputs. Before opset 9 Scan had a batch axis; the importer refuses that."""
    compute_wide(ctx, node)
    body, scans = node.attributes["body"].as_graph(), int_attr(node, "num_scan_inputs", 0)
    carried = len(node.inputs) - scans
    scanned = [ctx.input(node, carried + k) for k in range(scans)]
    axes = [axis % x.rank for axis, x in zip(ints_attr(node, "scan_input_axes", [0] * scans), scanned, strict=True)]
    steps = scanned[0].shape[axes[0]]
    if not is_fixed([steps]):
        raise Unsupported("it scans a flexible axis", "Fix the number of steps.")
    backwards = ints_attr(node, "scan_input_directions", [0] * scans)

    def slices(i: Var, *state: Var) -> list[Var]:
        places = [_place(ctx, node, i, int(steps), bool(turned)) for turned in backwards]
        parts = [
            ctx.mb.gather(x=x, indices=place, axis=axis, name=ctx.names.claim(f"{x.name}_step"))
            for x, place, axis in zip(scanned, places, axes, strict=True)
        ]
        return [*state, *parts]

    given = len(node.outputs) - carried
    to, turned = (ints_attr(node, f"scan_output_{kind}", [0] * given) for kind in ("axes", "directions"))
    collected = [
        _Collected(carried + k, carried + k, to[k], bool(turned[k]))
        for k in range(given)
        if is_used(node.outputs[carried + k])
    ]

    def goes_on(i: Var, *_: Var) -> Var:
        return ctx.mb.less(x=i, y=np.int32(steps), name=ctx.name(node, suffix="_less"))

    run = _Run(ctx, node, body, collected, int(steps))
    results = run(goes_on, slices, [ctx.input(node, k) for k in range(carried)])
    set_results(ctx, node, results)


@dataclass(frozen=True, slots=True)
class _Run:
    """One while_loop. ``steps``: how many there will be, None where run time decides."""

    ctx: Context
    node: ir.Node
    body: ir.Graph
    collected: Sequence[_Collected]
    steps: int | None

    def __call__(
        self, goes_on: Callable[..., Var], operands: Callable[..., list[Var]], values: Sequence[Var]
    ) -> Sequence[Var]:
        """What becomes of ``values``; what is collected is set.

        Args:
            goes_on: from the step number and the values, whether there is another step.
            operands: from the same, what the body is given.
        """
        ctx, node = self.ctx, self.node
        start = ctx.mb.const(val=np.int32(0), name=ctx.name(node, suffix="_start"))
        lists = [self._list(one) for one in self.collected]

        def step(i: Var, *state: Var) -> list[Var]:
            ends = inlined(ctx, self.body, operands(i, *state[: len(values)]))
            written = [
                self._write(one, i, ls, ends[one.end])
                for one, ls in zip(self.collected, state[len(values) :], strict=True)
            ]
            following = ctx.mb.add(x=i, y=np.int32(1), name=ctx.name(node, suffix="_next"))
            return [following, *(wide(ctx, end) for end in ends[: len(values)]), *written]

        count, *results = ctx.mb.while_loop(
            _cond=goes_on,
            _body=step,
            loop_vars=(start, *(wide(ctx, value) for value in values), *lists),
            name=ctx.name(node),
        )
        for one, ls in zip(self.collected, results[len(values) :], strict=True):
            self._gather(one, ls, count)
        return list(results[: len(values)])

    def _list(self, one: _Collected) -> Any:
        end = self.body.outputs[one.end]
        shape, dtype = known_shape(end), _list_type(end)
        if not is_fixed(shape):
            raise Unsupported(
                f"it collects {end.name!r}, whose shape is not known", "State the shape of what it gives."
            )
        name = self.ctx.name(self.node, one.index, "_list")
        length = self.steps or 1
        return self.ctx.mb.make_list(
            init_length=length, dynamic_length=self.steps is None, elem_shape=shape or (1,), dtype=dtype, name=name
        )

    def _write(self, one: _Collected, i: Var, ls: Any, end: Var) -> Any:
        ctx, node = self.ctx, self.node
        place = _place(ctx, node, i, self.steps or 0, one.backwards)
        name = ctx.name(node, one.index, "_written")
        return ctx.mb.list_write(ls=ls, index=place, value=wide(ctx, end), name=name)

    def _gather(self, one: _Collected, ls: Any, count: Var) -> None:
        """All elements. Where run time decides how many, the reshape fails there if they are not as many as the hub says."""
        ctx, output = self.ctx, self.node.outputs[one.index]
        indices: Any = np.arange(self.steps or 0, dtype=np.int32)
        if self.steps is None:
            name = ctx.name(self.node, one.index, "_steps")
            indices = ctx.mb.range_1d(start=np.int32(0), end=count, step=np.int32(1), name=name)
        result = ctx.mb.list_gather(ls=ls, indices=indices, name=ctx.name(self.node, one.index, "_all"))
        shape, axis = known_shape(output), one.axis % len(known_shape(output))
        if tuple(result.shape[1:]) != shape[:axis] + shape[axis + 1 :] or (self.steps is None and is_fixed(shape)):
            first = shape[axis] or -1
            target = [first, *(size or 1 for size in shape[:axis] + shape[axis + 1 :])]
            result = ctx.mb.reshape(x=result, shape=target, name=ctx.name(self.node, one.index, "_shaped"))
        if axis:
            perm = [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]
            result = ctx.mb.transpose(x=result, perm=perm, name=ctx.name(self.node, one.index, "_moved"))
        result.name = ctx.name(self.node, one.index)
        ctx.set(output, result)


def _list_type(end: ir.Value) -> str:
    kind = "" if end.dtype is None else end.dtype.name
    found = {"FLOAT": "fp32", "INT32": "int32", "INT64": "int32", "BOOL": "bool"}.get(kind)
    if found is None:
        raise Unsupported(
            f"it collects {end.name!r}, and no list holds {kind or 'an unknown type'}", "Cast it to int32."
        )
    return found


def _place(ctx: Context, node: ir.Node, i: Var, steps: int, backwards: bool) -> Var:
    return ctx.mb.sub(x=np.int32(steps - 1), y=i, name=ctx.name(node, suffix="_place")) if backwards else i


def _steps(ctx: Context, node: ir.Node) -> Var | None:
    """None for no limit, which is also what a constant beyond int32 means."""
    value = optional_input(node, 0)
    if value is not None and ctx.is_constant(value) and int(ctx.weight(value).values().reshape(())) > INT32.max:
        return None
    return scalar(ctx, node, 0)
