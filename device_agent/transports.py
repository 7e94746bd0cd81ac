"""From the spool to a receiver: what a transport must do, which there are, and when to try again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from device_agent.config import TelemetryConfig
from device_agent.errors import NetworkError
from device_agent.spool import Record, Spool
from profiles.registry import Registry

log = logging.getLogger(__name__)
MAX_BACKOFF_S = 3600.0


class Refused(Exception):
    """The receiver will never take these records."""


class Throttled(NetworkError):
    """The receiver asks to wait; ``retry_after_s`` is its wish, if it named one."""

    def __init__(self, message: str, *, remedy: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.retry_after_s = retry_after_s


class Transport(Protocol):
    """Delivers records.

    An implementation must raise NetworkError when trying again later may help, Refused when it never will, and must
    return only when the receiver took everything. ``key`` names the batch: a batch that is sent again, because its
    acknowledgement was lost, comes with the same key and the same bytes, so that a receiver can tell.
    """

    def send(self, records: list[Record], key: str) -> None: ...


TRANSPORTS: Registry[Callable[[TelemetryConfig, str], Transport]] = Registry(
    "telemetry transport",
    how_to_add="Add a module with a Transport and one line to TRANSPORTS in device_agent/transports.py.",
)
TRANSPORTS.add_lazy("otlp-http", "device_agent.otlp", "OtlpHttp")
TRANSPORTS.add_lazy("mqtt", "device_agent.mqtt", "Mqtt")


def _random() -> float:
    import random

    return random.random()


class Sender:
    """Empties the spool through a transport, waiting longer after each failure.

    ``ready_at`` is the monotonic time before which nothing is tried.
    """

    def __init__(
        self,
        spool: Spool,
        transport: Transport,
        batch_records: int,
        clock: Callable[[], float],
        jitter: Callable[[], float] = _random,
    ) -> None:
        self.spool, self.transport, self.batch_records = spool, transport, batch_records
        self.clock, self.jitter = clock, jitter
        self.failures = self.delivered = 0
        self.ready_at = 0.0

    def pump(self) -> int:
        """Send until the spool is empty or the receiver fails; returns the number of records delivered."""
        sent, limit = 0, self.batch_records
        while self.clock() >= self.ready_at and (batch := self.spool.next_batch(limit)) is not None:
            numbers = [stored.id for stored in batch.records]
            try:
                self.transport.send([stored.record for stored in batch.records], batch.key)
            except NetworkError as error:
                self._back_off(error)
                break
            except Exception as error:
                # Refused, or a record that cannot be encoded: alone it is given up, in company each is tried alone.
                if len(numbers) > 1:
                    limit = 1  # for the rest of this call only
                    self.spool.unbatch(numbers)
                    continue
                log.error("A telemetry record is given up: %s", error)
                self.spool.bury(numbers, str(error))
                continue
            self.spool.remove(numbers)
            sent += len(numbers)
            self.failures = 0
        self.delivered += sent
        return sent

    def _back_off(self, error: NetworkError) -> None:
        self.failures += 1
        wish = error.retry_after_s if isinstance(error, Throttled) else None
        # Full jitter: a fleet that lost its collector together must not return together.
        pause = min(MAX_BACKOFF_S, 2.0 ** min(self.failures, 16)) * (0.5 + 0.5 * self.jitter())
        self.ready_at = self.clock() + (pause if wish is None else min(wish, 24 * MAX_BACKOFF_S))
        log.warning("Telemetry is not delivered (%s); next try in %.0f s", error, self.ready_at - self.clock())
