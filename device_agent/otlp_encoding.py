"""Spooled records as OTLP messages.

Source: opentelemetry-proto 1.9, metrics.proto, logs.proto, common.proto, resource.proto; the numbers below are theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from device_agent import protobuf as pb
from device_agent.spool import Record
from device_agent.version import VERSION

_SEVERITY = {"info": 9, "warning": 13, "error": 17}  # SeverityNumber in logs.proto
_DELTA, _CUMULATIVE = 1, 2  # AggregationTemporality in metrics.proto


def encode_metrics(records: list[Record], device: str) -> bytes:
    """ExportMetricsServiceRequest of the metrics among ``records``; empty if there are none."""
    metrics = [metric for record in records for metric in _metrics_of(record)]
    if not metrics:
        return b""
    return pb.message(1, _resource(device), pb.message(2, _SCOPE, pb.repeated(2, metrics)))


def encode_logs(records: list[Record], device: str) -> bytes:
    """ExportLogsServiceRequest of the events and samples among ``records``; empty if there are none."""
    logs = [_log(record) for record in records if record.get("kind") in ("event", "sample")]
    return pb.message(1, _resource(device), pb.message(2, _SCOPE, pb.repeated(2, logs))) if logs else b""


_SCOPE = pb.message(1, pb.text(1, "edgewright"), pb.text(2, VERSION))


def _resource(device: str) -> bytes:
    named = {"service.name": "edgewright-agent", "service.version": VERSION, "service.instance.id": device}
    return pb.message(1, _attributes(1, named))


def _metrics_of(record: Record) -> Iterator[bytes]:
    kind = record.get("kind")
    if kind == "dropped":
        point = _times(record) + pb.chosen_fixed64(6, record["value"])
        yield _metric("edgewright.telemetry.dropped", "{record}", _sum([point], _CUMULATIVE))
    elif kind == "metrics":
        yield _counter(record, "edgewright.requests", "{request}", "outcome", record["requests"])
        if record.get("fallbacks"):
            yield _counter(record, "edgewright.fallbacks", "{request}", "step", record["fallbacks"])
        latency = record["latency"]
        point = _histogram_point(record, latency["counts"], latency["bounds"], total=latency["sum"])
        yield _metric("edgewright.latency", "ms", _histogram([point]))
        for entry in record["drift"]:
            yield _metric("edgewright.drift", "{sample}", _histogram([_drift_point(record, entry)]))


def _metric(name: str, unit: str, data: bytes) -> bytes:
    return pb.text(1, name) + pb.text(3, unit) + data


def _sum(points: list[bytes], temporality: int) -> bytes:
    return pb.message(7, pb.repeated(1, points), pb.varint(2, temporality), pb.varint(3, 1))


def _histogram(points: list[bytes]) -> bytes:
    return pb.message(9, pb.repeated(1, points), pb.varint(2, _DELTA))


def _counter(record: Record, name: str, unit: str, attribute: str, numbers: dict[str, int]) -> bytes:
    points = [
        _times(record) + pb.chosen_fixed64(6, number) + _attributes(7, {**_subject(record), attribute: value})
        for value, number in sorted(numbers.items())
    ]
    return _metric(name, unit, _sum(points, _DELTA))


def _drift_point(record: Record, entry: dict[str, Any]) -> bytes:
    counts = entry["counts"]
    # Classes have no edges: bounds between the whole numbers put class i into bucket i.
    edges = entry["edges"] if entry["edges"] is not None else [i + 0.5 for i in range(len(counts) - 1)]
    return _histogram_point(record, counts, edges, quantity=entry["quantity"])


def _histogram_point(
    record: Record, counts: list[int], bounds: list[float], total: float | None = None, **attributes: str
) -> bytes:
    return b"".join(
        (
            _times(record),
            pb.fixed64(4, sum(counts)),
            b"" if total is None else pb.double(5, total),
            pb.packed_fixed64(6, counts),
            pb.packed_doubles(7, bounds),
            _attributes(9, {**_subject(record), **attributes}),
        )
    )


def _times(record: Record) -> bytes:
    return pb.fixed64(2, record["start"]) + pb.fixed64(3, record["time"])


def _subject(record: Record) -> dict[str, str]:
    return {"model": record["model"], "release": record["release"]}


def _log(record: Record) -> bytes:
    severity = record.get("severity", "info")
    name = record["name"] if record["kind"] == "event" else "sample"
    return b"".join(
        (
            pb.fixed64(1, record["time"]),
            pb.varint(2, _SEVERITY.get(severity, 9)),
            pb.text(3, severity.upper()),
            pb.message(5, pb.chosen_text(1, name)),
            _attributes(6, {"event.name": name, **record["attr"]}),
        )
    )


def _attributes(number: int, values: dict[str, Any]) -> bytes:
    return pb.repeated(
        number,
        (
            pb.text(1, key) + pb.message(2, _any_value(value))
            for key, value in sorted(values.items())
            if value is not None
        ),
    )


def _any_value(value: Any) -> bytes:
    if isinstance(value, bool):
        return b"\x10" + (b"\x01" if value else b"\x00")
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return pb.varint(3, value) or b"\x18\x00"  # of a oneof: 0 is written as well
    if isinstance(value, float):
        return pb.double(4, value)
    return pb.chosen_text(1, str(value))
