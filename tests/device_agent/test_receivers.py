"""Telemetry into receivers that this project did not write: OtelTap and Rotel (OTLP in Rust), and mosquitto."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from device_agent.config import TelemetryConfig
from device_agent.errors import ConfigError, NetworkError
from device_agent.mqtt import Mqtt
from device_agent.otlp import OtlpHttp
from device_agent.spool import Spool
from device_agent.telemetry import Telemetry
from device_agent.transports import TRANSPORTS, Sender

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed (apt-get install mosquitto)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path / "spool.db", max_bytes=1 << 20)
    yield made
    made.close()


def something(spool: Spool) -> None:
    """An interval's figures, with a fallback, and an event."""
    telemetry = Telemetry(spool, now=lambda: 1_700_000_000_000_000_000)
    for _ in range(3):
        telemetry.request("toy", "r1", "ok", 2_000_000)
    telemetry.request("toy", "r1", "failed", 9_000_000)
    telemetry.fallback("toy", "r1", "cpu")
    telemetry.event("release.activated", model="toy", share=0.5, whole=0, fresh=True, note="ü")
    telemetry.flush()
    spool.flush()


def test_otlp_into_a_receiver_in_another_language(spool: Spool) -> None:
    tap = pytest.importorskip("oteltap", reason="oteltap is not installed")
    port = free_port()
    settings = tap.OtelTapHttpProtobufReceiverSettings(http_port=port, listen_on_all_interfaces=False)
    something(spool)
    # OtelTap 1.0 unpacks no gzip (HTTP 400); the collector below does.
    config = TelemetryConfig(endpoint=f"http://127.0.0.1:{port}", compression="none")
    sender = Sender(spool, OtlpHttp(config, "device-1"), 64, lambda: 0.0)

    async def exchange() -> tuple[Any, ...]:
        async with tap.OtelTapHttpProtobufReceiver(settings) as receiver:
            waiting = [
                asyncio.create_task(receiver.await_metric(lambda m, name=name: m.name == name, timeout=20))
                for name in ("edgewright.requests", "edgewright.latency", "edgewright.fallbacks")
            ]
            waiting.append(
                asyncio.create_task(
                    receiver.await_log(lambda r: r.body.string_value == "release.activated", timeout=20)
                )
            )
            await asyncio.sleep(0)
            assert await asyncio.to_thread(sender.pump) == 2
            return tuple(await asyncio.gather(*waiting))

    _judge(*asyncio.run(exchange()))
    assert spool.stats()["records"] == 0


def test_compressed_otlp_into_a_collector(spool: Spool, tmp_path: Path) -> None:
    """Rotel, an OpenTelemetry collector, unpacks and parses what the agent sends, and hands it on in its own encoding."""
    something(spool)
    with _backend() as (backend, handed_on), _rotel(backend, tmp_path / "rotel.log") as endpoint:
        sender = Sender(spool, OtlpHttp(TelemetryConfig(endpoint=endpoint), "device-1"), 64, lambda: 0.0)
        assert sender.pump() == 2 and spool.stats()["records"] == 0
        assert handed_on.wait(20)
        _judge(
            *(handed_on.metrics[f"edgewright.{name}"] for name in ("requests", "latency", "fallbacks")), *handed_on.logs
        )
        # What claims to be compressed and is not is refused: the collector did unpack.
        spool.put({"kind": "event", "time": 1, "name": "late", "severity": "info", "attr": {}})
        spool.flush()
        liar = TelemetryConfig(endpoint=endpoint, compression="none", headers={"Content-Encoding": "gzip"})
        assert Sender(spool, OtlpHttp(liar, "device-1"), 64, lambda: 0.0).pump() == 0
        assert len(spool.dead_letters()) == 1


class Backend:
    """What a collector handed on, parsed by OpenTelemetry's own classes."""

    def __init__(self) -> None:
        self.metrics: dict[str, Any] = {}
        self.logs: list[Any] = []
        self._done = {"/v1/metrics": threading.Event(), "/v1/logs": threading.Event()}

    def wait(self, timeout_s: float) -> bool:
        return all(event.wait(timeout_s) for event in self._done.values())

    def take(self, path: str, body: bytes) -> None:
        from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

        if path == "/v1/metrics":
            (of_resource,) = ExportMetricsServiceRequest.FromString(body).resource_metrics
            self.metrics |= {metric.name: metric for metric in of_resource.scope_metrics[0].metrics}
        else:
            (with_logs,) = ExportLogsServiceRequest.FromString(body).resource_logs
            self.logs += with_logs.scope_logs[0].log_records
        self._done[path].set()


