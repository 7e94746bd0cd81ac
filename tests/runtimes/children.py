"""Functions that misbehave, for tests to run in a child."""

from __future__ import annotations

import os
import signal
import time

from runtimes.errors import ModelLoadError


def double(x: int) -> int:
    return 2 * x


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(code: int) -> None:
    os._exit(code)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def allocate(size_bytes: int) -> int:
    return len(bytearray(size_bytes))


def refuse() -> None:
    raise ModelLoadError("layer stem/conv1 is broken", remedy="Mend stem/conv1.")


def foreign() -> None:
    raise KeyError("inner")


def unpicklable() -> object:
    return lambda: None
