"""Better ranges: every observer of activations, and weight scales by least squares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from compiler.calibration.observers import OBSERVERS
from compiler.quantization.rescue.candidate import Bench, Candidate, candidate


def better_ranges(start: Candidate, bench: Bench) -> Iterator[tuple[str, Candidate]]:
    """Yield ``start`` planned with every other observer, and each with weight scales of least squared error."""
    for observer in OBSERVERS.names():
        calibration = start.calibration if observer == start.options.observer else None
        for weights in ("max-abs", "mse"):
            options = replace(start.options, observer=observer, weights=weights)
            if options == start.options:
                continue
            made = candidate(start.reference, bench.train, options, calibration)
            calibration = made.calibration
            yield f"observer {observer}, weights {weights}", made
