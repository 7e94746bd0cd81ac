"""Better ranges: every observer of activations, and weight scales by least squares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from compiler.calibration.collect import collect_by
from compiler.calibration.observers import OBSERVERS
from compiler.quantization.rescue.candidate import Bench, Candidate, candidate


def better_ranges(start: Candidate, bench: Bench) -> Iterator[tuple[str, Candidate]]:
    """Yield ``start`` planned with every other observer, and each with weight scales of least squared error."""
    others = [name for name in OBSERVERS.names() if name != start.options.observer]
    found = collect_by(start.reference, bench.train, others) | {start.options.observer: start.calibration}
    for observer in OBSERVERS.names():
        for weights in ("max-abs", "mse"):
            options = replace(start.options, observer=observer, weights=weights)
            if options != start.options:
                yield (
                    f"observer {observer}, weights {weights}",
                    candidate(start.reference, bench.train, options, found[observer]),
                )
