"""What is done where nobody asked for anything: plain INT8, and the cheap rungs where that collapses.

Plain INT8 of a net that suits it lies between 25 and 45 dB (benchmarks/quantization); below 20 dB a tenth of the signal is noise,
and answers are lost. A few samples are enough to tell the two apart, so nets that suit INT8 pay nothing but those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from compiler.calibration.dataset import Dataset
from compiler.quantization.engine import Quantized, quantize
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.rescue.candidate import judged_on, too_few
from compiler.quantization.rescue.ladder import Climb, Goals, climb

COLLAPSED_DB: Final = 20.0
LOOK: Final = 16  # samples, spread over all of them
# What nets that suit INT8 have, not the bare 20 dB: of many attempts one may pass that by luck (ic: 20.0 held out, 18.2 elsewhere).
DEFAULT_GOALS: Final = Goals(min_sqnr_db=25.0, min_agreement=0.99, cheap=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """``reference``: the float hub behind ``quantized``. ``climb``: what was tried, None where nothing had to be."""

    quantized: Quantized
    reference: ir.Model
    climb: Climb | None = None


def quantize_or_rescue(
    hub: ir.Model,
    data: Dataset,
    options: QuantizeOptions,
    *,
    lowers: Callable[[ir.Model], str | None] = lambda model: None,
    advance: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """Quantize on all of ``data``; climb the cheap rungs where the result lies below COLLAPSED_DB. Arguments as for ``climb``.

    With too few samples to hold some out nothing is climbed. A climb that brings nothing leaves the plain result.
    """
    plain = quantize(hub, data, options)
    if too_few(data) or sqnr_db(hub, plain, data) >= COLLAPSED_DB:
        return Outcome(plain, hub)
    climbed = climb(hub, data, options, DEFAULT_GOALS, lowers=lowers, advance=advance)
    if sum(attempt.kept for attempt in climbed.attempts) == 1:
        return Outcome(plain, hub, climbed)
    return Outcome(climbed.best, climbed.reference, climbed)


def sqnr_db(hub: ir.Model, quantized: Quantized, data: Dataset) -> float:
    """Of the worst output, on a few of the samples."""
    chosen = np.unique(np.linspace(0, data.count - 1, max(LOOK, data.batch), dtype=int)).tolist()
    few = data.select(chosen)
    return judged_on(hub, few, few).score(quantized.model).sqnr_db
