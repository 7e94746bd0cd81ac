"""A small coverage-guided fuzzer: inputs that reach lines or branches which none reached before are kept and mutated further.

Coverage is the set of (file, line before, line) within our own packages, by sys.settrace; mutations are those of AFL's havoc stage
(M. Zalewski, "Technical whitepaper for afl-fuzz"): flips, interesting integers, blocks copied, cut, overwritten, spliced.
"""

from __future__ import annotations

import random
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from profiles.errors import EdgewrightError

Edge = tuple[str, int, int]
OURS = ("/runtimes/artifact/", "/device_agent/source.py", "/compiler/publish/delta/walkers/")
INTERESTING = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    (1 << 63) - 1,
    (1 << 64) - 1,
)
SLOWEST_S = 5.0


@dataclass(frozen=True, slots=True)
class Target:
    """What is fuzzed. ``run`` takes bytes; it may raise EdgewrightError and ``allowed``, and nothing else.

    ``most_bytes``: what one run may allocate beyond its input. ``reseal``: mends checksums after a mutation, so that the code
    behind them is reached at all.
    """

    name: str
    run: Callable[[bytes], object]
    seeds: Sequence[bytes]
    most_bytes: int
    allowed: tuple[type[BaseException], ...] = ()
    reseal: Callable[[bytes], bytes] | None = None


@dataclass
class Found:
    """What a session saw."""

    runs: int = 0
    edges: int = 0
    corpus: list[bytes] = field(default_factory=list)
    failures: list[tuple[str, bytes]] = field(default_factory=list)


def fuzz(target: Target, seconds: float, seed: int = 0) -> Found:
    """Run ``target`` for about ``seconds``, deterministic in its choices for one seed (not in how far it comes)."""
    chance, found, seen = random.Random(seed), Found(), set[Edge]()
    for data in target.seeds:
        _try(target, data, seen, found)
        found.corpus.append(data)
    end = time.monotonic() + seconds
    while time.monotonic() < end and len(found.failures) < 5:
        data = mutated(chance, chance.choice(found.corpus), found.corpus)
        if target.reseal is not None and chance.random() < 0.8:
            data = target.reseal(data)
        if _try(target, data, seen, found):
            found.corpus.append(data)
    found.edges = len(seen)
    return found


def _try(target: Target, data: bytes, seen: set[Edge], found: Found) -> bool:
    """Whether the input reached something new; what must not happen is noted in ``found``."""
    edges: set[Edge] = set()
    found.runs += 1
    measured = found.runs % 50 == 1  # tracemalloc makes everything several times slower
    _run(target, data, edges, found, measured=measured)
    new = not edges <= seen
    if new and not measured:  # what does something new is also looked at closely
        _run(target, data, set(), found, measured=True)
    seen |= edges
    return new


def _run(target: Target, data: bytes, edges: set[Edge], found: Found, *, measured: bool) -> None:
    start = time.monotonic()
    if measured:
        tracemalloc.start()
    sys.settrace(_tracer(edges))
    try:
        target.run(data)
    except (EdgewrightError, *target.allowed):
        pass
    except BaseException as error:
        found.failures.append((f"{type(error).__name__}: {error}"[:300], data))
    finally:
        sys.settrace(None)
        peak = tracemalloc.get_traced_memory()[1] if measured else 0
        if measured:
            tracemalloc.stop()
    if peak > target.most_bytes + len(data):
        found.failures.append((f"it allocated {peak} bytes", data))
    if time.monotonic() - start > SLOWEST_S:
        found.failures.append((f"it took {time.monotonic() - start:.1f} s", data))


def _tracer(edges: set[Edge]) -> Callable[[FrameType, str, Any], Any]:
    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if not any(part in file for part in OURS):
            return None
        before = frame.f_lineno

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal before
            if event == "line":
                edges.add((file, before, frame.f_lineno))
                before = frame.f_lineno
            return line

        return line

    return enter


def mutated(chance: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """One to eight mutations in a row."""
    out = bytearray(data)
    for _ in range(1 << chance.randrange(4)):
        if not out:
            out = bytearray(chance.randbytes(8))
        position = chance.randrange(len(out))
        kind = chance.randrange(8)
        if kind == 0:
            out[position] ^= 1 << chance.randrange(8)
        elif kind == 1:
            out[position] = chance.randrange(256)
        elif kind == 2:
            width = chance.choice((1, 2, 4, 8))
            value = (chance.choice(INTERESTING) + chance.randrange(-2, 3)) % (1 << (8 * width))
            out[position : position + width] = value.to_bytes(width, chance.choice(("little", "big")))
        elif kind == 3:
            del out[position : position + chance.randrange(1, 33)]
        elif kind == 4:
            out[position:position] = chance.randbytes(chance.randrange(1, 17))
        elif kind == 5:
            start = chance.randrange(len(out))
            out[position:position] = out[start : start + chance.randrange(1, 65)]
        elif kind == 6:
            other = chance.choice(corpus)
            out[position:] = other[min(position, len(other)) :]
        else:
            out = out[:position]
    return bytes(out)
