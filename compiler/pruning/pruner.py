"""The whole of pruning in one call, with evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.pruning.activations import sample_count, stream, take
from compiler.pruning.performing import perform
from compiler.pruning.planning import plan as make_plan
from compiler.pruning.reconstruction import Repair, reconstruct, split
from compiler.pruning.types import PruneOptions, PrunePlan, Size
from runtimes.session import SampleFeeds


@dataclass(frozen=True, slots=True)
class OutputError:
    """Difference of two models' outputs: root mean square relative to the reference's standard deviation, and largest."""

    relative_rms: float
    max_abs: float


@dataclass(frozen=True, slots=True)
class PruneEvidence:
    """What pruning did. ``cut`` is the model after removal alone, ``repaired`` after the repair; both against the whole
    model, worst output, on every fourth calibration sample: those choose the repair's ridge, but never fit it."""

    before: Size
    after: Size
    cut: OutputError
    repaired: OutputError
    repairs: tuple[Repair, ...]
    samples: int


@dataclass(frozen=True, slots=True)
class Pruned:
    model: ir.Model
    plan: PrunePlan
    evidence: PruneEvidence

    def report(self) -> dict[str, Any]:
        """The report's section: JSON types only."""
        evidence = asdict(self.evidence)
        for repair in evidence["repairs"]:  # JSON has no NaN
            repair.update({k: None for k in ("error_before", "error_after") if np.isnan(repair[k])})
        groups = [
            {"name": g.name, "channels": g.channels, "removed": len(g.removed), "cost": g.cost}
            for g in self.plan.groups
        ]
        refusals = [asdict(refusal) for refusal in self.plan.refusals]
        evidence["repairs"] = list(evidence["repairs"])
        return {"groups": groups, "refusals": refusals, "notes": list(self.plan.notes), **evidence}


def prune(
    model: ir.Model,
    feeds: SampleFeeds,
    options: PruneOptions | None = None,
    progress: Callable[[int], None] | None = None,
) -> Pruned:
    """Plan, perform and reconstruct. ``model`` is not modified.

    Args:
        model: a float hub.
        feeds: calibration samples on axis 0, named as the inputs.
        progress: called with the number of repaired consumers.

    Raises:
        DataError, InputMismatch: options or samples are bad. UnsupportedModel: nothing can be proven removable.
    """
    count = sample_count(feeds)
    plan = make_plan(model, options or PruneOptions(), feeds)
    cut = perform(model, plan)
    repaired, repairs = reconstruct(model, cut, plan, feeds, progress=progress)
    judges = split(count)[1]
    held = take(feeds, judges)
    after_cut, after_repair = (output_error(model, candidate, held) for candidate in (cut, repaired))
    return Pruned(repaired, plan, PruneEvidence(plan.before, plan.after, after_cut, after_repair, repairs, len(judges)))


def output_error(reference: ir.Model, candidate: ir.Model, feeds: SampleFeeds) -> OutputError:
    """The worst output's error of ``candidate`` against ``reference`` on ``feeds``."""
    names = [value.name or "" for value in reference.graph.outputs]
    whole = list(stream(reference, names, feeds))
    other = list(stream(candidate, names, feeds))
    worst = OutputError(0.0, 0.0)
    for name in names:
        y = np.stack([found[name] for found in whole]).astype(np.float64)
        difference = np.stack([found[name] for found in other]) - y
        rms = float(np.sqrt((difference**2).mean()) / max(float(y.std()), 1e-12))
        found = OutputError(rms, float(np.abs(difference).max()))
        worst = max(worst, found, key=lambda error: error.relative_rms)
    return worst
