"""How long work tells that it goes on. The pipeline knows this protocol; only the command line knows a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """``stage`` announces one step; the callable that it yields takes the number of units finished so far."""

    def stage(self, title: str, total: int | None = None) -> AbstractContextManager[Callable[[int], None]]: ...

    def note(self, text: str) -> None:
        """Say something that outlives the step (a warning, a cached result)."""
        ...


class Silent:
    """Progress for callers who do not look."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        yield lambda done: None

    def note(self, text: str) -> None:
        return None
