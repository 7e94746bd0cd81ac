"""Changes to a package's program after which it still parses."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
NUMBERS = [0, 1, 2, 3, 7, -1, 64, 1 << 20, 1 << 40, (1 << 63) - 1]


def _leaves(message: Any) -> Iterator[tuple[Any, Any]]:
    """(owner, field) of every scalar field that is set, depth first."""
    for field, value in message.ListFields():
        if field.message_type is None:
            yield message, field
        elif field.message_type.GetOptions().map_entry:
            for key in value:
                if hasattr(value[key], "ListFields"):
                    yield from _leaves(value[key])
        else:
            for child in value if _is_repeated(value) else [value]:
                yield from _leaves(child)


def _is_repeated(value: Any) -> bool:
    return hasattr(value, "append") or hasattr(value, "add")


def _changed(old: Any, names: list[str], rng: random.Random) -> Any:
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return rng.choice([*NUMBERS, old + 1, max(old - 1, 0)])
    if isinstance(old, float):
        return rng.choice([0.0, -1.0, 1e30, float("nan"), float("inf")])
    return rng.choice(names) if isinstance(old, str) else old[: len(old) // 2]


def damage(message: Any, names: list[str], rng: random.Random) -> None:
    """Change one scalar field that is set, in place, to a value that it may well not have."""
    owner, field = rng.choice(list(_leaves(message)))
    value = getattr(owner, field.name)
    try:
        if _is_repeated(value):
            index = rng.randrange(len(value))
            value[index] = _changed(value[index], names, rng)
        else:
            setattr(owner, field.name, _changed(value, names, rng))
    except (ValueError, TypeError):  # the field's own type has no room for this number
        owner.ClearField(field.name)
