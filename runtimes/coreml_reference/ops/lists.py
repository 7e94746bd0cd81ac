"""Lists of tensors, which loops write element by element. Source: coremltools MIL ops, iOS15 control_flow.py.

The documentation leaves open what an element is that nothing was written to: reading one is an error here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from runtimes.coreml_reference.registry import Call, evaluates
from runtimes.coreml_reference.types import CAST_NAMES, TensorList, check_size
from runtimes.session import Array

MAX_LENGTH = 1 << 20  # a longer list is a damaged index, not a model


@evaluates("make_list")
def make_list(call: Call) -> TensorList:
    """Shapes may name sizes that are known at run time alone."""
    shape = tuple(size if isinstance(size, int) else None for size in call.names("elem_shape"))
    dtype = CAST_NAMES.get(call.str("dtype", "fp32"))
    if dtype is None:
        raise ValueError(f"lists hold no {call.str('dtype')}")
    check_size([size or 1 for size in shape], np.dtype(dtype).itemsize)
    length = _checked_length(call.int("init_length", 1))
    return TensorList((None,) * length, dtype, shape, call.bool("dynamic_length", True))


@evaluates("list_length")
def list_length(call: Call) -> Array:
    return np.asarray(len(call.tensor_list("ls").elements), np.int32)


@evaluates("list_write")
def list_write(call: Call) -> TensorList:
    return _written(call.tensor_list("ls"), [call.int("index")], call["value"][np.newaxis])


@evaluates("list_scatter")
def list_scatter(call: Call) -> TensorList:
    return _written(call.tensor_list("ls"), call.ints("indices"), call["value"])


@evaluates("list_read")
def list_read(call: Call) -> Array:
    return _read(call.tensor_list("ls"), call.int("index"))


@evaluates("list_gather")
def list_gather(call: Call) -> Array:
    values, indices = call.tensor_list("ls"), call.ints("indices")
    if not indices:
        return np.zeros((0, *(size or 0 for size in values.shape)), values.dtype)
    return np.stack([_read(values, index) for index in indices])


def _written(values: TensorList, indices: list[int], rows: Array) -> TensorList:
    """``rows`` [count, ...] at ``indices``. Raises ValueError where they do not fit."""
    if len(rows) != len(indices):
        raise ValueError(f"{len(rows)} values for {len(indices)} indices")
    fits = len(values.shape) == rows.ndim - 1 and all(
        want in (None, have) for want, have in zip(values.shape, rows.shape[1:], strict=True)
    )
    if not fits or np.dtype(values.dtype) != rows.dtype:
        raise ValueError(
            f"an element of {rows.dtype}{list(rows.shape[1:])} in a list of {values.dtype}{list(values.shape)}"
        )
    elements = list(values.elements)
    for index, row in zip(indices, rows, strict=True):
        _check_index(index, _checked_length(index + 1) if values.dynamic else len(elements))
        elements += [None] * (index + 1 - len(elements))
        elements[index] = row
    return replace(values, elements=tuple(elements))


def _read(values: TensorList, index: int) -> Array:
    _check_index(index, len(values.elements))
    element = values.elements[index]
    if element is None:
        raise ValueError(f"element {index} of the list was never written")
    return element


def _check_index(index: int, length: int) -> None:
    if not 0 <= index < length:
        raise ValueError(f"index {index} is outside a list of {length}")


def _checked_length(length: int) -> int:
    if length > MAX_LENGTH:
        raise ValueError(f"a list of {length} elements is longer than {MAX_LENGTH}")
    return max(length, 0)
