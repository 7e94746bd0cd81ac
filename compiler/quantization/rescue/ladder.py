"""Climbs the ladder: each rung is tried in turn, judged on held-out samples, and kept only if it helps.

The order is that of cost: what changes numbers only comes before what adds bytes. The end is always the best that was found.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import onnx_ir as ir

from compiler.calibration.dataset import Dataset
from compiler.quantization.engine import Quantized
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.rescue.adaround import round_adaptively
from compiler.quantization.rescue.bias import correct_biases
from compiler.quantization.rescue.candidate import Bench, Candidate, Score, candidate, make_bench
from compiler.quantization.rescue.equalise import equalise_layers
from compiler.quantization.rescue.heads import split_heads
from compiler.quantization.rescue.islands import keep_sensitive_in_float
from compiler.quantization.rescue.knapsack import Sensitivity
from compiler.quantization.rescue.norms import equalise_norms
from compiler.quantization.rescue.ranges import better_ranges, biases_anew, ranges_anew
from compiler.quantization.rescue.rounding import round_second_order
from compiler.quantization.rescue.swish import equalise_swish
from compiler.quantization.rescue.wide import widen_sensitive

LOGGER = logging.getLogger(__name__)

Rung = Callable[[Candidate, Bench], Iterator[tuple[str, Candidate]]]
RUNGS: Final[tuple[tuple[str, Rung], ...]] = (
    ("ranges", better_ranges),  # first: every later rung is measured under the ranges that suit best
    ("bias correction", correct_biases),
    ("equalisation", equalise_layers),  # calibrates anew and therefore brings its own bias correction
    ("equalisation through norms", equalise_norms),  # the same for transformers
    ("equalisation through swish", equalise_swish),  # the same at the price of two more nodes
    ("ranges anew", ranges_anew),  # only where one of the equalisations was kept: another net, as far as ranges go
    ("bias correction anew", biases_anew),
    ("split heads", split_heads),  # before rounding, which would be for other layers
    ("second-order rounding", round_second_order),  # after equalisation, which changes the weights it rounds
    ("AdaRound", round_adaptively),  # learns the same choice; seconds per block instead of milliseconds
    ("16-bit activations", widen_sensitive),  # slower, not larger
    ("float islands", keep_sensitive_in_float),  # last: the only rung that makes the artifact larger and slower
)
BOUGHT: Final = (
    "16-bit activations",
    "float islands",
)  # rungs that cost time or bytes: the first budget that is enough ends them
DEAR: Final = ("AdaRound", *BOUGHT)  # and those that take minutes
# Without a goal to reach there is nothing to buy with more bytes: islands are then tried up to this share only.
UNASKED_GROWTH = 0.05
UNASKED_GAIN_DB = 1.0  # and more float nodes than before, which cost conversions at run time, have to bring this much


@dataclass(frozen=True, slots=True)
class Goals:
    """What int8 has to reach on held-out samples; None asks nothing.

    ``climb_all``: try every rung, goals or not. ``cheap``: leave out those of DEAR.
    """

    min_sqnr_db: float | None = None
    min_agreement: float | None = None
    climb_all: bool = False
    cheap: bool = False

    @property
    def any(self) -> bool:
        return self.min_sqnr_db is not None or self.min_agreement is not None

    def met(self, score: Score) -> bool:
        sqnr = self.min_sqnr_db is None or score.sqnr_db >= self.min_sqnr_db
        enough = self.min_agreement is None or score.agreement is None or score.agreement >= self.min_agreement
        return sqnr and enough


@dataclass(frozen=True, slots=True)
class Attempt:
    """One line of the table. ``pareto``: no other attempt has both more signal to noise and fewer bytes."""

    rung: str
    detail: str
    sqnr_db: float
    agreement: float | None
    weight_bytes: int
    float_nodes: int
    wide_nodes: int
    seconds: float
    kept: bool
    why: str
    pareto: bool = False


@dataclass(frozen=True, slots=True)
class Climb:
    """``best`` and the float hub it was made from (equalised, if that rung was kept); every attempt in order.

    ``sensitivity``: what each node or value alone would bring, where a rung measured it.
    """

    best: Quantized
    reference: ir.Model
    attempts: tuple[Attempt, ...]
    score: Score
    met: bool
    held_out: int
    sensitivity: tuple[Sensitivity, ...] = ()


def climb(
    hub: ir.Model,
    dataset: Dataset,
    options: QuantizeOptions,
    goals: Goals,
    *,
    lowers: Callable[[ir.Model], str | None] = lambda model: None,
    advance: Callable[[int], None] = lambda done: None,
) -> Climb:
    """Quantize ``hub`` as well as the rungs can.

    Args:
        dataset: calibration samples; every fourth is held out and judges.
        lowers: why a quantized hub cannot be lowered to a wanted format, or None.
        advance: called with the number of attempts so far.

    Raises:
        DataError: too few samples to hold some out, or an activation became NaN or infinite.
    """
    bench = make_bench(hub, dataset)
    table = _Table(bench, goals, lowers, advance)
    table.judge("start", f"observer {options.observer}", candidate(hub, bench.train, options))
    for name, rung in RUNGS:
        if goals.met(table.score) and not goals.climb_all:
            break
        if not (goals.cheap and name in DEAR):
            table.climb(name, rung)
    best = table.best
    attempts = tuple(replace(a, pareto=_on_front(a, table.attempts)) for a in table.attempts)
    met, measured = goals.met(table.score), tuple(bench.sensitivity)
    return Climb(best.quantized(), best.reference, attempts, table.score, met, bench.held_out.count, measured)


class _Table:
    """The best so far, and every attempt."""

    def __init__(
        self,
        bench: Bench,
        goals: Goals,
        lowers: Callable[[ir.Model], str | None],
        advance: Callable[[int], None],
    ) -> None:
        self.attempts: list[Attempt] = []
        self.best: Candidate
        self.score: Score
        self._bench, self._goals, self._lowers, self._advance = bench, goals, lowers, advance
        self._start = time.perf_counter()

    def climb(self, name: str, rung: Rung) -> None:
        self._start = time.perf_counter()
        limit = UNASKED_GROWTH if name == "float islands" and not self._goals.any else None
        first = self.best.weight_bytes()
        for detail, made in rung(self.best, self._bench):
            if limit is not None and made.weight_bytes() > first * (1 + limit):
                return
            self.judge(name, detail, made)
            if self._goals.any and name in BOUGHT and self._goals.met(self.score):
                return  # the first budget that is enough is the cheapest

    def judge(self, name: str, detail: str, made: Candidate) -> None:
        model = made.quantized().model
        score = self._bench.score(model)
        kept, why = self._decide(score, made, model)
        now = time.perf_counter()
        self.attempts.append(
            Attempt(
                name,
                detail,
                score.sqnr_db,
                score.agreement,
                made.weight_bytes(),
                len(made.spec.float_nodes),
                len(made.spec.wide_nodes),
                now - self._start,
                kept,
                why,
            )
        )
        self._start = now
        LOGGER.info("%s (%s): %.2f dB, %s", name, detail, score.sqnr_db, why)
        if kept:
            self.best, self.score = made, score
        self._advance(len(self.attempts))

    def _decide(self, score: Score, made: Candidate, model: ir.Model) -> tuple[bool, str]:
        if not self.attempts:
            return True, "where the climb starts"
        gain = score.sqnr_db - self.score.sqnr_db
        if not score.better_than(self.score):
            return False, f"{gain:+.2f} dB" if gain <= 0 else "more answers differ from the float model's"
        dearer = _spared(made) > _spared(self.best)
        if dearer and not self._goals.any and gain < UNASKED_GAIN_DB:
            return False, f"{gain:+.2f} dB, too little for more nodes beyond int8"
        refusal = self._lowers(model)
        return (False, refusal) if refusal else (True, f"{gain:+.2f} dB")


def _spared(one: Candidate) -> int:
    """Nodes that do not compute in int8."""
    return len(one.spec.float_nodes) + len(one.spec.wide_nodes)


def _on_front(one: Attempt, attempts: list[Attempt]) -> bool:
    return not any(
        other.sqnr_db >= one.sqnr_db
        and other.weight_bytes <= one.weight_bytes
        and (other.sqnr_db, -other.weight_bytes) != (one.sqnr_db, -one.weight_bytes)
        for other in attempts
    )