@contextmanager
def _backend() -> Iterator[tuple[str, Backend]]:
    found = Backend()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.take(self.path, gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", found
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def _rotel(backend: str, log: Path) -> Iterator[str]:
    """A collector that hands on to ``backend``; its address."""
    rotel = pytest.importorskip("rotel", reason="rotel is not installed")
    port = free_port()
    options = {
        "--otlp-http-endpoint": f"127.0.0.1:{port}",
        "--otlp-grpc-endpoint": f"127.0.0.1:{free_port()}",
        "--exporter": "otlp",
        "--otlp-exporter-protocol": "http",
        "--otlp-exporter-endpoint": backend,
    }
    command = [str(Path(rotel.__file__).with_name("rotel-agent")), "start", "--disable-batching"]
    with log.open("wb") as said:
        process = subprocess.Popen(
            [*command, *(part for pair in options.items() for part in pair)], stdout=said, stderr=subprocess.STDOUT
        )
    try:
        _await_port(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.02)
    raise AssertionError(f"nothing listens on port {port}")


def _judge(requests: Any, latency: Any, fallbacks: Any, log: Any) -> None:
    counted = {
        attribute.value.string_value: point.as_int
        for point in requests.sum.data_points
        for attribute in point.attributes
        if attribute.key == "outcome"
    }
    assert counted == {"ok": 3, "failed": 1} and requests.sum.is_monotonic
    assert latency.histogram.data_points[0].count == 4 and latency.histogram.data_points[0].sum == 15.0
    assert fallbacks.sum.data_points[0].as_int == 1
    said = {a.key: a.value.WhichOneof("value") for a in log.attributes}
    assert said == {
        "event.name": "string_value", "model": "string_value", "note": "string_value",
        "share": "double_value", "whole": "int_value", "fresh": "bool_value",
    }  # fmt: skip


class Broker:
    """mosquitto on a port of its own, and everything that was published there."""

    def __init__(self, folder: Path, port: int, more: str = "allow_anonymous true\n") -> None:
        self.port, self._path = port, folder / "mosquitto.conf"
        self._path.write_text(f"listener {port} 127.0.0.1\n{more}")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert MOSQUITTO is not None
        self._process = subprocess.Popen(
            [MOSQUITTO, "-c", str(self._path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _await_port(self.port)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path, free_port())
    yield made
    made.stop()


class Subscriber:
    """paho's own client, listening to everything."""

    def __init__(self, port: int, messages: int) -> None:
        from paho.mqtt import client as paho
        from paho.mqtt.enums import CallbackAPIVersion

        self.found: list[tuple[str, dict[str, Any]]] = []
        self.done, ready = threading.Event(), threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2)

        def arrived(_client: Any, _data: Any, message: Any) -> None:
            self.found.append((message.topic, json.loads(message.payload)))
            if len(self.found) == messages:
                self.done.set()

        self._client.on_message = arrived
        self._client.on_subscribe = lambda *_: ready.set()
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._client.subscribe("#", qos=1)
        assert ready.wait(20)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@needs_mosquitto
def test_mqtt_waits_for_the_broker_and_then_delivers_everything_once(spool: Spool, broker: Broker) -> None:
    something(spool)
    now = [0.0]
    config = TelemetryConfig(endpoint=f"mqtt://127.0.0.1:{broker.port}/fleet/a", transport="mqtt", timeout_s=10)
    sender = Sender(spool, TRANSPORTS.get("mqtt")(config, "device-1"), 64, lambda: now[0])
    assert sender.pump() == 0 and spool.stats()["records"] == 2, "the broker is not there yet"
    broker.start()
    listener = Subscriber(broker.port, 2)
    now[0] = 10_000.0
    assert sender.pump() == 2
    assert listener.done.wait(20)
    listener.close()
    topics = dict(listener.found)
    assert set(topics) == {"fleet/a/device-1/metrics", "fleet/a/device-1/event"}
    assert topics["fleet/a/device-1/metrics"]["requests"] == {"ok": 3, "failed": 1}
    keys = {(body["batch"], body["number"]) for body in topics.values()}
    assert len(keys) == 2 and len({key for key, _ in keys}) == 1
    assert spool.stats()["records"] == 0


@needs_mosquitto
def test_mqtt_with_a_wrong_password_keeps_the_records(tmp_path: Path, spool: Spool) -> None:
    broker = Broker(tmp_path, free_port(), "allow_anonymous false\n")
    broker.start()
    try:
        config = TelemetryConfig(endpoint=f"mqtt://me:wrong@127.0.0.1:{broker.port}", timeout_s=10)
        with pytest.raises(NetworkError, match="Not authorized"):
            Mqtt(config, "device-1").send([{"kind": "event"}], "k")
    finally:
        broker.stop()


@pytest.mark.parametrize("endpoint", [None, "http://x", "mqtt://", "broker:1883"])
def test_an_endpoint_that_is_no_broker_is_refused(endpoint: str | None) -> None:
    with pytest.raises(ConfigError):
        Mqtt(TelemetryConfig(endpoint=endpoint), "d")


@pytest.mark.parametrize("endpoint", [None, "collector:4318", "mqtt://x", "http://"])
def test_an_endpoint_that_is_no_url_is_refused(endpoint: str | None) -> None:
    with pytest.raises(ConfigError):
        OtlpHttp(TelemetryConfig(endpoint=endpoint), "d")
