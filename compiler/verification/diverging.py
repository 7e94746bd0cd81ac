"""Where a Core ML artifact first parts from the hub that it was lowered from: its tensors, one by one, against the hub's.

The exporter names the tensor that a hub value becomes as the value, made legal (exporters/coreml/names.py). The reference evaluator
hands out every tensor; those that have a counterpart are compared in the order of the program.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler.exporters.coreml.names import sanitize
from compiler.hub_session import open_hub
from runtimes.coreml_reference.session import open_package
from runtimes.session import Array

GROUP = 64  # hub values computed in one run: they are held in memory together


@dataclass(frozen=True, slots=True)
class Divergence:
    """One tensor. ``error`` is the largest difference relative to the range of the hub's values (infinite if not finite)."""

    tensor: str
    op_type: str
    error: float
    position: int  # of the operations that the program computes, from 1

    def __str__(self) -> str:
        return f"{self.tensor!r} ({self.op_type}, operation {self.position}) is off by {self.error:.2g} of its range"


def divergences(path: Path, hub: ir.Model, feeds: Mapping[str, Array]) -> Iterator[Divergence]:
    """Every tensor that both sides compute on one sample, in the order of the program.

    Args:
        path: a package that the exporter wrote from ``hub``.
        feeds: one run's inputs, by the model's names.

    Raises:
        RuntimeFailure: the package cannot be read or run.
    """
    values = _legal_names(hub)
    with open_package(path) as session:
        steps = [(i, s.name, s.op_type) for i, s in enumerate(session.trace(feeds), 1) if s.name in values]
        for start in range(0, len(steps), GROUP):
            group = {name: (i, kind) for i, name, kind in steps[start : start + GROUP]}
            with open_hub(hub, taps=[values[name] for name in group]) as truth:
                wanted = truth.run(feeds)
            for step in session.trace(feeds):
                if step.name in group:
                    position, kind = group[step.name]
                    yield Divergence(values[step.name], kind, _error(step.output, wanted[values[step.name]]), position)


def first_diverging(path: Path, hub: ir.Model, feeds: Mapping[str, Array], limit: float) -> Divergence | None:
    """The first tensor whose error exceeds ``limit``; None if none does."""
    return next((one for one in divergences(path, hub, feeds) if not one.error <= limit), None)


def _legal_names(hub: ir.Model) -> dict[str, str]:
    """Hub values by the name of the tensor that they become; names that two values share are left out."""
    found: dict[str, str] = {}
    shared: set[str] = set()
    for node in hub.graph:
        for output in node.outputs:
            if output.name:
                name = sanitize(output.name)
                shared |= {name} & found.keys()
                found[name] = output.name
    return {name: value for name, value in found.items() if name not in shared}


def _error(got: Array, want: Array) -> float:
    if got.shape != want.shape or not np.isfinite(got.astype(np.float64)).all():
        return float("inf")
    wide = want.astype(np.float64)
    span = float(np.ptp(wide)) or float(np.abs(wide).max(initial=0.0)) or 1.0
    return float(np.abs(got.astype(np.float64) - wide).max(initial=0.0)) / span
