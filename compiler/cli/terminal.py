"""Progress on a terminal: a moving line where there is one, plain lines in a log. Everything goes to stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress


class TerminalProgress:
    """Implements compiler.progress.Progress. Without a TTY, or with NO_COLOR set, it prints one plain line per finished stage."""

    def __init__(self) -> None:
        self._rich: RichProgress | None = None
        if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                Progress,
                SpinnerColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            columns = (
                SpinnerColumn(),
                TextColumn("{task.description:12}"),
                BarColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._rich = Progress(*columns, console=Console(stderr=True))

    def __enter__(self) -> Self:
        if self._rich:
            self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich:
            self._rich.stop()

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        start = time.monotonic()
        if self._rich is None:
            yield lambda done: None
            print(f"{title}: done in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
            return
        rich = self._rich
        task = rich.add_task(title, total=total)
        yield lambda done: rich.update(task, completed=done)
        rich.update(task, total=total or 1, completed=total or 1)

    def note(self, text: str) -> None:
        if self._rich is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._rich.console.print(text, markup=False, highlight=False)
