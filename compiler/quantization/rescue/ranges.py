"""Better ranges: every observer of activations, and weight scales by least squares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from compiler.calibration.collect import collect_by
from compiler.calibration.observers import OBSERVERS
from compiler.quantization.rescue.bias import correct_biases
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


def ranges_anew(start: Candidate, bench: Bench) -> Iterator[tuple[str, Candidate]]:
    """As ``better_ranges``, once the float hub has been rescaled: what suited a net that had collapsed need not suit this one."""
    if start.reference is not bench.hub:
        yield from better_ranges(start, bench)


def biases_anew(start: Candidate, bench: Bench) -> Iterator[tuple[str, Candidate]]:
    """Biases for the ranges that were chosen anew."""
    if start.reference is not bench.hub and not start.overrides:
        yield from correct_biases(start, bench)
