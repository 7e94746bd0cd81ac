"""Spooled records to an OpenTelemetry collector: OTLP/HTTP, protobuf, gzip.

Source: OpenTelemetry protocol specification 1.x, "OTLP/HTTP Request", "Retryable Response Codes" (429, 502, 503, 504) and
"OTLP/HTTP Throttling" (Retry-After). Everything else in 4xx means that the data is at fault: it goes to the dead letters.
"""

from __future__ import annotations

import logging
import time
import zlib
from urllib.parse import urlsplit

from device_agent.config import TelemetryConfig
from device_agent.errors import ConfigError, NetworkError
from device_agent.http_post import post
from device_agent.otlp_encoding import encode_logs, encode_metrics
from device_agent.spool import Record
from device_agent.transports import Refused, Throttled

log = logging.getLogger(__name__)
_RETRYABLE = {408, 429, 502, 503, 504}
_GZIP = 31  # zlib's window bits for a gzip container; its header then carries no time, so that equal records make equal bytes


class OtlpHttp:
    """OTLP/HTTP with protobuf bodies. Raises ConfigError for an endpoint that is no http(s) URL."""

    def __init__(self, config: TelemetryConfig, device: str) -> None:
        self._url = urlsplit((config.endpoint or "").rstrip("/"))
        if self._url.scheme not in ("http", "https") or not self._url.hostname:
            raise ConfigError(
                f"telemetry.endpoint is {config.endpoint!r}.", remedy="Give a URL, e.g. http://collector:4318."
            )
        self._config = config
        self._device = device

    def send(self, records: list[Record], key: str) -> None:
        metrics, logs = encode_metrics(records, self._device), encode_logs(records, self._device)
        for path, body in (("v1/metrics", metrics), ("v1/logs", logs)):
            if body:
                self._post(path, body, f"{key}-{path[3:]}")

    def _post(self, path: str, body: bytes, key: str) -> None:
        url = f"{self._url.geturl()}/{path}"
        status, wish, answer = self._exchange(f"{self._url.path}/{path}", body, key, url)
        if 200 <= status < 300:
            # Export...ServiceResponse has one field, partial_success (1, a message): what was rejected never will be taken.
            if len(answer) > 2 and answer[0] == 0x0A:
                log.warning("%s took a batch only in part: %s", url, answer[:200].decode("utf-8", "replace"))
            return
        if status in _RETRYABLE or status >= 500:
            raise Throttled(
                f"{url}: HTTP {status}.", remedy="Wait; records stay in the spool.", retry_after_s=retry_after_s(wish)
            )
        raise Refused(f"{url}: HTTP {status} {answer[:100].decode('utf-8', 'replace')}")

    def _exchange(self, path: str, body: bytes, key: str, url: str) -> tuple[int, str, bytes]:
        """Status, Retry-After and body of the answer."""
        headers = {
            "Content-Type": "application/x-protobuf",
            "Idempotency-Key": f"{self._device}-{key}",
            **self._config.headers,
        }
        if self._config.compression == "gzip":
            compressor = zlib.compressobj(6, zlib.DEFLATED, _GZIP)
            body = compressor.compress(body) + compressor.flush()
            headers["Content-Encoding"] = "gzip"
        try:
            return post(self._url, path, headers, body, self._config.timeout_s)
        except (OSError, ValueError) as error:
            raise NetworkError(f"Cannot reach {url}: {error}.", remedy="Check telemetry.endpoint.") from error


def retry_after_s(value: str) -> float | None:
    """Seconds, given as such or as a date (RFC 9110, 10.2.3); None if it is neither."""
    if value.isascii() and value.isdigit():
        return float(value[:9])
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
