"""A small OTLP/HTTP receiver for the demo: keeps what arrives and can say what it saw.

Real fleets run an OpenTelemetry collector.
"""

from __future__ import annotations

import gzip
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

MAX_BODY_BYTES = 8 << 20


class Receiver:
    """Listens on a free loopback port while used as a context manager."""

    def __init__(self) -> None:
        self.metrics: Counter[str] = Counter()  # data points by metric name
        self.sums: dict[str, float] = {}  # last value of each cumulative or summed delta point
        self.events: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def accept(self, path: str, body: bytes) -> bytes | None:
        """Decode one request; None for a path that OTLP/HTTP does not have."""
        if path == "/v1/metrics":
            self._metrics(ExportMetricsServiceRequest.FromString(body))
            return bytes(ExportMetricsServiceResponse().SerializeToString())
        if path == "/v1/logs":
            logs = ExportLogsServiceRequest.FromString(body)
            for resource in logs.resource_logs:
                for scope in resource.scope_logs:
                    self.events += [record.body.string_value for record in scope.log_records]
            return bytes(ExportLogsServiceResponse().SerializeToString())
        return None

    def _metrics(self, request: ExportMetricsServiceRequest) -> None:
        for resource in request.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    points = getattr(metric, str(metric.WhichOneof("data"))).data_points
                    self.metrics[metric.name] += len(points)
                    for point in points:
                        value = getattr(point, "as_int", 0) or getattr(point, "as_double", 0.0)
                        self.sums[metric.name] = self.sums.get(metric.name, 0.0) + (value or getattr(point, "count", 0))


def _handler_for(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            if length > MAX_BODY_BYTES:
                self.send_error(413)
                return
            body = self.rfile.read(length)
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            answer = receiver.accept(self.path, body)
            self.send_response(404 if answer is None else 200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer or b"")))
            self.end_headers()
            self.wfile.write(answer or b"")

        def log_message(self, format: str, *args: object) -> None:
            return None

    return Handler
