"""Plans: which segments make the new file out of the base. Each candidate is one plan; the coder measures them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compiler.publish.delta.matching import Matcher, gaps_between
from compiler.publish.delta.walkers import TensorRange, find_tensors
from runtimes.artifact.delta.format import Kind, Segment
from runtimes.artifact.delta.residuals import Words, encode, words
from runtimes.artifact.delta.tokens import split

Plan = list[Segment]
MOST_SEGMENTS = 1 << 15  # of the format's limit: their table takes 4.5 MB of the decoder's 24


def candidate_plans(base: bytes, new: bytes) -> dict[str, Plan]:
    """Plans by name: "full" (the base is not used), "tensors", and "aligned" where both files have one size."""
    plans: dict[str, Plan] = {"full": [Segment(Kind.LITERAL, 0, len(new))] if new else []}
    if not base or not new:
        return plans
    tensors = _tensor_plan(base, new)
    if len(tensors) <= MOST_SEGMENTS:
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
        plan += _gap_segments(base, new, position, tensor.offset, plan, matcher)
        plan.append(_tensor_segment(base, new, by_key.get((tensor.key, tensor.size)), tensor))
        position = tensor.offset + tensor.size
    plan += _gap_segments(base, new, position, len(new), plan, matcher)
    return _merged(plan)


def _gap_segments(base: bytes, new: bytes, start: int, end: int, plan: Plan, matcher: Matcher) -> Plan:
    """What lies between two tensors: the base's next bytes if they are the same, however few, else what the matcher finds."""
    place = plan[-1].base + plan[-1].size if plan and plan[-1].kind is not Kind.LITERAL else 0
    if start < end and base[place : place + end - start] == new[start:end]:
        return [Segment(Kind.COPY, place, end - start)]
    return matcher.segments(new, start, end)


def _tensor_segment(base: bytes, new: bytes, old: TensorRange | None, tensor: TensorRange) -> Segment:
    """The cheapest way to say one tensor: copy, residual, or (by estimated entropy) literal."""
    if old is None:
        return Segment(Kind.LITERAL, 0, tensor.size)
    before, after = (data[t.offset : t.offset + t.size] for data, t in ((base, old), (new, tensor)))
    if before == after:
        return Segment(Kind.COPY, old.offset, tensor.size)
    now = words(after, tensor.kind)
    residual = _residual_bits(encode(words(before, tensor.kind), now, tensor.kind))
    if residual < sum(_plane_bits(plane) for plane in now.view(np.uint8).reshape(-1, now.itemsize).T):
        return Segment(tensor.kind, old.offset, tensor.size)
    return Segment(Kind.LITERAL, 0, tensor.size)


def _residual_bits(residuals: Words) -> float:
    """Order-0 entropy of bytes or of tokens, with the extra bits of those."""
    if residuals.itemsize == 1:
        return _plane_bits(residuals.astype(np.uint8))
    tokens, _, counts = split(residuals)
    return _plane_bits(tokens) + float(counts.sum())


def _plane_bits(plane: NDArray[np.uint8]) -> float:
    """-sum(n_i * log2(n_i / n))."""
    counts = np.bincount(plane)
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
