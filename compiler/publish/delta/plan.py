"""Plans: which segments make the new file out of the base. Each candidate is one plan; the coder measures them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compiler.publish.delta.matching import Matcher, gaps_between
from compiler.publish.delta.walkers import TensorRange, find_tensors
from runtimes.artifact.delta.format import MAX_SEGMENTS, Kind, Segment
from runtimes.artifact.delta.residuals import encode, split_planes, words

Plan = list[Segment]


def candidate_plans(base: bytes, new: bytes) -> dict[str, Plan]:
    """Plans by name: "full" (the base is not used), "tensors", and "aligned" where both files have one size."""
    plans: dict[str, Plan] = {"full": [Segment(Kind.LITERAL, 0, len(new))] if new else []}
    if not base or not new:
        return plans
    tensors = _tensor_plan(base, new)
    if len(tensors) <= MAX_SEGMENTS:
        plans["tensors"] = tensors
    if len(base) == len(new):
        plans["aligned"] = [Segment(Kind.DIFF8, 0, len(new))]
    return plans


def _tensor_plan(base: bytes, new: bytes) -> Plan:
    old_tensors, new_tensors = find_tensors(base), find_tensors(new)
    matcher = Matcher(base, gaps_between([(t.offset, t.offset + t.size) for t in old_tensors], len(base)))
    by_key = {(tensor.key, tensor.size): tensor for tensor in old_tensors}
    plan: Plan = []
    position = 0
    for tensor in new_tensors:
        plan += matcher.segments(new, position, tensor.offset)
        plan.append(_tensor_segment(base, new, by_key.get((tensor.key, tensor.size)), tensor))
        position = tensor.offset + tensor.size
    plan += matcher.segments(new, position, len(new))
    return _merged(plan)


def _tensor_segment(base: bytes, new: bytes, old: TensorRange | None, tensor: TensorRange) -> Segment:
    """The cheapest way to say one tensor: copy, residual, or (by estimated entropy) literal."""
    if old is None:
        return Segment(Kind.LITERAL, 0, tensor.size)
    before, after = (data[t.offset : t.offset + t.size] for data, t in ((base, old), (new, tensor)))
    if before == after:
        return Segment(Kind.COPY, old.offset, tensor.size)
    now = words(after, tensor.kind)
    residual = _entropy_bits(split_planes(encode(words(before, tensor.kind), now, tensor.kind)))
    if residual < _entropy_bits(split_planes(now)):
        return Segment(tensor.kind, old.offset, tensor.size)
    return Segment(Kind.LITERAL, 0, tensor.size)


def _entropy_bits(planes: list[bytes]) -> float:
    """Order-0 entropy of byte planes together, in bits: -sum(n_i * log2(n_i / n))."""
    return sum(_plane_bits(np.bincount(np.frombuffer(plane, np.uint8))) for plane in planes)


def _plane_bits(counts: NDArray[np.intp]) -> float:
    present = counts[counts > 0]
    return float(-(present * np.log2(present / present.sum())).sum())


def _merged(plan: Plan) -> Plan:
    """Neighbours that continue each other become one segment."""
    merged: Plan = []
    for segment in plan:
        last = merged[-1] if merged else None
        follows = last is not None and last.kind is segment.kind and segment.kind in (Kind.COPY, Kind.LITERAL)
        if last is not None and follows and (segment.kind is Kind.LITERAL or last.base + last.size == segment.base):
            merged[-1] = Segment(segment.kind, last.base, last.size + segment.size)
        else:
            merged.append(segment)
    return merged
