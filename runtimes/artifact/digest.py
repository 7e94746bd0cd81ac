"""SHA-256 without OpenSSL where that is not worth its memory.

``hashlib`` loads libcrypto: 3.6 MiB resident and 6 ms, for a service that hashes kilobytes. The interpreter carries an
implementation of its own for builds without OpenSSL, which is six times slower (230 MiB/s here): large files still go to OpenSSL.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

OWN_UP_TO_BYTES = 4 << 20


def _constructor() -> Any:
    """``hashlib`` if it is loaded anyway, else the interpreter's own module, whose name differs between versions."""
    if "hashlib" not in sys.modules:
        for name in ("_sha2", "_sha256"):  # 3.12 and later, 3.11
            try:
                return __import__(name).sha256
            except ImportError:
                continue
    import hashlib

    return hashlib.sha256


def sha256_hex(data: bytes) -> str:
    """Hex SHA-256 of bytes at hand."""
    return str(_constructor()(data).hexdigest())


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in chunks. Raises OSError."""
    if path.stat().st_size <= OWN_UP_TO_BYTES:
        return sha256_hex(path.read_bytes())
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
