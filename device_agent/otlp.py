"""Spooled records to an OpenTelemetry collector: OTLP/HTTP, protobuf, gzip, back-off.

Source: OpenTelemetry protocol specification 1.x, "OTLP/HTTP Request", "Retryable Response Codes" (429, 502, 503, 504) and
"OTLP/HTTP Throttling" (Retry-After). Everything else in 4xx means that the data is at fault: it is dropped and counted.
"""

from __future__ import annotations

import gzip
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from device_agent.config import TelemetryConfig
from device_agent.errors import NetworkError
from device_agent.spool import Record, Spool
from device_agent.version import VERSION
from profiles.registry import Registry

log = logging.getLogger(__name__)
_RETRYABLE = {429, 502, 503, 504}
_SEVERITY = {"info": 9, "warning": 13, "error": 17}  # SeverityNumber in opentelemetry/proto/logs/v1/logs.proto
_DELTA = 1  # AGGREGATION_TEMPORALITY_DELTA in metrics.proto
_MAX_BACKOFF_S = 3600.0


class Refused(Exception):
    """The collector will never take these records."""


class Throttled(NetworkError):
    """The collector asks to wait; ``retry_after_s`` is its wish, if it named one."""

    def __init__(self, message: str, *, remedy: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.retry_after_s = retry_after_s


class Transport(Protocol):
    """Delivers records.

    An implementation must raise NetworkError when trying again later may help, Refused when it never will, and must
    return only when the receiver took everything.
    """

    def send(self, records: list[Record]) -> None: ...


TRANSPORTS: Registry[Callable[[TelemetryConfig, str], Transport]] = Registry(
    "telemetry transport",
    how_to_add="Add a module with a Transport and one line to TRANSPORTS in device_agent/otlp.py.",
)


class OtlpHttp:
    """OTLP/HTTP with protobuf bodies."""

    def __init__(self, config: TelemetryConfig, device: str) -> None:
        import urllib3

        self._config = config
        self._device = device
        self._pool = urllib3.PoolManager(timeout=config.timeout_s, retries=False)

    def send(self, records: list[Record]) -> None:
        metrics, logs = encode_metrics(records, self._device), encode_logs(records, self._device)
        for path, body in (("v1/metrics", metrics), ("v1/logs", logs)):
            if body:
                self._post(path, body)

    def _post(self, path: str, body: bytes) -> None:
        import urllib3

        url = f"{(self._config.endpoint or '').rstrip('/')}/{path}"
        headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip", **self._config.headers}
        try:
            # mtime 0: the same records make the same bytes.
            response = self._pool.request("POST", url, body=gzip.compress(body, mtime=0), headers=headers)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise NetworkError(f"Cannot reach {url}: {error}.", remedy="Check telemetry.endpoint.") from error
        if 200 <= response.status < 300:
            return
        if response.status in _RETRYABLE or response.status >= 500:
            wish = response.headers.get("Retry-After", "")
            raise Throttled(
                f"{url}: HTTP {response.status}.",
                remedy="Wait; records stay in the spool.",
                retry_after_s=float(wish) if wish.isdigit() else None,
            )
        raise Refused(f"{url}: HTTP {response.status}")


TRANSPORTS.add("otlp-http", OtlpHttp)


@dataclass
class Sender:
    """Empties the spool through a transport, waiting longer after each failure.

    ``ready_at`` is the monotonic time before which nothing is tried.
    """

    spool: Spool
    transport: Transport
    batch_records: int
    clock: Callable[[], float]
    jitter: Callable[[], float] = random.random
    failures: int = 0
    ready_at: float = 0.0
    delivered: int = 0

    def pump(self) -> int:
        """Send until the spool is empty or the collector fails; returns the number of records delivered."""
        sent, limit = 0, self.batch_records
        while self.clock() >= self.ready_at and (batch := self.spool.batch(limit)):
            try:
                self.transport.send([stored.record for stored in batch])
            except NetworkError as error:
                self._back_off(error)
                break
            except Exception as error:
                # Refused, or a record that cannot be encoded: alone it is given up, in company each is tried alone.
                if len(batch) > 1:
                    limit = 1  # for the rest of this call only
                    continue
                log.error("A telemetry record is given up: %s", error)
                self.spool.remove([batch[0].id], dropped=True)
                continue
            self.spool.remove([stored.id for stored in batch])
            sent += len(batch)
            self.failures = 0
        self.delivered += sent
        return sent

    def _back_off(self, error: NetworkError) -> None:
        self.failures += 1
        wish = error.retry_after_s if isinstance(error, Throttled) else None
        # Full jitter: a fleet that lost its collector together must not return together.
        pause = wish if wish is not None else min(_MAX_BACKOFF_S, 2.0**self.failures) * (0.5 + 0.5 * self.jitter())
        self.ready_at = self.clock() + pause
        log.warning("Telemetry is not delivered (%s); next try in %.0f s", error, pause)


def encode_metrics(records: list[Record], device: str) -> bytes:
    """ExportMetricsServiceRequest of the metrics among ``records``; empty if there are none."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    chosen = [r for r in records if r.get("kind") == "metrics"]
    if not chosen:
        return b""
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    _resource(resource.resource, device)
    scope = resource.scope_metrics.add()
    scope.scope.name, scope.scope.version = "edgewright", VERSION
    for record in chosen:
        _requests(scope.metrics, record)
        _latency(scope.metrics, record)
        _drift(scope.metrics, record)
    return bytes(request.SerializeToString(deterministic=True))


def _requests(metrics: Any, record: Record) -> None:
    metric = metrics.add(name="edgewright.requests", unit="{request}")
    metric.sum.aggregation_temporality, metric.sum.is_monotonic = _DELTA, True
    for outcome, number in sorted(record["requests"].items()):
        point = metric.sum.data_points.add(as_int=number)
        _point(point, record, outcome=outcome)


def _latency(metrics: Any, record: Record) -> None:
    metric = metrics.add(name="edgewright.latency", unit="ms")
    metric.histogram.aggregation_temporality = _DELTA
    latency = record["latency"]
    point = metric.histogram.data_points.add(count=sum(latency["counts"]), sum=latency["sum"])
    point.explicit_bounds.extend(latency["bounds"])
    point.bucket_counts.extend(latency["counts"])
    _point(point, record)


def _drift(metrics: Any, record: Record) -> None:
    for entry in record["drift"]:
        metric = metrics.add(name="edgewright.drift", unit="{sample}")
        metric.histogram.aggregation_temporality = _DELTA
        counts = entry["counts"]
        # Classes have no edges: bounds between the whole numbers put class i into bucket i.
        edges = entry["edges"] if entry["edges"] is not None else [i + 0.5 for i in range(len(counts) - 1)]
        point = metric.histogram.data_points.add(count=sum(counts))
        point.explicit_bounds.extend(edges)
        point.bucket_counts.extend(counts)
        _point(point, record, quantity=entry["quantity"])


def _point(point: Any, record: Record, **attributes: str) -> None:
    point.start_time_unix_nano, point.time_unix_nano = record["start"], record["time"]
    _attributes(point.attributes, {"model": record["model"], "release": record["release"], **attributes})


def encode_logs(records: list[Record], device: str) -> bytes:
    """ExportLogsServiceRequest of the events among ``records``; empty if there are none."""
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    chosen = [r for r in records if r.get("kind") == "event"]
    if not chosen:
        return b""
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add()
    _resource(resource.resource, device)
    scope = resource.scope_logs.add()
    scope.scope.name, scope.scope.version = "edgewright", VERSION
    for record in chosen:
        severity = record["severity"]
        entry = scope.log_records.add(
            time_unix_nano=record["time"], severity_number=_SEVERITY.get(severity, 9), severity_text=severity.upper()
        )
        entry.body.string_value = record["name"]
        _attributes(entry.attributes, {"event.name": record["name"], **record["attr"]})
    return bytes(request.SerializeToString(deterministic=True))


def _resource(resource: Any, device: str) -> None:
    _attributes(
        resource.attributes,
        {"service.name": "edgewright-agent", "service.version": VERSION, "service.instance.id": device},
    )


def _attributes(attributes: Any, values: dict[str, Any]) -> None:
    for key, value in sorted(values.items()):
        if value is None:
            continue
        holder = attributes.add(key=key).value
        if isinstance(value, bool):
            holder.bool_value = value
        elif isinstance(value, int):
            holder.int_value = value
        elif isinstance(value, float):
            holder.double_value = value
        else:
            holder.string_value = str(value)
