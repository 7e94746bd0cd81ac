"""Plan: which channels leave, written out as instructions."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.errors import DataError, Refusal, UnsupportedModel
from compiler.pruning.flow import Edit, Flow, analyse
from compiler.pruning.groups import Candidate, Sizer, find_groups, keep_named
from compiler.pruning.saliency import Saliency, measure
from compiler.pruning.types import (
    Cut,
    Group,
    Instruction,
    Measure,
    PruneOptions,
    PrunePlan,
    SetDimension,
    SetGroups,
)
from runtimes.session import SampleFeeds


@dataclass(slots=True)
class _Unit:
    """The next channels of a group that leave together, so that what stays is a multiple of the granularity."""

    group: Candidate
    channels: tuple[int, ...]
    cost: float


def plan(model: ir.Model, options: PruneOptions, feeds: SampleFeeds | None = None) -> PrunePlan:
    """Choose what to remove. The model is not modified.

    Args:
        model: a float hub.
        options: how much, and where not.
        feeds: calibration samples (axis 0) for the activation-aware saliencies.

    Raises:
        DataError: the saliency needs samples and there are none, or they are not usable.
        UnsupportedModel: no group of channels can be proven removable, or all are smaller than two granules; lists why.
        RegistryMiss: no such saliency.
    """
    flow = analyse(model)
    keep_named(flow, options.keep)
    candidates, refusals = find_groups(flow)
    wide = [group for group in candidates if _steps(group, options)]
    if not wide:
        raise UnsupportedModel([*refusals, *(_too_small(group, options) for group in candidates)])
    if feeds is None and options.saliency != "weight":
        raise DataError(f"Saliency {options.saliency!r} needs samples.", remedy="Give calibration data.")
    covariances = measure(flow, feeds) if feeds is not None and options.saliency != "weight" else {}
    saliency = Saliency(flow, covariances, options.saliency)
    queues = [_units(group, saliency, options) for group in wide]
    total = sum(len(group.removable) for group in candidates)
    chosen, notes = _choose(queues, Sizer(flow), total, options)
    return _write(flow, chosen, candidates, refusals, notes)


def _too_small(group: Candidate, options: PruneOptions) -> Refusal:
    reason = f"its {len(group.classes)} channels allow no cut at granularity {options.granularity}"
    return Refusal(group.name, "group", reason, "prune", "Choose a smaller granularity.")


def _steps(group: Candidate, options: PruneOptions) -> list[int]:
    """Sizes of the group's units: what stays is always a multiple of the granularity and never too little."""
    size, grain = len(group.classes), options.granularity
    least = max(grain, ceil(size * (1 - options.largest_cut)), size - len(group.removable))
    steps, kept = [], size
    while (following := (kept - 1) // grain * grain) >= least and following > 0:
        steps.append(kept - following)
        kept = following
    return steps


def _units(group: Candidate, saliency: Saliency, options: PruneOptions) -> list[_Unit]:
    steps = _steps(group, options)
    order = saliency.order(group, sum(steps))
    units: list[_Unit] = []
    removed: set[int] = set()
    for step in steps:
        part, order = order[:step], order[step:]
        channels = tuple(channel for channel, _ in part)
        removed.update(channels)
        if any(source <= removed for source in group.sources):
            break  # a producer inside the group would end without any channel
        units.append(_Unit(group, channels, sum(cost for _, cost in part)))
    return units


def _choose(
    queues: list[list[_Unit]], sizer: Sizer, total: int, options: PruneOptions
) -> tuple[list[_Unit], tuple[str, ...]]:
    """Take units, cheapest first for what they save, until the share is reached."""
    removed: set[int] = set()
    chosen: list[_Unit] = []
    before = sizer.size(()).macs
    by_macs = options.measure is Measure.MACS
    target = options.share * (before if by_macs else total)
    saved = 0.0
    queues = [list(queue) for queue in queues if queue]
    while queues and saved < target:
        macs = sizer.size(removed).macs if by_macs else 0
        gains = [
            macs - sizer.size(removed | set(q[0].channels)).macs if by_macs else len(q[0].channels) for q in queues
        ]
        best = min(range(len(queues)), key=lambda i: queues[i][0].cost / max(gains[i], 1))
        if saved + gains[best] / 2 > target:
            break  # one more unit would overshoot by more than stopping here falls short
        unit = queues[best].pop(0)
        chosen.append(unit)
        removed.update(unit.channels)
        saved += gains[best]
        queues = [queue for queue in queues if queue]
    whole = before if by_macs else total
    notes = (
        ()
        if queues or saved >= target
        else (
            f"the share asked for is {options.share:.0%}; granularity and the largest cut per group allow {saved / whole:.1%}",
        )
    )
    return chosen, notes


def _write(
    flow: Flow, chosen: list[_Unit], candidates: list[Candidate], refusals: list[Refusal], notes: tuple[str, ...]
) -> PrunePlan:
    removed = {channel for unit in chosen for channel in unit.channels}
    groups = tuple(_group(group, removed, chosen) for group in candidates)
    cuts: dict[tuple[str, int], Cut] = {}
    for binding in flow.bindings:
        at = np.flatnonzero(np.isin(flow.roots(binding.ids), list(removed)))
        if at.size:
            cut = Cut(binding.initializer, binding.axis, len(binding.ids), _ints(at), binding.role, binding.node)
            cuts.setdefault((binding.initializer, binding.axis), cut)
    edits = [edit for edit in flow.edits if np.isin(flow.roots(edit.ids), list(removed)).any()]
    instructions: tuple[Instruction, ...] = (*cuts.values(), *(_edit(flow, edit, removed) for edit in edits))
    sizer = Sizer(flow)
    return PrunePlan(groups, instructions, tuple(refusals), sizer.size(()), sizer.size(removed), notes)


def _group(group: Candidate, removed: set[int], chosen: list[_Unit]) -> Group:
    positions = tuple(i for i, channel in enumerate(group.classes) if channel in removed)
    cost = sum(unit.cost for unit in chosen if unit.group is group)
    return Group(group.name, len(group.classes), positions, group.producers, group.consumers, cost)


def _edit(flow: Flow, edit: Edit, removed: set[int]) -> SetGroups | SetDimension:
    before, gone = len(edit.ids), int(np.isin(flow.roots(edit.ids), list(removed)).sum())
    if edit.index is None:
        return SetGroups(edit.node, before, before - gone)
    return SetDimension(edit.node, edit.index, before, before - gone)


def _ints(array: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(int(entry) for entry in array)
