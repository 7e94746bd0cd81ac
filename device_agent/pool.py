"""A fixed number of sessions of one model, and a bounded number of callers who may wait for one until their deadline."""

from __future__ import annotations

import threading
import time
from collections import deque
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
        # append and pop of a deque are atomic: a request that finds an idle session takes no lock.
        self._idle: deque[Session] = deque(sessions)
        self._size, self._most = len(sessions), waiting
        self._returned = threading.Condition()
        self._waiting = 0
        self._begun: dict[int, float] = {}  # session -> when its present run began

    def run(self, feeds: Feeds, deadline: float | None = None) -> dict[str, Array]:
        """Run on an idle session.

        Args:
            deadline: ``time.monotonic`` until which a session is waited for; None waits for ever.

        Raises:
            Overloaded: as many callers wait as may.
            DeadlineExceeded: no session became idle in time.
            InputMismatch, InferenceFailed: from the runtime.
        """
        try:
            session = self._idle.pop()
        except IndexError:
            session = self._wait(deadline)
        key = id(session)
        self._begun[key] = time.monotonic()
        try:
            return session.run(feeds)
        finally:
            del self._begun[key]
            self._idle.append(session)
            if self._waiting:
                with self._returned:
                    self._returned.notify()

    def _wait(self, deadline: float | None) -> Session:
        with self._returned:
            if self._waiting >= self._most:
                raise Overloaded(
                    f"{self._waiting} requests wait already.",
                    remedy="Send fewer at a time, or raise queue or sessions of the model.",
                )
            self._waiting += 1  # said before the next look: whoever returns a session after it sees it, and notifies
            try:
                while True:
                    try:
                        return self._idle.pop()
                    except IndexError:
                        left = None if deadline is None else deadline - time.monotonic()
                        if left is not None and left <= 0:
                            raise too_late("No session became free before the deadline") from None
                        self._returned.wait(left)
            finally:
                self._waiting -= 1

    def longest_run_s(self) -> float:
        """Age of the oldest run that has not come back; 0 when all are idle."""
        begun = list(self._begun.values())
        return time.monotonic() - min(begun) if begun else 0.0

    def close(self) -> None:
        """Wait for runs to end, and close every session."""
        while self._size:
            session = self._wait_closing()
            session.close()
            self._size -= 1

    def _wait_closing(self) -> Session:
        with self._returned:
            self._waiting += 1
            try:
                while not self._idle:
                    self._returned.wait()
                return self._idle.pop()
            finally:
                self._waiting -= 1


def too_late(what: str) -> DeadlineExceeded:
    return DeadlineExceeded(f"{what}.", remedy="Allow more time, or send fewer requests at a time.")
