"""How large the update from the previous release will be, by making it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from compiler.previous.find import PreviousArtifact, PreviousRelease
from compiler.publish.delta import encode_delta
from runtimes.artifact.archive import pack_folder


@dataclass(frozen=True, slots=True)
class Update:
    """One artifact's patch. ``patch_bytes`` is what a device with the previous release fetches, at most ``full_bytes``."""

    artifact: str
    profiles: tuple[str, ...]
    patch_bytes: int
    full_bytes: int
    codec: str


def predict_updates(
    previous: PreviousRelease, artifacts: Iterable[tuple[Path, str, str, tuple[str, ...]]]
) -> tuple[Update, ...]:
    """Encode the patch of every artifact that the previous release has too.

    Args:
        artifacts: (path, format, precision, profiles) of the new build.

    Raises:
        PublishError, StorageError: a file cannot be read or written.
    """
    found = []
    for path, fmt, precision, profiles in artifacts:
        old = previous.of(fmt, precision)
        if old is not None:
            found.append(_update(old, path, profiles))
    return tuple(found)


def _update(old: PreviousArtifact, new: Path, profiles: tuple[str, ...]) -> Update:
    with tempfile.TemporaryDirectory(prefix="edgewright-update-") as name:
        scratch = Path(name)
        base, result = (_packed(path, scratch / stem) for path, stem in ((old.file, "old"), (new, "new")))
        report = encode_delta(base, result, scratch / "patch")
        full = result.stat().st_size
    sent = min(report.size_bytes, full)
    return Update(new.name, profiles, sent, full, report.codec if sent < full else "full")


def _packed(path: Path, destination: Path) -> Path:
    """The file that a release would hold: folders travel packed."""
    if path.is_dir():
        pack_folder(path, destination)
        return destination
    return path
