"""Spool, drift and OTLP; the receiver decodes with OpenTelemetry's own protobuf classes."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from device_agent.config import TelemetryConfig
from device_agent.drift import KOLMOGOROV_MEAN, DriftMonitor, corrected_ks, corrected_psi, ks, psi
from device_agent.otlp import OtlpHttp
from device_agent.spool import Spool
from device_agent.telemetry import Telemetry
from device_agent.transports import Sender
from runtimes.artifact.manifest import DriftBaseline, Manifest


class Collector:
    def __init__(self) -> None:
        self.status, self.headers = 200, {}
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.logs: list[ExportLogsServiceRequest] = []
        self.url = ""


@pytest.fixture
def collector() -> Iterator[Collector]:
    state = Collector()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = gzip.decompress(self.rfile.read(int(self.headers["Content-Length"])))
            if state.status == 200:
                if self.path == "/v1/metrics":
                    state.metrics.append(ExportMetricsServiceRequest.FromString(body))
                else:
                    state.logs.append(ExportLogsServiceRequest.FromString(body))
            self.send_response(state.status)
            for key, value in state.headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path / "spool.db", max_bytes=65536)
    yield made
    made.close()


def sender(spool: Spool, url: str, now: list[float]) -> Sender:
    return Sender(spool, OtlpHttp(TelemetryConfig(endpoint=url), "device-1"), 8, lambda: now[0], jitter=lambda: 1.0)


def test_delivery_and_decoding(spool: Spool, collector: Collector) -> None:
    telemetry = Telemetry(spool, now=lambda: 1_000)
    telemetry.request("toy", "r1", "ok", 300_000)
    telemetry.request("toy", "r1", "refused", 1)
    telemetry.event("release.activated", model="toy", fetched_bytes=12)
    telemetry.flush()
    spool.flush()
    assert sender(spool, collector.url, [0.0]).pump() == 2
    metrics = {m.name: m for m in collector.metrics[0].resource_metrics[0].scope_metrics[0].metrics}
    points = metrics["edgewright.requests"].sum.data_points
    assert sorted(p.as_int for p in points) == [1, 1]
    histogram = metrics["edgewright.latency"].histogram.data_points[0]
    assert histogram.count == 2 and list(histogram.bucket_counts)[:3] == [1, 0, 1]
    assert len(histogram.bucket_counts) == len(histogram.explicit_bounds) + 1
    log = collector.logs[0].resource_logs[0].scope_logs[0].log_records[0]
    assert log.body.string_value == "release.activated"
    assert spool.stats()["records"] == 0


def test_an_unreachable_or_throttling_collector_is_left_alone(spool: Spool, collector: Collector) -> None:
    spool.put({"kind": "event", "time": 1, "name": "x", "severity": "info", "attr": {}})
    spool.flush()
    now = [0.0]
    absent = sender(spool, "http://127.0.0.1:9", now)
    assert absent.pump() == 0 and absent.ready_at == 2.0 and spool.stats()["records"] == 1
    collector.status, collector.headers = 503, {"Retry-After": "30"}
    busy = sender(spool, collector.url, now)
    assert busy.pump() == 0 and busy.ready_at == 30.0
    collector.status = 200
    assert busy.pump() == 0, "it must wait as it was asked"
    now[0] = 31.0
    assert busy.pump() == 1


def test_records_that_are_never_taken_are_given_up_and_counted(spool: Spool, collector: Collector) -> None:
    for _ in range(3):
        spool.put({"kind": "event", "time": 1, "name": "x", "severity": "info", "attr": {}})
    spool.put({"kind": "metrics"})
    spool.flush()
    collector.status = 400
    assert sender(spool, collector.url, [0.0]).pump() == 0
    assert spool.stats()["records"] == 0 and spool.stats()["dropped"] == 4


def test_the_spool_is_bounded_and_survives_reopening(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s.db", max_bytes=65536)
    for number in range(100):
        spool.put({"n": number, "pad": "x" * 1000})
    spool.close()
    again = Spool(tmp_path / "s.db", max_bytes=65536)
    stats = again.stats()
    assert stats["bytes"] <= 65536 and stats["dropped"] + stats["records"] == 100
    assert again.batch(100)[-1].record["n"] == 99
    again.close()


@pytest.mark.parametrize("damage", [b"garbage" * 1000, b""])
def test_a_damaged_spool_never_stops_the_agent(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(damage)
    spool = Spool(path, max_bytes=65536)
    spool.put({"n": 1})
    spool.flush()
    assert spool.stats()["records"] == 1
    spool.close()
    assert bool(damage) == Path(f"{path}.damaged").exists()


def test_psi_correction_removes_the_bias_of_small_samples() -> None:
    """Without drift the naive PSI averages (B-1)(1/n+1/m); the corrected one must stay far below it."""
    random = np.random.default_rng(3)
    reference = random.multinomial(10_000, [0.1] * 10)
    samples = [random.multinomial(500, [0.1] * 10) for _ in range(400)]
    naive = float(np.mean([psi(s, reference) for s in samples]))
    assert naive == pytest.approx(9 * (1 / 500 + 1 / 10_000), rel=0.1)
    assert np.mean([corrected_psi(s, reference) for s in samples]) < naive / 2
    moved = random.multinomial(500, [0.3, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.03, 0.02])
    assert corrected_psi(moved, reference) > 0.2


def test_monitors_merge_by_addition_and_judge() -> None:
    baseline = DriftBaseline.model_validate(
        {"inputs": {"x": {"edges": [-1, 0, 1], "counts": [100, 400, 400, 100]}}, "min_samples": 100}
    )
    one, two = DriftMonitor(baseline), DriftMonitor(baseline)
    one.merge({"input:x": [10, 40, 40, 10]})
    assert one.report()[0].level == "ok"
    two.merge({"input:x": [0, 0, 0, 50]})
    assert two.report()[0].level == "too-few"
    one.merge({"input:x": two.counts["input:x"].tolist()})
    assert one.counts["input:x"].tolist() == [10, 40, 40, 60] and one.report()[0].level == "critical"
    with pytest.raises(ValueError, match="bins"):
        one.merge({"input:x": [1]})


def test_ks_is_scipys_and_its_correction_is_the_mean_of_kolmogorovs_distribution() -> None:
    from scipy import stats

    random = np.random.default_rng(5)
    one, two = random.integers(0, 10, 300), random.integers(0, 8, 500)
    counted = [np.bincount(values, minlength=10) for values in (one, two)]
    assert ks(*counted) == pytest.approx(stats.ks_2samp(one, two).statistic)
    assert pytest.approx(stats.kstwobign.mean()) == KOLMOGOROV_MEAN
    reference = random.multinomial(10_000, [0.01] * 100)
    still = [corrected_ks(random.multinomial(500, [0.01] * 100), reference) for _ in range(300)]
    assert np.mean(still) < 0.02, "small samples alone must not look like drift"


def test_a_shift_that_many_bins_share_is_seen_by_ks() -> None:
    edges = list(range(1, 50))
    baseline = DriftBaseline.model_validate({"inputs": {"x": {"edges": edges, "counts": [200] * 50}}})
    monitor = DriftMonitor(baseline)
    tilted = [24] * 25 + [16] * 25  # each bin moves by a fifth
    monitor.merge({"input:x": tilted})
    (report,) = monitor.report()
    assert report.corrected < 0.1 <= report.ks + 0.001 and report.ks == pytest.approx(0.1)
    monitor.merge({"input:x": [60] * 25 + [0] * 25})
    (report,) = monitor.report()
    assert report.level == "critical" and report.ks_corrected > 0.2


def test_raw_inputs_are_sent_only_where_the_signed_manifest_allows_it(spool: Spool) -> None:
    import base64

    from tests.runtimes.artifact.test_documents import MINIMAL

    now = [0]
    silent = Manifest.model_validate(MINIMAL)
    allowed = Manifest.model_validate(MINIMAL | {"samples_per_hour": 2})
    x = np.arange(6, dtype=np.float32).reshape(1, 6)

    def samples(telemetry: Telemetry, manifest: Manifest, feeds: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        telemetry.sample("kws", manifest, feeds, {})
        spool.flush()
        return [s.record["attr"] for s in spool.batch(100) if s.record["kind"] == "sample"]

    telemetry = Telemetry(spool, now=lambda: now[0])
    assert not samples(telemetry, silent, {"x": x})
    assert not samples(Telemetry(spool, now=lambda: now[0], samples=False), allowed, {"x": x}), "the device's own veto"
    (first,) = samples(telemetry, allowed, {"x": x})
    assert first["input.x.form"] == "float32[1, 6]"
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(first["input.x"]), np.float32), x[0])
    assert len(samples(telemetry, allowed, {"x": x})) == 1, "not before half an hour is over"
    now[0] = 1800 * 10**9
    assert len(samples(telemetry, allowed, {"x": np.zeros((1, 1 << 20), np.float32)})) == 1, "too large"
    assert len(samples(telemetry, allowed, {"x": x})) == 2
