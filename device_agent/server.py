"""The Open Inference Protocol v2 over HTTP, on loopback or a unix socket, served by waitress."""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import Any

from device_agent.config import ServerConfig
from device_agent.engine import Engine
from device_agent.errors import ConfigError, NotInstalled, RequestError
from device_agent.health_report import describe_health
from device_agent.http_app import Answer, App, Handler, Request, as_json
from device_agent.media import classification
from device_agent.oip import Asked, decode_request, describe, encode_response
from device_agent.version import VERSION
from profiles.errors import EdgewrightError
from runtimes.artifact.manifest import Manifest

log = logging.getLogger(__name__)
HEADER = "Inference-Header-Content-Length"
ID_HEADER = "X-Request-Id"  # for requests whose body has no place for one
_MODEL = "/v2/models/<model>"
_VERSIONED = f"{_MODEL}/versions/<version>"
# Connections that the kernel has already accepted for us come in within this time of a stop.
_SETTLE_S = 0.05
_POLL_S = 0.02
_PLATFORMS = {"onnx": "onnx_onnxv1", "tflite": "tflite", "coreml": "coreml"}


def make_app(engine: Engine, *, max_request_bytes: int) -> App:
    """The WSGI application."""
    handlers = _Handlers(engine, max_request_bytes)
    app = App(_as_answer)
    for method, path, handler in handlers.routes():
        app.route(method, path, handler)
        if path.startswith(_MODEL):
            app.route(method, path.replace(_MODEL, _VERSIONED), handler)
    return app


