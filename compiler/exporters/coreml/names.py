"""ONNX names, which may be any text, to MIL identifiers, which may not."""

from __future__ import annotations

import re

_ILLEGAL = re.compile(r"[^A-Za-z0-9_@]")
# Words that MIL's textual form keeps for itself; coremltools renames them in the same way (name_sanitization_utils).
_RESERVED = frozenset(
    ("any", "bool", "program", "func", "tensor", "list", "dict", "tuple", "true", "false", "string", "state")
)
_RESERVED_TYPE = re.compile(r"(bf|fp|u?int)\d*")


class Names:
    """Gives every value one legal identifier that no other value has. The same names in the same order give the same result."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def claim(self, name: str) -> str:
        """A legal identifier for ``name``: itself where legal and free, else the nearest that is."""
        base = sanitize(name)
        candidate, count = base, 0
        while candidate in self._taken:
            count += 1
            candidate = f"{base}_{count}"
        self._taken.add(candidate)
        return candidate


def sanitize(name: str) -> str:
    """``name`` with MIL's rule [A-Za-z_][A-Za-z0-9_@]* enforced: other characters become "_"."""
    legal = _ILLEGAL.sub("_", name) or "_"
    if not (legal[0].isalpha() or legal[0] == "_"):
        legal = f"_{legal}"
    if legal in _RESERVED or _RESERVED_TYPE.fullmatch(legal):
        legal = f"{legal}_"
    return legal
