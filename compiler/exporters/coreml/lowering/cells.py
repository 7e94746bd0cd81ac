"""Recurrent cells that MIL's own operations lack, step by step in a while_loop: sequences too long to be written out.

One projection of the whole sequence stands before the loop; the body holds what depends on the state. It computes in float32.

Source: ONNX's definitions of LSTM, GRU and RNN, whose gates are in the order iofc and zrh.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.exporters.coreml.constants import Array
from compiler.exporters.coreml.context import Context, float_attr, int_attr
from compiler.exporters.coreml.target import Var

if TYPE_CHECKING:
    import onnx_ir as ir

LOOPED_FROM = 65  # steps; fewer are written out by compiler/decompose
Cell = Callable[["Step", Var, Sequence[Var]], list[Var]]  # (the input's part of the gates, states) to the next states


@dataclass(frozen=True, slots=True)
class Step:
    """One direction of one node inside its loop. ``r``: [gates * hidden, hidden]; ``rb`` [gates * hidden]."""

    ctx: Context
    node: ir.Node
    r: Array
    rb: Array
    activations: tuple[str, ...]
    peephole: Array | None = None

    @property
    def hidden(self) -> int:
        return int(self.r.shape[1])

    def op(self, kind: str, **operands: Any) -> Var:
        return getattr(self.ctx.mb, kind)(**operands, name=self.ctx.name(self.node, suffix=f"_{kind}"))

    def act(self, index: int, x: Var) -> Var:
        """The activation, behind the clip if there is one."""
        limit = np.float32(float_attr(self.node, "clip", 0.0))
        x = self.op("clip", x=x, alpha=-limit, beta=limit) if limit else x
        return self.op(self.activations[index], x=x)

    def gate(self, gates: Var, index: int) -> Var:
        begin, end = index * self.hidden, (index + 1) * self.hidden
        return self.op("slice_by_index", x=gates, begin=[0, begin], end=[gates.shape[0], end])

    def product(self, h: Var, first: int, last: int) -> Var:
        """h R + b of the gates from ``first`` to before ``last``."""
        part = slice(first * self.hidden, last * self.hidden)
        return self.op("linear", x=h, weight=self.r[part].astype(np.float32), bias=self.rb[part].astype(np.float32))

    def peep(self, gate: Var, c: Var, index: int) -> Var:
        if self.peephole is None:
            return gate
        weight = np.split(self.peephole.astype(np.float32), 3)[index]
        return self.op("add", x=gate, y=self.op("mul", x=c, y=weight))


def run(step: Step, x: Var, w: Array, wb: Array, states: Sequence[Var], cell: Cell, name: str) -> list[Var]:
    """Every h [steps, batch, hidden], then the last states. ``x``: [steps, batch, input]."""
    ctx, steps = step.ctx, int(x.shape[0])
    gates = ctx.mb.linear(x=x, weight=w.astype(np.float32), bias=wb.astype(np.float32), name=f"{name}_projected")
    start = ctx.mb.const(val=np.int32(0), name=f"{name}_begin")
    shape = tuple(int(size) for size in states[0].shape)
    every = ctx.mb.make_list(
        init_length=steps, dynamic_length=False, elem_shape=shape, dtype="fp32", name=f"{name}_list"
    )

    def body(i: Var, ls: Any, *state: Var) -> list[Any]:
        following = cell(step, step.op("gather", x=gates, indices=i, axis=0), state)
        written = step.op("list_write", ls=ls, index=i, value=following[0])
        return [step.op("add", x=i, y=np.int32(1)), written, *following]

    def goes_on(i: Var, *_: Any) -> Var:
        return step.op("less", x=i, y=np.int32(steps))

    _, ls, *last = ctx.mb.while_loop(_cond=goes_on, _body=body, loop_vars=(start, every, *states), name=f"{name}_loop")
    return [ctx.mb.list_gather(ls=ls, indices=np.arange(steps, dtype=np.int32), name=name), *last]


def lstm_cell(step: Step, gates: Var, states: Sequence[Var]) -> list[Var]:
    """i, o, f = sigma(x W + h R + p c + b); c = f c + i g; h = o tanh(c). Coupled: f = 1 - i."""
    h, c = states
    total = step.op("add", x=gates, y=step.product(h, 0, 4))
    i = step.act(0, step.peep(step.gate(total, 0), c, 0))
    if int_attr(step.node, "input_forget", 0):
        kept = step.op("sub", x=np.float32(1), y=i)
    else:
        kept = step.act(0, step.peep(step.gate(total, 2), c, 2))
    new = step.op("mul", x=i, y=step.act(1, step.gate(total, 3)))
    c = step.op("add", x=step.op("mul", x=kept, y=c), y=new)
    o = step.act(0, step.peep(step.gate(total, 1), c, 1))
    return [step.op("mul", x=o, y=step.op(step.activations[2], x=c)), c]


def gru_cell(step: Step, gates: Var, states: Sequence[Var]) -> list[Var]:
    """z, r = sigma(x W + h R + b); n = tanh(x W + r (h R + b)), or tanh(x W + (r h) R + b); h = (1 - z) n + z h."""
    (h,) = states
    both = step.product(h, 0, 2)
    z = step.act(0, step.op("add", x=step.gate(gates, 0), y=step.gate(both, 0)))
    r = step.act(0, step.op("add", x=step.gate(gates, 1), y=step.gate(both, 1)))
    if int_attr(step.node, "linear_before_reset", 0):
        memory = step.op("mul", x=r, y=step.product(h, 2, 3))
    else:
        memory = step.product(step.op("mul", x=r, y=h), 2, 3)
    n = step.act(1, step.op("add", x=step.gate(gates, 2), y=memory))
    kept = step.op("mul", x=step.op("sub", x=np.float32(1), y=z), y=n)
    return [step.op("add", x=kept, y=step.op("mul", x=z, y=h))]


def rnn_cell(step: Step, gates: Var, states: Sequence[Var]) -> list[Var]:
    """h = tanh(x W + h R + b)"""
    return [step.act(0, step.op("add", x=gates, y=step.product(states[0], 0, 1)))]
