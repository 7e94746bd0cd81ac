"""Ties: activations that must share one scale and zero point, as a union-find over value names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compiler.calibration.observers import Range
from compiler.quantization.params import activation_params
from compiler.quantization.rules import FIXED_INT16
from compiler.quantization.spec import QParams


class Ties:
    """Groups of activations. A group has the union of its members' ranges, or parameters that a kernel prescribes."""

    def __init__(self, ranges: Mapping[str, Range], dtype: str = "int8") -> None:
        self._dtype = dtype
        self._parent = {name: name for name in ranges}
        self._range = {name: (one.low, one.high) for name, one in ranges.items()}
        self._fixed: dict[str, QParams] = {}

    def fix(self, name: str, params: QParams) -> None:
        """Prescribe the parameters of ``name``; call before any bind."""
        self._fixed[name] = params

    def widen(self, name: str, more: Range) -> None:
        """Include ``more`` in the group's range."""
        root = self._root(name)
        low, high = self._range[root]
        self._range[root] = (min(low, more.low), max(high, more.high))

    def bind(self, one: str, other: str) -> str | None:
        """Put two activations into one group. Returns the reason where that is not possible, and changes nothing then."""
        a, b = self._root(one), self._root(other)
        if a == b:
            return None
        refusal = self._conflict(a, b)
        if refusal:
            return refusal
        fixed = self._fixed.get(a) or self._fixed.get(b)
        self._parent[b] = a
        (low_a, high_a), (low_b, high_b) = self._range[a], self._range[b]
        self._range[a] = (min(low_a, low_b), max(high_a, high_b))
        if fixed:
            self._fixed[a] = fixed
        return None

    def group(self, name: str) -> frozenset[str]:
        """Everything that shares ``name``'s scale, itself included."""
        root = self._root(name)
        return frozenset(other for other in self._parent if self._root(other) == root)

    def is_fixed(self, name: str) -> bool:
        """Whether a kernel prescribes the parameters of ``name``'s group."""
        return self._root(name) in self._fixed

    def params(self, name: str, dtype: str | None = None) -> QParams:
        """``dtype`` "int16" widens a group of int8 values; kernels prescribe one scale for all of their 16-bit outputs."""
        root, dtype = self._root(name), dtype or self._dtype
        fixed = self._fixed.get(root)
        if fixed is not None and fixed.dtype != dtype:
            scale, zero_point = FIXED_INT16
            return QParams(dtype, np.array([scale], np.float32), zero_point)
        return fixed or activation_params(*self._range[root], dtype)

    def _conflict(self, a: str, b: str) -> str | None:
        fixed_a, fixed_b = self._fixed.get(a), self._fixed.get(b)
        if fixed_a and fixed_b:
            return None if fixed_a == fixed_b else "the kernels on both sides prescribe different scales"
        fixed = fixed_a or fixed_b
        if fixed is None:
            return None
        low, high = self._range[b if fixed_a else a]
        step = float(fixed.scale[0])  # one step beyond is what a prescribed range itself leaves out (1.0 at 1/256)
        if low < fixed.low - step or high > fixed.high + step:
            return f"its range [{low:.4g}, {high:.4g}] exceeds the prescribed [{fixed.low:.4g}, {fixed.high:.4g}]"
        return None

    def _root(self, name: str) -> str:
        while self._parent[name] != name:
            self._parent[name] = self._parent[self._parent[name]]
            name = self._parent[name]
        return name
