"""Run a function, or a whole session, in a child process: what crashes, hangs or eats memory there stays there.

The child is a fresh interpreter (`python -m runtimes.isolation`), so that nothing loaded here is loaded there. Requests and answers
are pickles over its own pipes, written by us on both sides; the child never unpickles anything that a model file holds.
"""

from __future__ import annotations

import importlib
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from profiles.errors import EdgewrightError
from runtimes.errors import ChildFailed
from runtimes.session import Array, Feeds, RuntimeInfo, Session, SessionBase, SessionOptions, TensorSpec

_LENGTH = struct.Struct("<Q")
POLL_S = 0.05
STDERR_TAIL_BYTES = 2000


def run_isolated(target: str, kwargs: Mapping[str, Any], *, timeout_s: float, memory_bytes: int | None = None) -> Any:
    """Call ``module:function`` with ``kwargs`` in a child process and return what it returns.

    Args:
        target: the function, importable by name.
        kwargs: picklable arguments; arrays are copied through the pipe.
        timeout_s: the child is killed after this time.
        memory_bytes: the child is killed when its resident memory exceeds this.

    Raises:
        ChildFailed: the child crashed (the signal is named), ran out of time or memory, or failed in a way of its own.
        EdgewrightError: what the function raised.
    """
    with _Child(memory_bytes) as child:
        return child.call(target, kwargs, timeout_s)


class IsolatedSession(SessionBase):
    """A Session whose model lives in a child process. See ``open_isolated``."""

    def __init__(self, child: _Child, facts: tuple[Any, Any, Any], timeout_s: float) -> None:
        self._child = child
        self._timeout_s = timeout_s
        self.inputs: tuple[TensorSpec, ...] = facts[0]
        self.outputs: tuple[TensorSpec, ...] = facts[1]
        self.runtime: RuntimeInfo = facts[2]

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run once in the child. Raises ChildFailed besides what Session.run raises; the session is unusable after that."""
        outputs: dict[str, Array] = self._child.call(
            "runtimes.isolation:_run_held", {"feeds": dict(feeds)}, self._timeout_s
        )
        return outputs

    def close(self) -> None:
        self._child.close()


def open_isolated(
    path: Path,
    *,
    runtime: str | None = None,
    options: SessionOptions | None = None,
    timeout_s: float,
    memory_bytes: int | None = None,
) -> Session:
    """Open an artifact of unknown origin in a child process.

    Args:
        path, runtime, options: as for runtimes.registry.open_session.
        timeout_s: for opening, and for each run.
        memory_bytes: resident memory that the child may use.

    Raises:
        ChildFailed: opening crashed the child, or took too long or too much.
        RuntimeFailure: the runtime refused the file.
    """
    child = _Child(memory_bytes)
    try:
        arguments = {"path": str(path.resolve()), "runtime": runtime, "options": options}
        return IsolatedSession(child, child.call("runtimes.isolation:_hold", arguments, timeout_s), timeout_s)
    except BaseException:
        child.close()
        raise


class _Child:
    """The parent's end: one process, one call at a time."""

    def __init__(self, memory_bytes: int | None) -> None:
        self._memory_bytes = memory_bytes
        self._why: str | None = None
        root = str(Path(__file__).resolve().parents[1])
        paths = os.pathsep.join([root, *(p for p in sys.path if p and p != root)])
        environment = os.environ | {"PYTHONPATH": paths, "ORT_DISABLE_TELEMETRY": "1"}
        command = [sys.executable, "-m", "runtimes.isolation"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
        self._stderr = bytearray()
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *arguments: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child; harmless when repeated."""
        self._process.kill()
        self._process.wait()
        self._reader.join(5)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    def call(self, target: str, kwargs: Mapping[str, Any], timeout_s: float) -> Any:
        done = threading.Event()
        watch = threading.Thread(target=self._watch, args=(timeout_s, done), daemon=True)
        watch.start()
        try:
            assert self._process.stdin and self._process.stdout
            _send(self._process.stdin, (target, dict(kwargs)))
            kind, value = _receive(self._process.stdout)
        except (OSError, EOFError, ValueError) as error:
            raise self._failure(target) from error
        finally:
            done.set()
            watch.join()
        if kind == "returned":
            return value
        if isinstance(value, EdgewrightError):
            raise value
        raise ChildFailed(f"{target} failed in its child process:\n{value}", remedy="Report this with the trace above.")

    def _watch(self, timeout_s: float, done: threading.Event) -> None:
        """Kill the child when its time or memory is used up."""
        deadline = time.monotonic() + timeout_s
        while not done.wait(POLL_S):
            if time.monotonic() > deadline:
                self._why = f"it did not finish within {timeout_s:g} s"
            elif self._memory_bytes is not None and _resident_bytes(self._process.pid) > self._memory_bytes:
                self._why = f"it used more than {self._memory_bytes} bytes of memory"
            if self._why:
                self._process.kill()
                return

    def _failure(self, target: str) -> ChildFailed:
        code = self._process.wait()
        self._reader.join(5)
        why = self._why or (f"it died of {_signal_name(-code)}" if code < 0 else f"it ended with exit code {code}")
        tail = self._stderr[-STDERR_TAIL_BYTES:].decode("utf-8", "replace").strip()
        return ChildFailed(
            f"The child process that ran {target} failed: {why}." + (f" Its last words:\n{tail}" if tail else ""),
            remedy="Do not use this file on a device; rebuild it, or raise the limit if it is only slow or large.",
        )

    def _drain(self) -> None:
        assert self._process.stderr
        with suppress(OSError, ValueError):
            while chunk := self._process.stderr.read1(65536):  # type: ignore[attr-defined]
                self._stderr += chunk
                del self._stderr[: -2 * STDERR_TAIL_BYTES]


def _signal_name(number: int) -> str:
    with suppress(ValueError):
        return f"signal {number} ({signal.Signals(number).name})"
    return f"signal {number}"


def _resident_bytes(pid: int) -> int:
    """Resident set size now; 0 where /proc does not tell (the limit is then not enforced)."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
        return pages * resource.getpagesize()
    return 0


def _send(stream: IO[bytes], message: object) -> None:
    data = pickle.dumps(message, protocol=5)
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    data = stream.read(_LENGTH.unpack(header)[0])
    if len(data) < _LENGTH.unpack(header)[0]:
        raise EOFError
    return pickle.loads(data)


_held: Session | None = None  # the child's session, between _hold and the runs


def _hold(path: str, runtime: str | None, options: SessionOptions | None) -> tuple[Any, Any, Any]:
    global _held
    from runtimes.registry import open_session

    _held = open_session(Path(path), runtime=runtime, options=options)
    return _held.inputs, _held.outputs, _held.runtime


def _run_held(feeds: dict[str, Array]) -> dict[str, Array]:
    assert _held is not None
    return _held.run(feeds)


def _serve() -> None:
    """The child's loop: answer calls until the pipe closes."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a runtime prints must not end up among the answers
    # `python -m` runs this file as __main__; calls must reach the module under its own name, where its state lives.
    while True:
        try:
            target, kwargs = _receive(requests)
        except EOFError:
            return
        _send(answers, _answer(target, kwargs))


def _answer(target: str, kwargs: dict[str, Any]) -> tuple[str, Any]:
    import traceback

    try:
        module, _, name = target.partition(":")
        return "returned", getattr(importlib.import_module(module), name)(**kwargs)
    except EdgewrightError as error:
        return "raised", error
    except Exception:  # reported to the parent, which turns it into ChildFailed
        return "raised", traceback.format_exc()


if __name__ == "__main__":
    _serve()
