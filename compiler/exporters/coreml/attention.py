"""Attention as one operation where the target has it: softmax(Q K^T / sqrt(E) + mask) V, since iOS18.

    scores = MatMul(q, k transposed) [-> Mul or Div by a number] [-> Add(mask)] -> Softmax over the last axis -> MatMul(., v)

q and k may each be multiplied by a number first, as PyTorch's decomposition does. Only what the operation computes exactly is
taken: together the numbers must be 1 / sqrt(E), and nothing else may read what lies between.

Source: coremltools MIL ops, iOS18 transformers.py (scaled_dot_product_attention).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from compiler.exporters.coreml.context import Context, int_attr
from compiler.hub import KEEP_FLOAT32

if TYPE_CHECKING:
    import onnx_ir as ir

SINCE: Final = 18
SCALE_ERROR: Final = 1e-6  # relative; float32's own rounding of 1 / sqrt(E)


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """``inner``: the nodes that it stands for, without the last MatMul, in the graph's order."""

    query: ir.Value
    key_transposed: ir.Value
    value: ir.Value
    mask: ir.Value | None
    inner: tuple[ir.Node, ...]


def find_attentions(graph: ir.Graph) -> dict[ir.Node, Attention]:
    """By the last MatMul of each."""
    position = {node: i for i, node in enumerate(graph)}
    found = {}
    for node in graph:
        if node.op_type == "MatMul" and (attention := _match(node, position)) is not None:
            found[node] = attention
    return found


def lower_attention(ctx: Context, node: ir.Node, attention: Attention) -> None:
    """Write the operation for ``node``, the last MatMul."""
    key = ctx.var(attention.key_transposed)
    perm = [*range(key.rank - 2), key.rank - 1, key.rank - 2]
    result = ctx.mb.scaled_dot_product_attention(
        query=ctx.var(attention.query),
        key=ctx.mb.transpose(x=key, perm=perm, name=ctx.name(node, suffix="_key")),
        value=ctx.var(attention.value),
        attn_mask=None if attention.mask is None else ctx.var(attention.mask),
        name=ctx.name(node),
    )
    ctx.set(node.outputs[0], result)


def _match(last: ir.Node, position: dict[ir.Node, int]) -> Attention | None:
    softmax = _maker(last.inputs[0], "Softmax")
    value = last.inputs[1]
    if softmax is None or value is None or softmax.inputs[0] is None:
        return None
    inner: list[ir.Node] = [softmax]
    mask: ir.Value | None = None
    scores: ir.Value | None = softmax.inputs[0]
    add = _maker(scores, "Add")
    if add is not None:
        scores, mask = next(_split(add), (None, None))
        inner.append(add)
    scale, scaling, scores = _unscaled(scores)
    product = _maker(scores, "MatMul")
    if product is None:
        return None
    inner += [*scaling, product]
    query_scale, query_scaling, query = _unscaled(product.inputs[0])
    key_scale, key_scaling, key = _unscaled(product.inputs[1])
    inner += [*query_scaling, *key_scaling]
    if query is None or key is None or not _fits(softmax, query, key, value, mask):
        return None
    wanted = 1 / math.sqrt(_shape(query)[-1])
    if abs(scale * query_scale * key_scale - wanted) > SCALE_ERROR * wanted or any(map(_kept, [*inner, last])):
        return None
    return Attention(query, key, value, mask, tuple(sorted(inner, key=lambda node: position[node])))


def _maker(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes ``value``, if it is an ``op_type`` and nothing else reads the value."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.op_type != op_type or value.is_graph_output() or len(value.uses()) != 1:
        return None
    return node


def _split(add: ir.Node) -> Iterator[tuple[ir.Value | None, ir.Value | None]]:
    """Scores and mask of a sum: the scores come from a product, perhaps multiplied by a number."""
    for index in (0, 1):
        _, _, product = _unscaled(add.inputs[index])
        if _maker(product, "MatMul") is not None:
            yield add.inputs[index], add.inputs[1 - index]


def _unscaled(value: ir.Value | None) -> tuple[float, list[ir.Node], ir.Value | None]:
    """The number that ``value`` is multiplied by, the node that does it, and what is multiplied."""
    for op_type in ("Mul", "Div"):
        node = _maker(value, op_type)
        for index in (1, 0) if node is not None and op_type == "Mul" else (1,):
            if node is None:
                continue
            number = _number(node.inputs[index])
            if number:
                return (number if op_type == "Mul" else 1 / number), [node], node.inputs[1 - index]
    return 1.0, [], value


def _number(value: ir.Value | None) -> float | None:
    """A constant of rank 0, or of one element that broadcasts to any shape."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    array = np.asarray(value.const_value.numpy())
    return float(array.reshape(-1)[0]) if array.dtype.kind == "f" and array.ndim <= 1 else None


def _fits(softmax: ir.Node, query: ir.Value, key: ir.Value, value: ir.Value, mask: ir.Value | None) -> bool:
    """Static shapes of one rank of at least three and the same batch; a mask of that rank that broadcasts to the scores."""
    shapes = [_shape(v) for v in (query, key, value)]
    q, k, v = shapes
    rank = len(q)
    if rank < 3 or any(len(s) != rank or 0 in s for s in shapes) or not q[:-2] == k[:-2] == v[:-2]:
        return False
    if int_attr(softmax, "axis", -1) % rank != rank - 1:
        return False
    if mask is None:
        return True
    wanted, have = (*q[:-1], k[-1]), _shape(mask)
    return len(have) == rank and all(h in (1, w) for h, w in zip(have, wanted, strict=True))


def _shape(value: ir.Value) -> tuple[int, ...]:
    """The shape, with 0 for what is not known."""
    return tuple(d if isinstance(d, int) else 0 for d in value.shape or ())


def _kept(node: ir.Node) -> bool:
    return KEEP_FLOAT32 in node.metadata_props
