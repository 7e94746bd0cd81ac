"""Functions that misbehave, for tests/runtimes/test_isolation.py."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from runtimes.errors import DeltaError


def add(first: Any, second: Any) -> Any:
    return first + second


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave() -> None:
    print("about to leave", file=sys.stderr, flush=True)
    os._exit(7)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def eat(size_bytes: int) -> None:
    block = bytearray(os.urandom(1024)) * (size_bytes // 1024)
    time.sleep(30)
    del block


def refuse() -> None:
    raise DeltaError("the patch is damaged", remedy="Fetch it again.")


def divide() -> float:
    return 1 / 0


def chatter() -> str:
    print("a runtime that prints to stdout")
    os.write(1, b"and writes to descriptor 1\n")
    return "answer"
