"""Our protobuf bytes against OpenTelemetry's own classes: the same messages, field by field."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from device_agent.otlp_encoding import encode_logs, encode_metrics
from device_agent.version import VERSION

counts = st.integers(0, 2**40)
words = st.text(st.characters(codec="utf-8"), max_size=12)
values = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | words


def metrics(requests: dict[str, int], buckets: list[int], total: float, drift: list[int]) -> dict[str, Any]:
    return {
        "kind": "metrics", "start": 5, "time": 7, "model": "m", "release": "r", "requests": requests, "fallbacks": {},
        "latency": {"bounds": [float(n) for n in range(len(buckets) - 1)], "counts": buckets, "sum": total},
        "drift": [{"quantity": "class", "edges": None, "counts": drift}],
    }  # fmt: skip


# A busy machine is no fault of the encoding.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def attributes(entries: Any) -> dict[str, Any]:
    return {e.key: getattr(e.value, e.value.WhichOneof("value")) for e in entries}


@unhurried
@given(
    st.dictionaries(words, counts, min_size=1, max_size=3),
    st.lists(counts, min_size=1, max_size=5),
    st.floats(0, 1e12),
    st.lists(counts, min_size=1, max_size=4),
)
def test_metrics(requests: dict[str, int], buckets: list[int], total: float, drift: list[int]) -> None:
    data = encode_metrics([metrics(requests, buckets, total, drift)], "device")
    message = ExportMetricsServiceRequest.FromString(data)
    (resource,) = message.resource_metrics
    assert attributes(resource.resource.attributes) == {
        "service.name": "edgewright-agent", "service.version": VERSION, "service.instance.id": "device",
    }  # fmt: skip
    found = {m.name: m for m in resource.scope_metrics[0].metrics}
    points = found["edgewright.requests"].sum.data_points
    assert {attributes(p.attributes)["outcome"]: p.as_int for p in points} == requests
    assert all(p.WhichOneof("value") == "as_int" and p.start_time_unix_nano == 5 for p in points)
    assert found["edgewright.requests"].sum.aggregation_temporality == 1
    (point,) = found["edgewright.latency"].histogram.data_points
    assert list(point.bucket_counts) == buckets and point.count == sum(buckets) and point.sum == total
    assert list(point.explicit_bounds) == [float(n) for n in range(len(buckets) - 1)]
    (point,) = found["edgewright.drift"].histogram.data_points
    assert list(point.bucket_counts) == drift and len(point.explicit_bounds) == len(drift) - 1
    # Nothing but known fields, in an encoding that the reference would write as well.
    message.DiscardUnknownFields()
    assert len(message.SerializeToString()) == len(data)


@unhurried
@given(words, st.dictionaries(st.text(st.characters(codec="ascii"), min_size=1, max_size=6), values, max_size=5))
def test_logs(name: str, said: dict[str, Any]) -> None:
    record = {"kind": "event", "time": 9, "name": name, "severity": "error", "attr": said}
    data = encode_logs([record], "device")
    message = ExportLogsServiceRequest.FromString(data)
    (log,) = message.resource_logs[0].scope_logs[0].log_records
    assert (log.time_unix_nano, log.severity_number, log.severity_text) == (9, 17, "ERROR")
    assert log.body.string_value == name
    kept = {"event.name": name} | said  # an attribute of that name wins, as it always did
    assert attributes(log.attributes) == {key: value for key, value in kept.items() if value is not None}
    message.DiscardUnknownFields()
    assert len(message.SerializeToString()) == len(data)


def test_the_drop_counter_is_a_running_total() -> None:
    data = encode_metrics([{"kind": "dropped", "start": 1, "time": 2, "value": 12}], "d")
    (metric,) = ExportMetricsServiceRequest.FromString(data).resource_metrics[0].scope_metrics[0].metrics
    assert metric.name == "edgewright.telemetry.dropped" and metric.sum.is_monotonic
    assert metric.sum.aggregation_temporality == 2 and metric.sum.data_points[0].as_int == 12


def test_nothing_makes_no_request() -> None:
    assert encode_metrics([{"kind": "event"}], "d") == b"" and encode_logs([{"kind": "metrics"}], "d") == b""


def test_text_that_no_utf8_holds() -> None:
    data = encode_logs([{"kind": "event", "time": 1, "name": "\ud800", "severity": "info", "attr": {}}], "d")
    assert ExportLogsServiceRequest.FromString(data)
