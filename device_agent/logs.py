"""What the agent says: a line per event on standard error, for the journal, and a bounded file for ``edgewright-agent logs``.

A line is text or one JSON object. The file is two halves of JSON lines; the older half goes when the newer one is full. Each
line is one append of less than a page, so that the service and an updater may write at the same time.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from device_agent.config import LogConfig

FILE, OLDER = "agent.log", "agent.log.1"
_MAX_LINE = 4000
_STANDARD = frozenset(vars(logging.makeLogRecord({})))


def set_up(config: LogConfig, folder: Path, *, verbose: bool = False) -> None:
    """Send everything that is logged from here on to standard error and the file. What cannot be written is let go."""
    level = logging.DEBUG if verbose else logging.getLevelNamesMapping()[config.level.upper()]
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(JsonLines() if config.format == "json" else logging.Formatter(_TEXT))
    handlers: list[logging.Handler] = [stream]
    if config.keep_bytes:
        handlers.append(_Halves(folder, config.keep_bytes // 2))
    logging.basicConfig(level=level, handlers=handlers, force=True)


_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonLines(logging.Formatter):
    """time (seconds since 1970), level, logger, message, trace where there is one, and whatever ``extra`` brought."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            document["trace"] = "".join(traceback.format_exception(*record.exc_info))[-2000:]
        document |= {name: value for name, value in vars(record).items() if name not in _STANDARD and name != "message"}
        return json.dumps(document, default=str)


class _Halves(logging.Handler):
    def __init__(self, folder: Path, half_bytes: int) -> None:
        super().__init__()
        self._path, self._older, self._half = folder / FILE, folder / OLDER, half_bytes
        self.setFormatter(JsonLines())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode("utf-8", "replace")
            if len(line) > _MAX_LINE:
                short = {
                    "time": record.created,
                    "level": record.levelname.lower(),
                    "message": record.getMessage()[:2000],
                }
                line = json.dumps(short).encode()
            self._append(line + b"\n")
        except (OSError, ValueError):
            pass  # a full disk must not stop the agent, and there is nowhere to say so

    def _append(self, line: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        try:
            os.write(descriptor, line)
            full = os.fstat(descriptor).st_size >= self._half
        finally:
            os.close(descriptor)
        if full:
            self._path.replace(self._older)


def read_logs(folder: Path, *, last: int, level: str = "debug") -> list[dict[str, Any]]:
    """The newest ``last`` lines of at least ``level``, oldest first; damaged lines are left out."""
    least = logging.getLevelNamesMapping()[level.upper()]
    found = [line for line in _lines(folder) if _rank(line) >= least]
    return found[-last:] if last > 0 else []


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    for name in (OLDER, FILE):
        try:
            data = (folder / name).read_bytes()
        except OSError:
            continue
        for line in data.splitlines():
            try:
                document = json.loads(line)
            except ValueError:
                continue
            if isinstance(document, dict) and "message" in document:
                yield document


def _rank(line: dict[str, Any]) -> int:
    return logging.getLevelNamesMapping().get(str(line.get("level", "")).upper(), 0)
