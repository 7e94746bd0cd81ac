"""A fixed number of sessions of one model, and a bounded number of callers who may wait for one until their deadline."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence

from device_agent.errors import DeadlineExceeded, Overloaded
from runtimes.session import Array, Feeds, Session


class Pool:
    """Thread-safe; each session runs one request at a time.

    Args:
        sessions: owned from here on; ``close`` closes them.
        waiting: callers that may wait while all sessions are busy; one more is refused.
    """

    def __init__(self, sessions: Sequence[Session], waiting: int) -> None:
        self._idle: queue.LifoQueue[Session] = queue.LifoQueue()
        for session in sessions:
            self._idle.put(session)
        self._size, self._most = len(sessions), len(sessions) + waiting
        self._lock = threading.Lock()
        self._inside = 0
        self._begun: dict[int, float] = {}  # session -> when its present run began

    def run(self, feeds: Feeds, deadline: float | None = None) -> dict[str, Array]:
        """Run on the next idle session.

        Args:
            deadline: ``time.monotonic`` until which a session is waited for; None waits for ever.

        Raises:
            Overloaded: as many callers wait as may.
            DeadlineExceeded: no session became idle in time.
            InputMismatch, InferenceFailed: from the runtime.
        """
        with self._lock:
            if self._inside >= self._most:
                raise Overloaded(
                    f"{self._inside - self._size} requests wait already.",
                    remedy="Send fewer at a time, or raise queue or sessions of the model.",
                )
            self._inside += 1
        try:
            session = self._next(deadline)
            key = id(session)
            self._begun[key] = time.monotonic()
            try:
                return session.run(feeds)
            finally:
                del self._begun[key]
                self._idle.put(session)
        finally:
            with self._lock:
                self._inside -= 1

    def _next(self, deadline: float | None) -> Session:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            pass
        try:
            return self._idle.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except queue.Empty as error:
            raise too_late("No session became free before the deadline") from error

    def longest_run_s(self) -> float:
        """Age of the oldest run that has not come back; 0 when all are idle."""
        begun = list(self._begun.values())
        return time.monotonic() - min(begun) if begun else 0.0

    def close(self) -> None:
        """Waits for runs to end, and closes every session."""
        for _ in range(self._size):
            self._idle.get().close()
        self._size = 0


def too_late(what: str) -> DeadlineExceeded:
    return DeadlineExceeded(f"{what}.", remedy="Allow more time, or send fewer requests at a time.")
