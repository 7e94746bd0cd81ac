"""LSTM, GRU and RNN as MIL's own recurrent operations, of any length. What these lack (peepholes, clipping, coupled gates, a
bias inside GRU's reset) runs in a loop of its own (cells.py), and is unrolled by compiler/decompose where the sequence is short.

Source: ONNX's definitions of LSTM, GRU and RNN; coremltools MIL ops, iOS15 and iOS17 recurrent.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.exporters.coreml.constants import Array
from compiler.exporters.coreml.context import (
    Context,
    Unsupported,
    int_attr,
    is_fixed,
    is_used,
    known_shape,
    optional_input,
    string_attr,
)
from compiler.exporters.coreml.lowering.cells import LOOPED_FROM, Cell, Step, gru_cell, lstm_cell, rnn_cell, run
from compiler.exporters.coreml.lowering.control import compute_wide
from compiler.exporters.coreml.lowering.table import LOWERINGS
from compiler.exporters.coreml.target import Var

if TYPE_CHECKING:
    import onnx_ir as ir

HALF_SINCE = 17  # before, the operations compute in float32 alone
_ACTIVATIONS = {"Sigmoid": "sigmoid", "Tanh": "tanh", "Relu": "relu"}
_LSTM_GATES = (0, 2, 1, 3)  # ONNX: input, output, forget, cell; MIL: input, forget, output, cell
_GRU_GATES = (1, 2, 0)  # ONNX: update, reset, hidden; MIL: reset, hidden, update


@dataclass(frozen=True, slots=True)
class _Direction:
    """One direction's constants: weights [gates * hidden, input or hidden], biases [gates * hidden], in ONNX's gate order."""

    index: int
    backwards: bool
    w: Array
    r: Array
    wb: Array
    rb: Array
    activations: tuple[str, ...]

    @property
    def hidden(self) -> int:
        return int(self.r.shape[1])


@LOWERINGS.lowers("LSTM")
def lstm(ctx: Context, node: ir.Node) -> None:
    """One bias for both products: they are added before any gate."""
    reason = _clips(node)
    if int_attr(node, "input_forget", 0):
        reason = "it couples its gates, which MIL's lstm lacks"
    if optional_input(node, 7) is not None:
        reason = "it has peepholes, whose formula MIL does not document"
    if reason is not None:
        _lower(ctx, node, ("Sigmoid", "Tanh", "Tanh"), _looped(ctx, node, reason, lstm_cell, (5, 6)))
        return

    def one(d: _Direction, x: Var, name: str) -> Sequence[Var]:
        return ctx.mb.lstm(  # type: ignore[no-any-return]
            x=x,
            initial_h=_state(ctx, node, 5, d, x),
            initial_c=_state(ctx, node, 6, d, x),
            weight_ih=ctx.array(_gates(d.w, _LSTM_GATES)),
            weight_hh=ctx.array(_gates(d.r, _LSTM_GATES)),
            bias=ctx.array(_gates(d.wb + d.rb, _LSTM_GATES)),
            output_sequence=True,
            recurrent_activation=d.activations[0],
            cell_activation=d.activations[1],
            activation=d.activations[2],
            name=name,
        )

    _lower(ctx, node, ("Sigmoid", "Tanh", "Tanh"), one)


@LOWERINGS.lowers("GRU")
def gru(ctx: Context, node: ir.Node) -> None:
    """MIL resets the product of the state, without a bias of its own: h = act(x W + b + r * (h R))."""
    reason, bias = _clips(node), ctx.constant(node, 3)
    if not int_attr(node, "linear_before_reset", 0):
        reason = "it resets its state before the product, MIL's gru behind it"
    elif bias is not None and np.any(np.split(bias, 6, axis=1)[5]):
        reason = "it has a bias inside the reset, which MIL's gru lacks"
    if reason is not None:
        _lower(ctx, node, ("Sigmoid", "Tanh"), _looped(ctx, node, reason, gru_cell, (5,)))
        return

    def one(d: _Direction, x: Var, name: str) -> Sequence[Var]:
        return ctx.mb.gru(  # type: ignore[no-any-return]
            x=x,
            initial_h=_state(ctx, node, 5, d, x),
            weight_ih=ctx.array(_gates(d.w, _GRU_GATES)),
            weight_hh=ctx.array(_gates(d.r, _GRU_GATES)),
            bias=ctx.array(_gates(d.wb + d.rb, _GRU_GATES)),
            output_sequence=True,
            recurrent_activation=d.activations[0],
            activation=d.activations[1],
            name=name,
        )

    _lower(ctx, node, ("Sigmoid", "Tanh"), one)


@LOWERINGS.lowers("RNN")
def rnn(ctx: Context, node: ir.Node) -> None:
    if (reason := _clips(node)) is not None:
        _lower(ctx, node, ("Tanh",), _looped(ctx, node, reason, rnn_cell, (5,)))
        return

    def one(d: _Direction, x: Var, name: str) -> Sequence[Var]:
        return ctx.mb.rnn(  # type: ignore[no-any-return]
            x=x,
            initial_h=_state(ctx, node, 5, d, x),
            weight_ih=ctx.array(d.w),
            weight_hh=ctx.array(d.r),
            bias=ctx.array(d.wb + d.rb),
            output_sequence=True,
            activation=d.activations[0],
            name=name,
        )

    _lower(ctx, node, ("Tanh",), one)


def _clips(node: ir.Node) -> str | None:
    return "it clips its gates, which MIL documents for the cell alone" if "clip" in node.attributes else None


def _looped(ctx: Context, node: ir.Node, reason: str, cell: Cell, states: Sequence[int]) -> Any:
    """One direction in a loop; raises Unsupported with ``reason`` where the sequence is short enough to be written out."""
    source = optional_input(node, 0)
    assert source is not None  # the operator's definition requires it
    steps = known_shape(source)[1 if int_attr(node, "layout", 0) else 0]
    if steps is None or steps < LOOPED_FROM:
        raise Unsupported(reason, "Fix the number of steps." if steps is None else "")
    compute_wide(ctx, node)
    peepholes = ctx.constant(node, 7) if node.op_type == "LSTM" else None

    def one(d: _Direction, x: Var, name: str) -> Sequence[Var]:
        step = Step(ctx, node, d.r, d.rb, d.activations, None if peepholes is None else peepholes[d.index])
        return run(step, x, d.w, d.wb, [_state(ctx, node, index, d, x) for index in states], cell, name)

    return one


def _lower(ctx: Context, node: ir.Node, defaults: Sequence[str], one: Any) -> None:
    """Each direction by ``one``, backwards on a reversed sequence; then Y, Y_h and Y_c with an axis of directions."""
    if ctx.target.version < HALF_SINCE:
        ctx.compute = "fp32"
    directions = _directions(ctx, node, defaults)
    x, layout = ctx.input(node, 0), int_attr(node, "layout", 0)
    _check_lengths(ctx, node, x.shape[1 if layout else 0])
    if layout:
        x = ctx.mb.transpose(x=x, perm=[1, 0, 2], name=ctx.name(node, suffix="_steps_first"))
    parts = [_one_way(ctx, node, d, x, one) for d in directions]
    for index, results in enumerate(zip(*parts, strict=True)):
        if index >= len(node.outputs) or not is_used(node.outputs[index]):
            continue
        axis = 1 if index == 0 else 0
        wide = [ctx.mb.expand_dims(x=part, axes=[axis], name=f"{part.name}_wide") for part in results]
        whole = wide[0] if len(wide) == 1 else ctx.mb.concat(values=wide, axis=axis, name=ctx.name(node, index, "_all"))
        if layout:
            perm = [2, 0, 1, 3] if index == 0 else [1, 0, 2]
            whole = ctx.mb.transpose(x=whole, perm=perm, name=ctx.name(node, index, "_batch_first"))
        whole.name = ctx.name(node, index)
        ctx.set(node.outputs[index], whole)


def _one_way(ctx: Context, node: ir.Node, d: _Direction, x: Var, one: Any) -> Sequence[Var]:
    """(every h [steps, batch, hidden], last h, for LSTM last c); MIL's own "reverse" does not say in which order h comes."""
    name = ctx.names.claim(f"{node.outputs[0].name or node.name}_{'backward' if d.backwards else 'forward'}")
    if not d.backwards:
        return one(d, x, name)  # type: ignore[no-any-return]
    every, *last = one(d, ctx.mb.reverse(x=x, axes=[0], name=f"{name}_reversed"), name)
    return [ctx.mb.reverse(x=every, axes=[0], name=f"{name}_in_order"), *last]


