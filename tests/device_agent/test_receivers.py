"""Telemetry into receivers that this project did not write: OtelTap (an OTLP/HTTP receiver in Rust) and mosquitto."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
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
    # OtelTap 1.0 unpacks no gzip (HTTP 400); the compressed form is held against OpenTelemetry's classes in test_telemetry.py.
    config = TelemetryConfig(endpoint=f"http://127.0.0.1:{port}", compression="none")
    sender = Sender(spool, OtlpHttp(config, "device-1"), 64, lambda: 0.0)

    async def exchange() -> tuple[Any, Any, Any, Any]:
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
            return tuple(await asyncio.gather(*waiting))  # type: ignore[return-value]

    requests, latency, fallbacks, log = asyncio.run(exchange())
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
    assert spool.stats()["records"] == 0


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
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            time.sleep(0.02)
        raise AssertionError("mosquitto does not start")

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
