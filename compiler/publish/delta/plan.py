"""Plans: which segments make the new file out of the base. Each candidate is one plan; the coder measures them."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace

from compiler.publish.delta.choosing import Chooser
from compiler.publish.delta.matching import Matcher, Span, gaps_between
from compiler.publish.delta.pairing import paired
from compiler.publish.delta.walkers import TensorRange, find_tensors
from runtimes.artifact.delta.format import Kind, Predictor, Segment

Plan = list[Segment]
MOST_SEGMENTS = 1 << 13  # their table takes 6.5 MB of the decoder's 24


def candidate_plans(base: bytes, new: bytes) -> dict[str, Plan]:
    """Plans by name: "full" (the base is not used), "tensors", and "aligned" where both files have one size and
    tensors are the smaller part."""
    plans: dict[str, Plan] = {"full": [Segment(Kind.LITERAL, 0, len(new))] if new else []}
    if not base or not new:
        return plans
    found = find_tensors(new)
    tensors = _tensor_plan(base, new, found)
    if len(tensors) <= MOST_SEGMENTS:
        plans["tensors"] = tensors
    if len(base) == len(new) and 2 * sum(t.size for t in found) < len(new):
        plans["aligned"] = [Segment(Kind.DIFF8, 0, len(new))]
    return plans


def _tensor_plan(base: bytes, new: bytes, new_tensors: list[TensorRange]) -> Plan:
    old_tensors = find_tensors(base)
    matcher = Matcher(base, gaps_between([(t.offset, t.offset + t.size) for t in old_tensors], len(base)))
    pairs = paired(base, new, old_tensors, new_tensors)
    chooser = Chooser(base, new, pairs, new_tensors)
    plan: Plan = []
    position = place = 0
    for tensor in new_tensors:
        plan += _gap_segments(base, new, (position, tensor.offset), place, matcher)
        plan.append(chooser.segment(tensor))
        position = tensor.offset + tensor.size
        old = pairs.get(tensor.offset)
        place = old.offset + old.size if old else place + position - tensor.offset
    plan += _gap_segments(base, new, (position, len(new)), place, matcher)
    return _in_decoding_order(_merged(plan))


def _gap_segments(base: bytes, new: bytes, gap: Span, place: int, matcher: Matcher) -> Plan:
    """What lies between two tensors: the base's bytes from ``place`` on if they are the same, however few, else what the
    matcher finds."""
    start, end = gap
    if start < end and base[place : place + end - start] == new[start:end]:
        return [Segment(Kind.COPY, place, end - start, start)]
    return matcher.segments(new, start, end)


def _merged(plan: Plan) -> Plan:
    """Neighbours that continue each other become one segment."""
    merged: Plan = []
    for segment in plan:
        last = merged[-1] if merged else None
        follows = last is not None and last.kind is segment.kind and segment.kind in (Kind.COPY, Kind.LITERAL)
        if last is not None and follows and (segment.kind is Kind.LITERAL or last.base + last.size == segment.base):
            merged[-1] = replace(last, size=last.size + segment.size)
        else:
            merged.append(segment)
    return merged


def _in_decoding_order(plan: Plan) -> Plan:
    """What predictors read of the result comes before them: in the file's order wherever that allows it."""
    starts = [s.result for s in plan]
    wanted: set[int] = set()
    for s in plan:
        if s.predictor in (Predictor.RESCALE, Predictor.PRODUCT):
            wanted.add(bisect_right(starts, s.right) - 1)
        if s.predictor is Predictor.PRODUCT:
            wanted.add(bisect_right(starts, s.left) - 1)

    def rank(index: int) -> int:
        return 2 if index not in wanted else int(plan[index].predictor is not Predictor.BASE)

    return [plan[index] for index in sorted(range(len(plan)), key=rank)]
