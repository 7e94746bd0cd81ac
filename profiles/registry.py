"""One generic registry; each family (importers, passes, exporters, runtimes, transports) holds one instance."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Generic, TypeVar, cast

from profiles.errors import RegistryMiss

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to things, where a thing may be imported only when it is first asked for.

    Args:
        family: what the things are, in the singular ("exporter"), for messages.
        how_to_add: one sentence for the person who misses an entry.
    """

    def __init__(self, family: str, *, how_to_add: str) -> None:
        self.family = family
        self._how_to_add = how_to_add
        self._entries: dict[str, T | tuple[str, str]] = {}

    def add(self, name: str, thing: T) -> T:
        """Register ``thing`` under ``name``. Raises ValueError if the name is taken."""
        self._claim(name, thing)
        return thing

    def add_lazy(self, name: str, module: str, attribute: str) -> None:
        """Register ``module.attribute``, imported on first use, so that heavy packages load only where needed."""
        self._claim(name, (module, attribute))

    def _claim(self, name: str, entry: T | tuple[str, str]) -> None:
        if name in self._entries:
            raise ValueError(f"{self.family} {name!r} is registered twice")
        self._entries[name] = entry

    def get(self, name: str) -> T:
        """Return the thing called ``name``.

        Raises:
            RegistryMiss: nothing has that name; the message lists the nearest names.
        """
        if name not in self._entries:
            from difflib import get_close_matches  # only a miss needs it

            near = get_close_matches(name, self._entries, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(sorted(self._entries))}."
            raise RegistryMiss(f"No {self.family} is called {name!r}.{hint}", remedy=self._how_to_add)
        entry = self._entries[name]
        if isinstance(entry, tuple):
            entry = cast(T, getattr(importlib.import_module(entry[0]), entry[1]))
            self._entries[name] = entry
        return entry

    def names(self) -> list[str]:
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
