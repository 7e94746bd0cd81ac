"""Stage results by content: a stage's folder is found again by the hash of its inputs, options and tool versions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtimes.artifact.canonical import canonical_json
from runtimes.artifact.files import storage_error

TOOLS = ("edgewright", "onnx", "onnx-ir", "onnxsim", "onnxruntime", "coremltools", "ai-edge-litert", "numpy", "torch")


def tool_versions() -> dict[str, str]:
    """Versions of the packages that shape an artifact's bytes; packages that are not installed are left out."""
    versions = {}
    for name in TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def default_cache_dir() -> Path:
    """$EDGEWRIGHT_CACHE, else the XDG cache folder."""
    if chosen := os.environ.get("EDGEWRIGHT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgewright"


class Cache:
    """Folders of stage results under ``root``; None turns caching off.

    The code of this project counts as a tool version too: its own files' digest is part of every key, so that an edited
    checkout never serves results of the code before the edit.
    """

    def __init__(self, root: Path | None, *, max_bytes: int = 4 << 30) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._base = {"tools": tool_versions(), "code": _code_digest()}

    def key(self, stage: str, inputs: Any) -> str:
        """The hash that identifies one run of ``stage``; ``inputs`` must be JSON (digests stand for bytes)."""
        return hashlib.sha256(canonical_json([stage, inputs, self._base])).hexdigest()

    def stage(self, stage: str, inputs: Any, produce: Callable[[Path], None], scratch: Path) -> tuple[Path, bool]:
        """Return (folder with the stage's files, whether it was cached). ``produce`` fills an empty folder.

        Without a cache the files are produced in a new folder below ``scratch``.

        Raises:
            StorageError: the cache or scratch folder cannot be written; nothing half-written is left in the cache.
        """
        key = self.key(stage, inputs)
        if self._root is None:
            folder = Path(tempfile.mkdtemp(prefix=f"{stage}-", dir=scratch))
            produce(folder)
            return folder, False
        found = self._root / key[:2] / key
        if found.is_dir():
            os.utime(found)
            return found, True
        try:
            found.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=found.parent))
        except OSError as error:
            raise storage_error(found, error) from error
        try:
            produce(temporary)
            temporary.replace(found)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if found.is_dir():  # another build produced the same result at the same time
                return found, True
            raise storage_error(found, error) from error
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._trim(keep=found)
        return found, False

    def _trim(self, keep: Path) -> None:
        """Drop the least recently used results until the cache is within its bound."""
        assert self._root is not None
        entries = sorted(
            (p for p in self._root.glob("??/*") if p.is_dir() and p != keep), key=lambda p: p.stat().st_mtime
        )
        sizes = {p: sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in [*entries, keep]}
        total = sum(sizes.values())
        for entry in entries:
            if total <= self._max_bytes:
                return
            shutil.rmtree(entry, ignore_errors=True)
            total -= sizes[entry]


def _code_digest() -> str:
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[1]
    for package in ("profiles", "runtimes", "compiler"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
