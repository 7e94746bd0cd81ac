"""A page that a net at a time fills: finished rows are kept in a file, so that what was cut off goes on where it was."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path


def rows_of(names: Sequence[str], measure: Callable[[str, Path], str], kept: Path | None) -> list[str]:
    """``measure(name, folder)``'s cells for each name, printed as they come; a net that fails is a row like any other.

    Args:
        kept: where finished rows are read from and added to.
    """
    rows = kept.read_text("utf-8").splitlines() if kept is not None and kept.exists() else []
    done = {row.split("|")[1].strip() for row in rows}
    for name in names:
        if name in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                cells = measure(name, Path(folder))
            except Exception as error:
                cells = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}".replace("|", "/")
        rows.append(f"| {name} | {cells} |")
        print(rows[-1], flush=True)
        if kept is not None:
            kept.write_text("\n".join(rows) + "\n", "utf-8")
    return [row for row in rows if row.split("|")[1].strip() in names]
