"""Run code in a child process: a crash, a hang or a memory blow-up there becomes an error here.

The child is a fresh interpreter (`python -m runtimes.isolation`), neither a fork (threads of native runtimes do not
survive one) nor multiprocessing's spawn (which re-imports the parent's main script). Requests and replies are pickles,
each behind its length, over two pipes of their own, so that what native libraries print cannot mix in. The parent
unpickles what the child sends: isolation guards against crashes and resource use, not against a hostile child.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from profiles.errors import EdgewrightError
from runtimes.errors import ChildFailed
from runtimes.session import Array, Feeds, RuntimeInfo, Session, SessionBase, SessionOptions, TensorSpec

_LENGTH = struct.Struct("<Q")
_MAX_REPLY_BYTES = 8 << 30  # a damaged length must not become an allocation
_CHUNK = 1 << 20


class Child:
    """One child process that answers calls one after the other.

    Args:
        memory_bytes: address space the child may use (RLIMIT_AS); None for no limit. Native runtimes reserve far more
            than they touch: leave a gigabyte of room above the expected size.
    """

    def __init__(self, *, memory_bytes: int | None = None) -> None:
        self._memory_bytes = memory_bytes
        request_read, self._requests = os.pipe()
        self._replies, reply_write = os.pipe()
        command = [sys.executable, "-m", "runtimes.isolation", str(request_read), str(reply_write)]
        try:
            self._process = subprocess.Popen(
                [*command, str(memory_bytes or 0)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(request_read, reply_write),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )
        finally:
            os.close(request_read)
            os.close(reply_write)
        os.set_blocking(self._requests, False)

    def call(self, target: str, kwargs: Mapping[str, Any], *, timeout_s: float) -> Any:
        """Call ``module:function`` with ``kwargs`` in the child and return its result.

        Raises:
            ChildFailed: the child crashed, ran out of time (it is killed) or memory, or raised something of its own.
            EdgewrightError: whatever error of ours the function raised.
        """
        deadline = time.monotonic() + timeout_s
        try:
            self._send(pickle.dumps((target, dict(kwargs))), deadline)
            size = _LENGTH.unpack(self._receive(_LENGTH.size, deadline))[0]
            if size > _MAX_REPLY_BYTES:
                raise ConnectionError
            kind, value = pickle.loads(self._receive(size, deadline))
        except TimeoutError as error:
            self.close()
            raise ChildFailed(
                f"{target} did not finish within {timeout_s:g} s.",
                remedy="Raise the time limit, or use a smaller model.",
            ) from error
        except (ConnectionError, OSError, pickle.UnpicklingError, EOFError) as error:
            raise self._death(target) from error
        return self._result(target, kind, value)

    def _result(self, target: str, kind: str, value: Any) -> Any:
        if kind == "result":
            return value
        if kind == "error" and isinstance(value, EdgewrightError):
            raise value
        if kind == "memory":
            limit = f" of {self._memory_bytes >> 20} MiB" if self._memory_bytes else ""
            raise ChildFailed(
                f"{target} ran out of its memory limit{limit}.",
                remedy="Raise the memory limit, or use a smaller model.",
            )
        raise ChildFailed(
            f"{target} failed in its child process: {value}", remedy="Run it without isolation to debug it."
        )

    def _send(self, payload: bytes, deadline: float) -> None:
        view = memoryview(_LENGTH.pack(len(payload)) + payload)
        while view:
            _, ready, _ = select.select([], [self._requests], [], _left(deadline))
            if not ready:
                raise TimeoutError
            view = view[os.write(self._requests, view[:_CHUNK]) :]

    def _receive(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            ready, _, _ = select.select([self._replies], [], [], _left(deadline))
            if not ready:
                raise TimeoutError
            part = os.read(self._replies, min(_CHUNK, size - len(data)))
            if not part:
                raise ConnectionError("the child closed its pipe")
            data += part
        return bytes(data)

    def _death(self, target: str) -> ChildFailed:
        """The child's end in words."""
        code = self._wait()
        self.close()
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
            how = f"was killed by signal {-code} ({name})"
        else:
            how = f"exited with code {code}"
        return ChildFailed(
            f"The child process that ran {target} {how}.", remedy="Do not deploy this model; it breaks its runtime."
        )

    def _wait(self) -> int | None:
        try:
            return self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """End the child. May be called twice."""
        if self._requests >= 0:
            os.close(self._requests)  # end of input: an idle child leaves by itself
            os.close(self._replies)
            self._requests = self._replies = -1
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.0)