def _directions(ctx: Context, node: ir.Node, defaults: Sequence[str]) -> list[_Direction]:
    w, r, bias = (ctx.constant(node, index) for index in (1, 2, 3))
    assert w is not None and r is not None  # the operator's definition requires them
    count = r.shape[0]
    bias = np.zeros((count, 2 * r.shape[1]), np.float32) if bias is None else bias
    named = node.attributes.get("activations")
    names = [_activation(name) for name in (named.as_strings() if named is not None else [*defaults] * count)]
    kind, per = string_attr(node, "direction", "forward"), len(defaults)
    backwards = [False, True] if kind == "bidirectional" else [kind == "reverse"]
    halves = np.split(bias, 2, axis=1)
    return [
        _Direction(d, backwards[d], w[d], r[d], halves[0][d], halves[1][d], tuple(names[d * per : (d + 1) * per]))
        for d in range(count)
    ]


def _activation(name: str) -> str:
    if name not in _ACTIVATIONS:
        raise Unsupported(f"its activation {name} is none of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _check_lengths(ctx: Context, node: ir.Node, steps: Any) -> None:
    lengths = ctx.constant(node, 4)
    if lengths is not None and (not is_fixed([steps]) or np.any(lengths != steps)):
        raise Unsupported("its sequences have different lengths")


def _gates(array: Array, order: Sequence[int]) -> Array:
    """The blocks of the first axis in MIL's order."""
    blocks = np.split(array, len(order))
    return np.concatenate([blocks[k] for k in order])


def _state(ctx: Context, node: ir.Node, index: int, d: _Direction, x: Var) -> Var:
    """Operand ``index`` for one direction: [batch, hidden]; zeros where the node has none."""
    name = ctx.name(node, suffix=f"_start_{index}_{d.index}")
    if optional_input(node, index) is not None:
        axis = 1 if int_attr(node, "layout", 0) else 0
        return ctx.mb.gather(x=ctx.input(node, index), indices=np.int32(d.index), axis=axis, name=name)
    if is_fixed([x.shape[1]]):
        return ctx.mb.const(val=ctx.array(np.zeros((x.shape[1], d.hidden))), name=name)
    sizes = ctx.mb.shape(x=x, name=f"{name}_sizes")
    batch = ctx.mb.slice_by_index(x=sizes, begin=[1], end=[2], name=f"{name}_batch")
    shape = ctx.mb.concat(values=[batch, np.array([d.hidden], np.int32)], axis=0, name=f"{name}_shape")
    return ctx.mb.fill(shape=shape, value=ctx.scalar(0.0), name=name)
