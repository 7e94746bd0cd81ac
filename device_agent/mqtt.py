"""Spooled records to an MQTT broker: one message per record, JSON, quality of service 1.

    <prefix>/<device>/<kind>      kind: metrics, event, dropped, sample

The endpoint is ``mqtt://[user[:password]@]host[:port][/prefix]`` or ``mqtts://`` for TLS. A batch counts as delivered when
the broker acknowledged every message of it (PUBACK); each message carries the batch's key, since "at least once" may mean twice.
"""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from device_agent.config import TelemetryConfig
from device_agent.errors import ConfigError, NetworkError
from device_agent.spool import Record

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_PREFIX = "edgewright"


class Mqtt:
    """Connects for each batch: a device that reports once a minute needs no open connection in between."""

    def __init__(self, config: TelemetryConfig, device: str) -> None:
        self._url = _checked(config.endpoint)
        self._device, self._timeout_s = device, config.timeout_s
        self._prefix = self._url.path.strip("/") or _PREFIX

    def send(self, records: list[Record], key: str) -> None:
        deadline = time.monotonic() + self._timeout_s
        client = self._connect(deadline)
        try:
            sent = [client.publish(*self._message(record, number, key), qos=1) for number, record in enumerate(records)]
            for message in sent:
                message.wait_for_publish(max(0.0, deadline - time.monotonic()))
            if not all(message.is_published() for message in sent):
                raise _unreachable(self._url, "the broker did not acknowledge in time")
        except (RuntimeError, ValueError) as error:
            raise _unreachable(self._url, str(error)) from error
        finally:
            client.disconnect()
            client.loop_stop()

    def _message(self, record: Record, number: int, key: str) -> tuple[str, bytes]:
        body = {**record, "device": self._device, "batch": key, "number": number}
        return f"{self._prefix}/{self._device}/{record.get('kind', 'other')}", json.dumps(body).encode()

    def _connect(self, deadline: float) -> Any:
        """A connected client. Raises NetworkError."""
        try:
            from paho.mqtt import client as paho
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError as error:
            # Records wait until it is installed; they are not at fault.
            raise NetworkError("MQTT needs paho-mqtt.", remedy="Run pip install 'edgewright[mqtt]'.") from error
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"edgewright-{self._device}")
        if self._url.username:
            client.username_pw_set(unquote(self._url.username), unquote(self._url.password or "") or None)
        if self._url.scheme == "mqtts":
            client.tls_set()
        said: list[str] = []
        client.on_connect = lambda _client, _data, _flags, reason, _properties: said.append(str(reason))
        try:
            client.connect(self._url.hostname or "", self._url.port or _PORTS[self._url.scheme])
        except (OSError, ValueError) as error:
            raise _unreachable(self._url, str(error)) from error
        client.loop_start()
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
        if said == ["Success"]:
            return client
        client.disconnect()
        client.loop_stop()
        # Also for a wrong password: the records are not at fault, they wait for someone to mend the configuration.
        raise _unreachable(self._url, said[0] if said else "no answer")


def _checked(endpoint: str | None) -> SplitResult:
    url = urlsplit(endpoint or "")
    if url.scheme not in _PORTS or not url.hostname:
        raise ConfigError(f"telemetry.endpoint is {endpoint!r}.", remedy="Give mqtt://host or mqtts://host.")
    return url


def _unreachable(url: SplitResult, reason: str) -> NetworkError:
    where = f"{url.scheme}://{url.hostname}"
    return NetworkError(f"Cannot deliver to {where}: {reason}.", remedy="Check telemetry.endpoint and the broker.")
