"""Canonical JSON: one value, one byte string, so that digests and signatures are stable.

Follows the subset of RFC 8785 that our documents need: UTF-8, keys sorted, no spaces, finite numbers only. Python's float repr is
the shortest that round-trips, as RFC 8785 asks; exponents are spelled Python's way, which both our sides use.
"""

from __future__ import annotations

import json
from typing import Any


def canonical_json(value: Any) -> bytes:
    """Serialise. Raises ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")
