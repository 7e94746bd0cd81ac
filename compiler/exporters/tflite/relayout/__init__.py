"""Axis orders of all tensors, assigned over the whole graph so that the fewest elements are transposed.

config.py      one way of running an operator: an axis order per tensor that it reads or writes
families.py    which orders each builtin operator can run in, and its parameters in them
reshapes.py    which orders pass through a RESHAPE
matmul.py      BATCH_MATMUL, which can swap its operands' last axes for nothing
problem.py     operators and tensors as variables and cost tables
elimination.py the exact minimum of a sum of cost tables
fold.py        reductions that drop their axes themselves
long_means.py  int8 means that XNNPACK gets wrong, in a form that it does not
rewrite.py     the graph written again in the orders chosen
"""

from __future__ import annotations

from compiler.exporters.tflite.relayout.rewrite import Relayout, relayout

__all__ = ["Relayout", "relayout"]
