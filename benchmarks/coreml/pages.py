"""A page that a net at a time fills: finished rows are kept in a file, so that what was cut off goes on where it was."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Page:
    """``measure(name, folder)`` gives a row's cells, ``render(rows)`` the page as Markdown, ``every`` are the nets it is about."""

    path: Path
    every: Sequence[str]
    measure: Callable[[str, Path], str]
    render: Callable[[Sequence[str]], str]

    def fill(self, names: Sequence[str], kept: Path | None = None, partial: bool = False) -> list[str]:
        """Measure ``names`` (default: every net) and print their rows; with all rows, write the page.

        Args:
            kept: where finished rows are read from and added to; those need no measuring.
            partial: measure nothing, and write the page from the kept rows, naming the nets that have none.

        Returns:
            the rows of ``names``.
        """
        rows = kept.read_text("utf-8").splitlines() if kept is not None and kept.exists() else []
        for name in () if partial else names or self.every:
            if name in map(_name, rows):
                continue
            rows.append(self._row(name))
            print(rows[-1], flush=True)
            if kept is not None:
                kept.write_text("\n".join(rows) + "\n", "utf-8")
        if partial or not names:
            self._write(rows)
        return [row for row in rows if _name(row) in (names or self.every)]

    def _row(self, name: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            try:
                cells = self.measure(name, Path(folder))
            except Exception as error:  # a net that fails is a row like any other
                cells = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}".replace("|", "/")
        return f"| {name} | {cells} |"

    def _write(self, rows: Sequence[str]) -> None:
        ordered = sorted((row for row in rows if _name(row) in self.every), key=lambda r: self.every.index(_name(r)))
        missing = [name for name in self.every if name not in map(_name, ordered)]
        end = f"\nNot measured yet: {', '.join(missing)}.\n" if missing else ""
        self.path.write_text(self.render(ordered) + end, "utf-8")


def _name(row: str) -> str:
    return row.split("|")[1].strip()