def run_isolated(target: str, kwargs: Mapping[str, Any], *, timeout_s: float, memory_bytes: int | None = None) -> Any:
    """Call ``module:function`` once, in a child process of its own. Arguments and result must pickle.

    Raises:
        ChildFailed: crash, time or memory; the child is gone when this returns.
        EdgewrightError: whatever error of ours the function raised.
    """
    with Child(memory_bytes=memory_bytes) as child:
        return child.call(target, kwargs, timeout_s=timeout_s)


class IsolatedSession(SessionBase):
    """A Session whose model lives in a child. After a crash or a timeout every further ``run`` raises ChildFailed."""

    def __init__(self, child: Child, described: tuple[Any, Any, RuntimeInfo], timeout_s: float) -> None:
        self._child: Child | None = child
        self._inputs, self._outputs, self._runtime = described
        self._timeout_s = timeout_s

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(self._inputs)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(self._outputs)

    @property
    def runtime(self) -> RuntimeInfo:
        return self._runtime

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Raises InputMismatch, InferenceFailed, ChildFailed."""
        if self._child is None:
            raise ChildFailed("The child process of this session is gone.", remedy="Open the model again.")
        try:
            result: dict[str, Array] = self._child.call(
                "runtimes.isolation:_child_run", {"feeds": dict(feeds)}, timeout_s=self._timeout_s
            )
        except ChildFailed:
            self.close()
            raise
        return result

    def close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


def open_isolated(
    path: Path,
    *,
    runtime: str | None = None,
    options: SessionOptions | None = None,
    timeout_s: float = 60.0,
    memory_bytes: int | None = None,
) -> Session:
    """``open_session`` in a child process. ``timeout_s`` holds for opening and for each run.

    Raises:
        ChildFailed: opening crashed the child, or took too long or too much memory.
        ModelLoadError, RuntimeMissing, RegistryMiss: as ``open_session``.
    """
    child = Child(memory_bytes=memory_bytes)
    kwargs = {"path": path, "runtime": runtime, "options": options}
    try:
        described = child.call("runtimes.isolation:_child_open", kwargs, timeout_s=timeout_s)
    except BaseException:
        child.close()
        raise
    return IsolatedSession(child, described, timeout_s)


# What follows runs in the child.
_open: list[Session] = []


def _child_open(path: Path, runtime: str | None, options: SessionOptions | None) -> tuple[Any, Any, RuntimeInfo]:
    from runtimes.registry import open_session

    session = open_session(path, runtime=runtime, options=options)
    _open.append(session)
    return session.inputs, session.outputs, session.runtime


def _child_run(feeds: Feeds) -> dict[str, Array]:
    return _open[-1].run(feeds)


def _answer(target: str, kwargs: dict[str, Any]) -> tuple[str, Any]:
    try:
        module, _, name = target.partition(":")
        return "result", getattr(importlib.import_module(module), name)(**kwargs)
    except EdgewrightError as error:
        # "InferenceFailed: bad allocation" and its kin are memory errors that a runtime has wrapped.
        return ("memory", str(error)) if isinstance(error.__cause__, MemoryError) else ("error", error)
    except MemoryError as error:
        return "memory", str(error)
    except Exception as error:  # foreign exceptions may not pickle; their text does
        return "failure", f"{type(error).__name__}: {error}"


def _serve(requests: int, replies: int, memory_bytes: int) -> None:
    """Answer until the parent closes its end."""
    if memory_bytes:
        import resource  # POSIX only

        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    # ``python -m`` runs this file as __main__; targets name it runtimes.isolation, so the session lives in that copy.
    from runtimes.isolation import _answer as answer

    with open(requests, "rb") as source, open(replies, "wb") as sink:
        while len(header := source.read(_LENGTH.size)) == _LENGTH.size:
            target, kwargs = pickle.loads(source.read(_LENGTH.unpack(header)[0]))
            reply = answer(target, kwargs)
            try:
                payload = pickle.dumps(reply)
            except MemoryError as error:
                payload = pickle.dumps(("memory", str(error)))
            except Exception as error:  # pickling can raise anything
                payload = pickle.dumps(("failure", f"its result cannot be sent: {error}"))
            sink.write(_LENGTH.pack(len(payload)) + payload)
            sink.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        _serve(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
