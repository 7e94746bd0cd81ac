"""The Open Inference Protocol v2 over HTTP, on loopback or a unix socket: bottle routes, waitress serves."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from device_agent.config import ServerConfig
from device_agent.engine import Engine
from device_agent.errors import ConfigError, NotInstalled, RequestError
from device_agent.media import classification, feeds_of
from device_agent.oip import Asked, decode_request, describe, encode_response
from device_agent.version import VERSION
from profiles.errors import EdgewrightError

log = logging.getLogger(__name__)
HEADER = "Inference-Header-Content-Length"
ID_HEADER = "X-Request-Id"  # for requests whose body has no place for one
Handler = Callable[..., bytes]
_MODEL = "/v2/models/<model>"
_VERSIONED = f"{_MODEL}/versions/<version>"
# Connections that the kernel has already accepted for us come in within this time of a stop.
_SETTLE_S = 0.05
_POLL_S = 0.02
_PLATFORMS = {"onnx": "onnx_onnxv1", "tflite": "tflite", "coreml": "coreml"}


def make_app(engine: Engine, *, max_request_bytes: int) -> Any:
    """The WSGI application (a bottle.Bottle)."""
    from bottle import Bottle, request, response

    app, handlers = Bottle(), _Handlers(engine, max_request_bytes, request, response)
    for method, path, handler in handlers.routes():
        app.route(path, method, handlers.guarded(handler))
        if path.startswith(_MODEL):
            app.route(path.replace(_MODEL, _VERSIONED), method, handlers.guarded(handler))
    for status in (404, 405):
        app.error(status)(handlers.no_route)
    return app


class _Handlers:
    """One method per route. ``request`` and ``response`` are bottle's own, which stand for the thread's."""

    def __init__(self, engine: Engine, max_request_bytes: int, request: Any, response: Any) -> None:
        self._engine, self._limit = engine, max_request_bytes
        self._request, self._response = request, response

    def routes(self) -> tuple[tuple[str, str, Handler], ...]:
        return (
            ("GET", "/v2", self.server),
            ("GET", "/v2/health/live", self.live),
            ("GET", "/v2/health/ready", self.ready),
            ("GET", _MODEL, self.model),
            ("GET", f"{_MODEL}/ready", self.model_ready),
            ("POST", f"{_MODEL}/infer", self.infer),
            ("POST", f"{_MODEL}/feedback", self.feedback),
        )

    def guarded(self, handler: Handler) -> Handler:
        def wrapped(**arguments: str) -> bytes:
            try:
                return handler(**arguments)
            except Exception as error:  # the server's last line: an error is an answer
                status, message = _as_answer(error)
                return self._answer({"error": message}, status)

        return wrapped

    def _answer(self, document: dict[str, Any], status: int = 200) -> bytes:
        self._response.status, self._response.content_type = status, "application/json"
        return json.dumps(document).encode()

    def no_route(self, error: Any) -> bytes:
        return self._answer({"error": f"{error.status_line}: {self._request.path}"}, error.status_code)

    def server(self) -> bytes:
        return self._answer({"name": "edgewright-agent", "version": VERSION, "extensions": ["binary_tensor_data"]})

    def live(self) -> bytes:
        return self._answer({"live": True})

    def ready(self) -> bytes:
        all_ready = all(self._engine.is_ready(name) for name in self._engine.names())
        return self._answer({"ready": all_ready}, 200 if all_ready else 503)

    def model(self, model: str, version: str | None = None) -> bytes:
        self._check_version(model, version)
        return self._answer(_metadata(self._engine, model))

    def model_ready(self, model: str, version: str | None = None) -> bytes:
        self._engine.store(model)  # an unknown model is 404, one without a release 503
        if not self._engine.is_ready(model):
            return self._answer({"name": model, "ready": False}, 503)
        self._check_version(model, version)
        return self._answer({"name": model, "ready": True})

    def infer(self, model: str, version: str | None = None) -> bytes:
        kind = (self._request.content_type or "").partition(";")[0].strip().lower()
        if kind.startswith(("image/", "audio/")):
            return self._infer_media(model, version)
        asked = decode_request(self._body(), _header_length(self._request.get_header(HEADER)))
        self._check_version(model, version)
        release = self._engine.manifest(model).release
        outputs = self._engine.infer(model, asked.feeds, request=asked.id)
        payload, header = encode_response(asked, outputs, model=model, version=release)
        self._response.content_type = "application/json" if header is None else "application/octet-stream"
        if header is not None:
            self._response.set_header(HEADER, str(header))
        return payload

    def _infer_media(self, model: str, version: str | None) -> bytes:
        """A picture or a recording as it is; the answer is the protocol's JSON, with labels where the manifest has them."""
        self._check_version(model, version)
        manifest = self._engine.manifest(model)
        identity = self._request.get_header(ID_HEADER)
        outputs = self._engine.infer(model, feeds_of(manifest, self._body()), request=identity)
        asked = Asked(identity, {}, (), frozenset(), False)
        payload, _ = encode_response(asked, outputs, model=model, version=manifest.release)
        return self._answer(json.loads(payload) | {"classification": classification(manifest, outputs)})

    def feedback(self, model: str, version: str | None = None) -> bytes:
        """``{"id": the request's, "label": the true class}``: says whether the answer was right, and counts it."""
        self._engine.store(model)
        try:
            document = json.loads(self._body())
            identity, label = document["id"], document["label"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RequestError(
                f"The truth cannot be read: {error!r}.", remedy='Send {"id": ..., "label": ...}.'
            ) from error
        return self._answer({"id": identity, "correct": self._engine.truth.feed_back(model, str(identity), label)})

    def _body(self) -> bytes:
        length = self._request.content_length
        if length > self._limit:
            raise RequestError(
                f"The body has {length} bytes, at most {self._limit} are read.",
                remedy="Send smaller batches, or raise server.max_request_bytes.",
                status=413,
            )
        body: bytes = self._request.environ["wsgi.input"].read(length) if length > 0 else b""
        return body

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


def _as_answer(error: Exception) -> tuple[int, str]:
    if isinstance(error, RequestError):
        return error.status, f"{error.message} {error.remedy}"
    if isinstance(error, NotInstalled):
        return 503, f"{error.message} {error.remedy}"
    if isinstance(error, EdgewrightError):
        log.error("Inference failed: %s", error)
        return 500, f"{error.message} {error.remedy}"
    log.exception("A request failed inside the agent")
    return 500, f"internal error: {type(error).__name__}"


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
