"""What an importer is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from compiler.hub import Imported


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """``batch``: size of a free first dimension in the hub. ``input_shapes`` fix other free dimensions, by input name.

    ``allow_pickle``: load sources that can run code while loading (a plain model.pt); refused otherwise.
    """

    batch: int = 1
    input_shapes: dict[str, tuple[int, ...]] | None = None
    allow_pickle: bool = False


class Importer(Protocol):
    """Reads one kind of source.

    ``recognises`` looks at the name (and, for folders, at what lies inside) without loading anything.
    """

    name: str

    def recognises(self, source: str) -> bool: ...

    def load(self, source: str, options: ImportOptions) -> Imported:
        """Raises SourceError, UnsupportedModel, ExtraMissing."""
        ...
