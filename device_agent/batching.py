"""Micro-batching: requests that come together run together.

The first request of a group waits up to ``max_delay_s`` for company and runs all of them in its own thread; no thread is added, and
a group that is full does not wait. If a group's run fails, each of its requests runs alone: one bad sample spoils no other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from device_agent.chain import Answered
from device_agent.pool import too_late
from profiles.errors import EdgewrightError
from runtimes.artifact.manifest import Manifest
from runtimes.session import Feeds

Run = Callable[[Feeds, float | None], Answered]


class _Group:
    """Requests in the making: ``rows`` samples so far. ``over`` is set when every member has its answer or is on its own."""

    def __init__(self, signature: tuple[tuple[str, tuple[int, ...]], ...]) -> None:
        self.signature = signature
        self.members: list[Feeds] = []
        self.rows = 0
        self.closed = False
        self.full = threading.Event()
        self.over = threading.Event()
        self.answers: list[Answered] | None = None


class Batcher:
    """Joins requests of equal sample shapes. Thread-safe.

    Args:
        run: runs a batch; called in the thread of a group's first request.
        max_batch: most samples of a group.
    """

    def __init__(self, run: Run, max_batch: int, max_delay_s: float) -> None:
        self._run, self._max_batch, self._max_delay_s = run, max_batch, max_delay_s
        self._lock = threading.Lock()
        self._open: _Group | None = None

    def run(self, feeds: Feeds, deadline: float | None = None) -> Answered:
        """As ``Chain.run``, in company if there is any. Raises what it raises, and DeadlineExceeded."""
        rows = _rows(feeds)
        if rows is None or rows >= self._max_batch:
            return self._run(feeds, deadline)
        group, place = self._join(feeds, rows)
        if place == 0:
            self._lead(group, deadline)
        elif not group.over.wait(None if deadline is None else max(0.0, deadline - time.monotonic())):
            raise too_late("The batch was not ready before the deadline")
        return group.answers[place] if group.answers is not None else self._run(feeds, deadline)

    def _join(self, feeds: Feeds, rows: int) -> tuple[_Group, int]:
        signature = tuple((name, a.shape[1:]) for name, a in sorted(feeds.items()))
        with self._lock:
            group = self._open
            if group is None or group.closed or group.signature != signature or group.rows + rows > self._max_batch:
                group = self._open = _Group(signature)
            group.members.append(feeds)
            group.rows += rows
            if group.rows == self._max_batch:
                group.full.set()
            return group, len(group.members) - 1

    def _lead(self, group: _Group, deadline: float | None) -> None:
        wait = self._max_delay_s
        if deadline is not None:
            wait = min(wait, max(0.0, deadline - time.monotonic()))
        group.full.wait(wait)
        with self._lock:
            group.closed = True
        try:
            if len(group.members) > 1:
                group.answers = self._together(group.members, deadline)
        finally:
            group.over.set()

    def _together(self, members: list[Feeds], deadline: float | None) -> list[Answered] | None:
        try:
            joined = {name: np.concatenate([feeds[name] for feeds in members]) for name in members[0]}
            answered = self._run(joined, deadline)
        except EdgewrightError:  # also when the group is late or the model busy: each asks for itself
            return None
        return _split(answered, [_rows(feeds) or 0 for feeds in members])


def _split(answered: Answered, rows: list[int]) -> list[Answered]:
    ends = np.cumsum(rows)
    found = []
    for start, end in zip(ends - rows, ends, strict=True):
        outputs = {name: np.array(array[start:end]) for name, array in answered.outputs.items()}
        found.append(answered._replace(outputs=outputs))
    return found


def _rows(feeds: Feeds) -> int | None:
    """Samples of a request; None if its inputs do not agree on them."""
    counts = {len(array) if array.ndim else -1 for array in feeds.values()}
    number = counts.pop()
    return number if not counts and number > 0 else None


def can_batch(manifest: Manifest) -> bool:
    """Whether every input and output has a free first axis: only then do samples not touch one another."""
    shapes = [spec.shape for spec in manifest.inputs] + [spec.shape for spec in manifest.outputs]
    return all(shape and shape[0] is None for shape in shapes)