class _Handlers:
    """One method per route."""

    def __init__(self, engine: Engine, max_request_bytes: int) -> None:
        self._engine, self._limit = engine, max_request_bytes

    def routes(self) -> tuple[tuple[str, str, Handler], ...]:
        return (
            ("GET", "/v2", self.server),
            ("GET", "/v2/health/live", self.live),
            ("GET", "/v2/health/ready", self.ready),
            ("GET", "/health", self.health),
            ("GET", _MODEL, self.model),
            ("GET", f"{_MODEL}/ready", self.model_ready),
            ("POST", f"{_MODEL}/infer", self.infer),
            ("POST", f"{_MODEL}/feedback", self.feedback),
        )

    def server(self, request: Request) -> Answer:
        return as_json({"name": "edgewright-agent", "version": VERSION, "extensions": ["binary_tensor_data"]})

    def live(self, request: Request) -> Answer:
        return as_json({"live": True})

    def ready(self, request: Request) -> Answer:
        all_ready = all(self._engine.is_ready(name) for name in self._engine.names())
        return as_json({"ready": all_ready}, 200 if all_ready else 503)

    def health(self, request: Request) -> Answer:
        """What the health file says as well; 503 unless every model answers with its own release."""
        found = describe_health(self._engine)
        return as_json(found, 200 if found["healthy"] else 503)

    def model(self, request: Request, model: str, version: str | None = None) -> Answer:
        self._check_version(model, version)
        return as_json(_metadata(self._engine, model))

    def model_ready(self, request: Request, model: str, version: str | None = None) -> Answer:
        self._engine.store(model)  # an unknown model is 404, one without a release 503
        if not self._engine.is_ready(model):
            return as_json({"name": model, "ready": False}, 503)
        self._check_version(model, version)
        return as_json({"name": model, "ready": True})

    def infer(self, request: Request, model: str, version: str | None = None) -> Answer:
        self._check_version(model, version)
        manifest = self._engine.manifest(model)
        media = request.content_type.startswith(("image/", "audio/"))
        try:
            asked = self._asked_media(request, manifest) if media else self._asked(request)
        except RequestError:
            self._engine.refuse(model)  # what the engine refuses it counts itself
            raise
        result = self._engine.answer(model, asked.feeds, request=asked.id, timeout_s=asked.timeout_s)
        payload, header = encode_response(
            asked, result.outputs, model=model, version=result.release, answered_by=result.fallback
        )
        if media:
            shown = json.loads(payload) | {"classification": classification(manifest, result.outputs)}
            return as_json(shown)
        if header is None:
            return Answer(payload)
        return Answer(payload, content_type="application/octet-stream", headers=((HEADER, str(header)),))

    def _asked(self, request: Request) -> Asked:
        return decode_request(self._body(request), _header_length(request.header(HEADER)))

    def _asked_media(self, request: Request, manifest: Manifest) -> Asked:
        """A picture or a recording as it is; the answer is the protocol's JSON, with labels where the manifest has them."""
        from device_agent.media import feeds_of

        return Asked(request.header(ID_HEADER), feeds_of(manifest, self._body(request)), (), frozenset(), False)

    def feedback(self, request: Request, model: str, version: str | None = None) -> Answer:
        """``{"id": the request's, "label": the true class}``: says whether the answer was right, and counts it."""
        self._engine.store(model)
        try:
            document = json.loads(self._body(request))
            identity, label = document["id"], document["label"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RequestError(
                f"The truth cannot be read: {error!r}.", remedy='Send {"id": ..., "label": ...}.'
            ) from error
        return as_json({"id": identity, "correct": self._engine.truth.feed_back(model, str(identity), label)})

    def _body(self, request: Request) -> bytes:
        if request.length > self._limit:
            raise RequestError(
                f"The body has {request.length} bytes, at most {self._limit} are read.",
                remedy="Send smaller batches, or raise server.max_request_bytes.",
                status=413,
            )
        return request.read()

    def _check_version(self, model: str, version: str | None) -> None:
        running = self._engine.manifest(model).release
        if version is not None and version != running:
            raise RequestError(f"Model {model!r} runs {running}, not {version}.", remedy="Omit it.", status=404)


def _metadata(engine: Engine, model: str) -> dict[str, Any]:
    manifest = engine.manifest(model)
    return {
        "name": model,
        "versions": [manifest.release],
        "platform": _PLATFORMS[manifest.artifacts[0].format],
        "inputs": [describe(spec) for spec in manifest.inputs],
        "outputs": [describe(spec) for spec in manifest.outputs],
    }


def _header_length(value: str | None) -> int | None:
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 12:
        raise RequestError(f"{HEADER} is {value[:40]!r}.", remedy="Send the number of bytes of the JSON part.")
    return int(value)


def _as_answer(error: Exception) -> Answer:
    if isinstance(error, RequestError):
        return as_json({"error": f"{error.message} {error.remedy}"}, error.status)
    if isinstance(error, NotInstalled):
        return as_json({"error": f"{error.message} {error.remedy}"}, 503)
    if isinstance(error, EdgewrightError):
        log.error("Inference failed: %s", error)
        return as_json({"error": f"{error.message} {error.remedy}"}, 500)
    log.exception("A request failed inside the agent")
    return as_json({"error": f"internal error: {type(error).__name__}"}, 500)


class Server:
    """The listening server; ``start`` returns at once, ``stop`` answers what has come in.

    Args:
        engine: answers the requests.
    """

    def __init__(self, engine: Engine, config: ServerConfig) -> None:
        self._config = config
        self._app = make_app(engine, max_request_bytes=config.max_request_bytes)
        self._server: Any = None
        self._sockets: dict[int, Any] = {}  # waitress registers listeners and connections here
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Bind and serve. Raises ConfigError if the address cannot be bound."""
        from waitress.server import create_server

        limits = {
            "threads": self._config.threads,
            # waitress refuses with plain text above this; the route refuses first, in JSON, from the length alone.
            "max_request_body_size": self._config.max_request_bytes + (64 << 10),
            "ident": None,
            "channel_timeout": 60,
        }
        try:
            if self._config.unix_socket is not None:
                path = self._config.unix_socket
                path.unlink(missing_ok=True)  # left by a killed agent; binding would fail
                self._server = create_server(
                    self._app, map=self._sockets, unix_socket=str(path), unix_socket_perms="660", **limits
                )
            else:
                address = {"host": self._config.host, "port": self._config.port}
                self._server = create_server(self._app, map=self._sockets, **address, **limits)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"Cannot listen at {self.where()}: {error}.", remedy="Choose another server.port or unix_socket."
            ) from error
        self._thread = threading.Thread(target=self._serve, name="oip-server", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self._server.run()
        except OSError as error:  # the listening socket was closed by stop()
            log.debug("The server loop ended: %s", error)

    def where(self) -> str:
        """The address that clients use."""
        if self._config.unix_socket is not None:
            return f"unix:{self._config.unix_socket}"
        listeners = self._listeners()
        port = listeners[0].effective_port if listeners else self._config.port
        return f"http://{self._config.host}:{port}"

    def stop(self, timeout_s: float | None = None) -> None:
        """Accept no more connections, answer every request that has come in, close.

        Args:
            timeout_s: what is not answered by then is cut off; default: server.stop_timeout_s.
        """
        if self._server is None:
            return
        deadline = time.monotonic() + (self._config.stop_timeout_s if timeout_s is None else timeout_s)
        time.sleep(_SETTLE_S)
        for listener in self._listeners():
            listener.accepting = False
        while not self._is_idle() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if not self._is_idle():
            log.warning("Requests were cut off: they took longer than server.stop_timeout_s allows")
        self._server.task_dispatcher.shutdown(cancel_pending=True, timeout=max(deadline - time.monotonic(), 0.1))
        for one in list(self._sockets.values()):  # the loop ends when nothing is left in its map
            one.close()
        if self._thread is not None:
            self._thread.join(5.0)
        if self._config.unix_socket is not None:
            self._config.unix_socket.unlink(missing_ok=True)
        self._server = None

    def _listeners(self) -> list[Any]:
        """One per address: a name such as localhost may have several."""
        return [found for found in list(self._sockets.values()) if hasattr(found, "active_channels")]

    def _is_idle(self) -> bool:
        """No request is being read, waits, runs, or has an answer still to send."""
        channels = [c for listener in self._listeners() for c in list(listener.active_channels.values())]
        return not any(c.request is not None or c.requests or c.total_outbufs_len for c in channels)


def is_loopback(host: str) -> bool:
    """Whether an address stays on this machine; anything else is said loudly at start."""
    return host in ("localhost", "::1") or host.startswith("127.")
