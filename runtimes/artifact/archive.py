"""A folder as one file: a stored, deterministic zip, and its careful unpacking (for .mlpackage folders).

Stored, because a delta must see the weights byte by byte, and because a stored entry cannot be larger than the archive itself.
"""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

from runtimes.artifact.files import CHUNK_BYTES, atomic_write, storage_error, sync_dir
from runtimes.errors import ArtifactError, StorageError

MAX_ENTRIES = 10_000
MAX_DEPTH = 32
MAX_NAME_BYTES = 255  # what every file system of ours takes
# Local and central headers with the longest names that we accept; what the archive may exceed its contents by.
_HEADER_BYTES = 2048
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that zip can express


def pack_folder(folder: Path, destination: Path) -> None:
    """Write ``folder``'s files into ``destination``: stored, sorted by path, fixed dates and modes; atomic.

    The same files give the same bytes. Empty folders are not kept, as they do not count in ``sha256_tree``.

    Raises:
        ArtifactError: ``folder`` is not a folder, holds no file, or holds something that is neither file nor folder.
        StorageError: the destination cannot be written.
    """
    entries = _files(folder)
    with atomic_write(destination) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, path in entries:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3  # Unix: the upper half of external_attr is the mode
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            info.file_size = path.stat().st_size
            with path.open("rb") as source, archive.open(info, "w") as sink:
                shutil.copyfileobj(source, sink, CHUNK_BYTES)


def _files(folder: Path) -> list[tuple[str, Path]]:
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder.", remedy="Give the folder that is to be packed.")
    entries = []
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ArtifactError(
                f"{path} is neither a file nor a folder.", remedy="Replace links by what they point to."
            )
        if path.is_file():
            entries.append((path.relative_to(folder).as_posix(), path))
    if not entries:
        raise ArtifactError(f"{folder} holds no file.", remedy="Build the artifact again.")
    return sorted(entries)


def unpack(archive: Path, folder: Path, max_bytes: int) -> None:
    """Unpack ``archive`` into the new ``folder``, which is whole and durable, or absent.

    Args:
        max_bytes: most bytes that the files may have together.

    Raises:
        ArtifactError: not a zip, damaged, compressed or encrypted entries, links, paths that leave the folder, duplicates,
            or more than ``max_bytes``; nothing is left behind.
        StorageError: ``folder`` exists already, or the disk refuses.
    """
    if folder.exists():
        raise StorageError(f"{folder} exists already.", remedy="Choose a new folder, or remove this one.")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        if archive.stat().st_size > max_bytes + MAX_ENTRIES * _HEADER_BYTES:
            raise _refused(archive, f"it is larger than {max_bytes} bytes of content can make it")
        temporary.mkdir()
        _extract(archive, temporary, max_bytes)
        temporary.rename(folder)
        sync_dir(folder.parent)
    except OSError as error:
        raise storage_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract(archive: Path, folder: Path, max_bytes: int) -> None:
    # What zipfile raises for damaged input; OSError is left out, because it speaks of the disk.
    damaged = (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, ValueError)
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
            _check(archive, entries, max_bytes)
            for info in entries:
                _extract_one(opened, info, folder / info.filename)
    except damaged as error:
        raise _refused(archive, str(error)) from error
    for path in [*(p for p in folder.rglob("*") if p.is_dir()), folder]:
        sync_dir(path)


def _extract_one(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # zipfile stops at the declared size and checks the CRC there; "x" refuses to follow or replace anything.
    with archive.open(info) as source, path.open("xb") as sink:
        shutil.copyfileobj(source, sink, CHUNK_BYTES)
        sink.flush()
        os.fsync(sink.fileno())


def _check(archive: Path, entries: list[zipfile.ZipInfo], max_bytes: int) -> None:
    if not 0 < len(entries) <= MAX_ENTRIES:
        raise _refused(archive, f"it has {len(entries)} entries, expected 1 to {MAX_ENTRIES}")
    total = sum(info.file_size for info in entries)
    if total > max_bytes:
        raise _refused(archive, f"its files have {total} bytes, at most {max_bytes} are allowed")
    names = {info.filename for info in entries}
    folders = {parent.as_posix() for name in names for parent in PurePosixPath(name).parents}
    if len(names) != len(entries) or names & folders:
        raise _refused(archive, "a path appears twice")
    for info in entries:
        reason = _objection(info)
        if reason:
            raise _refused(archive, f"entry {info.filename!r} {reason}")


def _objection(info: zipfile.ZipInfo) -> str | None:
    """Why an entry is not taken, or None."""
    name, kind = info.filename, stat.S_IFMT(info.external_attr >> 16)
    parts = name.split("/")
    if "\\" in name or ":" in name or any(part in ("", ".", "..") for part in parts) or len(parts) > MAX_DEPTH:
        return "leaves the folder or has no plain path"
    if max(len(part.encode("utf-8", "replace")) for part in parts) > MAX_NAME_BYTES:
        return f"has a name of more than {MAX_NAME_BYTES} bytes"
    if kind not in (0, stat.S_IFREG):
        return "is not a regular file"
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
        return "is compressed or encrypted"
    return None


def _refused(archive: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        f"The archive {archive} cannot be used: {reason}.", remedy="Fetch or publish the release again."
    )
