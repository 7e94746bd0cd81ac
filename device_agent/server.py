"""The Open Inference Protocol v2 over HTTP, on loopback or a unix socket: bottle routes, waitress serves."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

from device_agent.config import ServerConfig
from device_agent.engine import Engine
from device_agent.errors import ConfigError, NotInstalled, RequestError
from device_agent.oip import decode_request, describe, encode_response
from device_agent.version import VERSION
from profiles.errors import EdgewrightError

log = logging.getLogger(__name__)
HEADER = "Inference-Header-Content-Length"
_PLATFORMS = {"onnx": "onnx_onnxv1", "tflite": "tflite", "coreml": "coreml"}


def make_app(engine: Engine, *, max_request_bytes: int) -> Any:
    """The WSGI application (a bottle.Bottle)."""
    from bottle import Bottle, request, response

    app = Bottle()

    def answer(document: dict[str, Any], status: int = 200) -> bytes:
        response.status, response.content_type = status, "application/json"
        return json.dumps(document).encode()

    def guarded(handler: Callable[..., bytes]) -> Callable[..., bytes]:
        def wrapped(**arguments: str) -> bytes:
            try:
                return handler(**arguments)
            except Exception as error:  # the server's last line: an error is an answer
                status, message = _as_answer(error)
                return answer({"error": message}, status)

        return wrapped

    def route(path: str, method: str = "GET") -> Callable[[Callable[..., bytes]], Callable[..., bytes]]:
        def add(handler: Callable[..., bytes]) -> Callable[..., bytes]:
            app.route(path, method, guarded(handler))
            return handler

        return add

    def check_version(model: str, version: str | None) -> None:
        running = engine.manifest(model).release
        if version is not None and version != running:
            raise RequestError(f"Model {model!r} runs {running}, not {version}.", remedy="Omit it.", status=404)

    @route("/v2")
    def server_metadata() -> bytes:
        return answer({"name": "edgewright-agent", "version": VERSION, "extensions": ["binary_tensor_data"]})

    @route("/v2/health/live")
    def live() -> bytes:
        return answer({"live": True})

    @route("/v2/health/ready")
    def ready() -> bytes:
        all_ready = all(engine.is_ready(name) for name in engine.names())
        return answer({"ready": all_ready}, 200 if all_ready else 503)

    @route("/v2/models/<model>")
    @route("/v2/models/<model>/versions/<version>")
    def model_metadata(model: str, version: str | None = None) -> bytes:
        check_version(model, version)
        return answer(_metadata(engine, model))

    @route("/v2/models/<model>/ready")
    @route("/v2/models/<model>/versions/<version>/ready")
    def model_ready(model: str, version: str | None = None) -> bytes:
        engine.store(model)  # an unknown model is 404, one without a release 503
        if not engine.is_ready(model):
            return answer({"name": model, "ready": False}, 503)
        check_version(model, version)
        return answer({"name": model, "ready": True})

    @route("/v2/models/<model>/infer", "POST")
    @route("/v2/models/<model>/versions/<version>/infer", "POST")
    def infer(model: str, version: str | None = None) -> bytes:
        length = request.content_length
        if length > max_request_bytes:
            raise RequestError(
                f"The body has {length} bytes, at most {max_request_bytes} are read.",
                remedy="Send smaller batches, or raise server.max_request_bytes.",
                status=413,
            )
        body = request.environ["wsgi.input"].read(length) if length > 0 else b""
        asked = decode_request(body, _header_length(request.get_header(HEADER)))
        check_version(model, version)
        release = engine.manifest(model).release
        payload, header = encode_response(asked, engine.infer(model, asked.feeds), model=model, version=release)
        response.content_type = "application/json" if header is None else "application/octet-stream"
        if header is not None:
            response.set_header(HEADER, str(header))
        return payload

    def not_found(error: Any) -> bytes:
        return answer({"error": f"{error.status_line}: {request.path}"}, error.status_code)

    for status in (404, 405):
        app.error(status)(not_found)
    return app


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
    """The listening server; ``start`` returns at once, ``stop`` waits for requests inside.

    Args:
        engine: answers the requests.
    """

    def __init__(self, engine: Engine, config: ServerConfig) -> None:
        self._config = config
        self._app = make_app(engine, max_request_bytes=config.max_request_bytes)
        self._server: Any = None
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
                self._server = create_server(self._app, unix_socket=str(path), unix_socket_perms="660", **limits)
            else:
                address = {"host": self._config.host, "port": self._config.port}
                self._server = create_server(self._app, **address, **limits)
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
        port = self._server.effective_port if self._server is not None else self._config.port
        return f"http://{self._config.host}:{port}"

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop accepting, let running requests finish, close."""
        if self._server is None:
            return
        self._server.task_dispatcher.shutdown(cancel_pending=True, timeout=timeout_s)
        self._server.close()
        if self._thread is not None:
            self._thread.join(timeout_s)
        if self._config.unix_socket is not None:
            self._config.unix_socket.unlink(missing_ok=True)
        self._server = None


def is_loopback(host: str) -> bool:
    """Whether an address stays on this machine; anything else is said loudly at start."""
    return host in ("localhost", "::1") or host.startswith("127.")
