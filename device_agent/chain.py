"""Who answers: accelerator -> CPU -> last good release -> declared constant. Each step stands in when those before it fail.

A step that failed rests for a while, so that a broken delegate does not cost every request two runs; then it is tried again.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from device_agent.errors import ConfigError, DeadlineExceeded, Overloaded
from device_agent.guard import check_outputs
from device_agent.pool import Pool
from profiles.errors import EdgewrightError
from runtimes.artifact.manifest import Manifest, OutputSpec
from runtimes.errors import InferenceFailed
from runtimes.session import Array, Feeds

log = logging.getLogger(__name__)
REST_S = 60.0
CPU, LAST_GOOD, CONSTANT = "cpu", "last-good", "constant"
Declared = Mapping[str, Sequence[float]]


class Step:
    """One way to an answer. ``own``: it is the active release that answers, only by other means."""

    def __init__(self, name: str, open: Callable[[], Pool], own: bool = True) -> None:
        self.name = name
        self.open = open
        self.own = own
        self.pool: Pool | None = None
        self.rests_until = 0.0


class Answered(NamedTuple):
    """``failures`` lists the steps that failed before one answered, with their reasons; ``own`` as in ``Step``.

    ``magnitude``: the largest among the outputs.
    """

    outputs: dict[str, Array]
    step: str
    own: bool
    failures: tuple[tuple[str, str], ...] = ()
    magnitude: float = 0.0


class Chain:
    """Steps in order. Thread-safe; a step is opened when it is first needed.

    Args:
        manifest: says what a constant answer looks like.
        constant: values per output, for when every step failed.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        manifest: Manifest,
        constant: Declared | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps, self._manifest, self._clock = list(steps), manifest, clock
        self._constant = constant
        self._lock = threading.Lock()
        if constant is not None:
            constant_answer(manifest, constant, 1)  # says now what it would say in need

    def open_first(self) -> None:
        """Open the first step that can be opened, so that no request waits for it.

        Raises:
            EdgewrightError: the active release itself cannot be opened by any of its steps; what the last of them said.
        """
        said: EdgewrightError | None = None
        for step in (step for step in self._steps if step.own):
            try:
                self._opened(step)
                return
            except EdgewrightError as error:
                said = error
                self._rest(step, error)
        if said is not None:
            raise said

    def can_stand_in(self) -> bool:
        """Whether something else than the release itself could answer."""
        return self._constant is not None or any(not step.own for step in self._steps)

    def run(self, feeds: Feeds, deadline: float | None = None) -> Answered:
        """Ask each step in turn.

        Raises:
            Overloaded, DeadlineExceeded: no step is asked in place of one that is merely busy.
            EdgewrightError: every step failed and no constant is declared; what the release itself said.
        """
        failures: list[tuple[str, str]] = []
        said: EdgewrightError | None = None
        for step in self._steps:
            if step.rests_until and self._clock() < step.rests_until:
                failures.append((step.name, "rests after a failure"))
                continue
            try:
                outputs = (step.pool or self._opened(step)).run(feeds, deadline)
                magnitude = check_outputs(outputs)
                step.rests_until = 0.0
                return Answered(outputs, step.name, step.own, tuple(failures), magnitude)
            except (Overloaded, DeadlineExceeded):
                raise
            except EdgewrightError as error:
                said = said if said is not None and not step.own else error
                failures.append((step.name, str(error)))
                if len(self._steps) > 1 or self._constant is not None:
                    self._rest(step, error)
        if self._constant is not None:
            batch = next((len(a) for a in feeds.values() if a.ndim), 1)
            outputs = constant_answer(self._manifest, self._constant, batch)
            return Answered(outputs, CONSTANT, False, tuple(failures))
        raise said or InferenceFailed(
            f"Every way to an answer rests: {', '.join(f'{n} {why}' for n, why in failures)}.",
            remedy="Wait a minute, or roll the release back.",
        )

    def _opened(self, step: Step) -> Pool:
        if step.pool is None:
            with self._lock:
                if step.pool is None:
                    step.pool = step.open()
        return step.pool

    def _rest(self, step: Step, error: EdgewrightError) -> None:
        log.warning("%s cannot answer and rests for %.0f s: %s", step.name, REST_S, error)
        step.rests_until = self._clock() + REST_S

    def longest_run_s(self) -> float:
        return max((step.pool.longest_run_s() for step in self._steps if step.pool is not None), default=0.0)

    def close(self) -> None:
        for step in self._steps:
            if step.pool is not None:
                step.pool.close()
                step.pool = None


def constant_answer(manifest: Manifest, declared: Declared, batch: int) -> dict[str, Array]:
    """The declared values in the outputs' dtypes and shapes, for ``batch`` samples.

    Raises ConfigError if an output has no values, or another number of them than a sample has elements (one value fills all).
    """
    return {spec.name: _constant_output(spec, declared.get(spec.name), batch) for spec in manifest.outputs}


def _constant_output(spec: OutputSpec, values: Sequence[float] | None, batch: int) -> Array:
    shape = [batch if axis == 0 and size is None else size or 1 for axis, size in enumerate(spec.shape)]
    elements = int(np.prod(shape[1:])) if shape else 1
    if values is None or len(values) not in (1, elements):
        raise ConfigError(
            f"The constant answer has {'no' if values is None else len(values)} values for output {spec.name!r}, "
            f"a sample has {elements}.",
            remedy=f"Give 1 or {elements} numbers in models.constant.{spec.name}.",
        )
    sample = np.resize(np.asarray(values, spec.dtype), shape[1:] or ())
    return np.array(np.broadcast_to(sample, shape))
