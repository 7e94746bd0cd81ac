"""A WSGI application in sixty lines: routes of fixed depth, answers with a length. waitress does the serving.

A framework for seven routes was 3.5 to 9 MiB and 40 ms of every start (docs/adr/0022).
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

_STATUS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


class Request(NamedTuple):
    """One request; ``environ`` is WSGI's (PEP 3333)."""

    environ: Mapping[str, Any]

    @property
    def length(self) -> int:
        """Bytes of the body, as the server counted them."""
        value = str(self.environ.get("CONTENT_LENGTH") or "0")
        return int(value) if value.isascii() and value.isdigit() else 0

    @property
    def content_type(self) -> str:
        return str(self.environ.get("CONTENT_TYPE") or "").partition(";")[0].strip().lower()

    def header(self, name: str) -> str | None:
        value = self.environ.get("HTTP_" + name.upper().replace("-", "_"))
        return None if value is None else str(value)

    def read(self) -> bytes:
        return bytes(self.environ["wsgi.input"].read(self.length)) if self.length else b""


class Answer(NamedTuple):
    body: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


def as_json(document: object, status: int = 200) -> Answer:
    return Answer(json.dumps(document).encode(), status)


Handler = Callable[..., Answer]


class App:
    """Routes are paths whose parts in angle brackets become arguments: ``/v2/models/<model>/infer``.

    Args:
        failed: turns whatever a handler raised into an answer.
    """

    def __init__(self, failed: Callable[[Exception], Answer]) -> None:
        self._failed = failed
        self._routes: list[tuple[str, tuple[str, ...], Handler]] = []

    def route(self, method: str, path: str, handler: Handler) -> None:
        self._routes.append((method, tuple(path.strip("/").split("/")), handler))

    def __call__(self, environ: Mapping[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        # WSGI hands the path over as bytes in latin-1 clothes.
        path = str(environ.get("PATH_INFO") or "/").encode("latin-1").decode("utf-8", "replace")
        method = str(environ["REQUEST_METHOD"])
        answer = self._answer("GET" if method == "HEAD" else method, path, Request(environ))
        kind, size = ("Content-Type", answer.content_type), ("Content-Length", str(len(answer.body)))
        start_response(f"{answer.status} {_STATUS.get(answer.status, 'Error')}", [kind, size, *answer.headers])
        return [] if method == "HEAD" else [answer.body]

    def _answer(self, method: str, path: str, request: Request) -> Answer:
        parts, known = path.removeprefix("/").split("/"), False
        for wanted, pattern, handler in self._routes:
            arguments = _match(pattern, parts)
            if arguments is None:
                continue
            if wanted == method:
                try:
                    return handler(request, **arguments)
                except Exception as error:  # the server's last line: an error is an answer
                    return self._failed(error)
            known = True
        status = 405 if known else 404
        return as_json({"error": f"{status} {_STATUS[status]}: {path}"}, status)


def _match(pattern: tuple[str, ...], parts: list[str]) -> dict[str, str] | None:
    if len(pattern) != len(parts):
        return None
    arguments: dict[str, str] = {}
    for want, have in zip(pattern, parts, strict=True):
        if want.startswith("<") and have:
            arguments[want[1:-1]] = have
        elif want != have:
            return None
    return arguments
