"""Folders and rsync addresses as destinations of a push."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from compiler.errors import PublishError, PublishTrustError
from runtimes.artifact.files import CHUNK_BYTES, atomic_write, sha256_file, storage_error

RSYNC_TIMEOUT_S = 300
_NOT_THERE = 23  # rsync's "partial transfer due to error"; its words say whether a file was missing


def conflict(destination: str, name: str) -> PublishTrustError:
    """Two publishers made the same version of something."""
    return PublishTrustError(
        f"{destination} has another {name} than this repository: somebody else publishes there, or it was damaged.",
        remedy="Bring the two repositories together; if there is no other, run edgewright release refresh and push again.",
    )


class FolderDestination:
    """A folder on this machine: a mounted share, a web server's root, a stick."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def session(self) -> Iterator[None]:
        """Hold the folder's lock, which a repository's own commands take too. Raises PublishError if somebody holds it."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise storage_error(self._folder, error) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise PublishError(
                    f"Another process is pushing to {self._folder}.", remedy="Wait for it, then try again."
                ) from error
            except OSError:
                pass  # a share that knows no locks: versions that differ are still found
            yield
        finally:
            os.close(descriptor)

    def read(self, name: str) -> bytes | None:
        path = self._folder / name
        try:
            return path.read_bytes() if path.exists() else None
        except OSError as error:
            raise storage_error(path, error) from error

    def send(self, source: Path, files: Sequence[str], *, replace: bool) -> int:
        sent = 0
        for name in files:
            here, there = source / name, self._folder / name
            if _same(here, there):
                continue
            if there.exists() and not replace:
                raise conflict(str(self._folder), name)
            self._copy(here, there)
            sent += 1
        return sent

    def switch(self, source: Path, name: str, seen: bytes | None) -> int:
        if self.read(name) != seen:
            raise conflict(str(self._folder), name)
        return self.send(source, [name], replace=True)

    def _copy(self, here: Path, there: Path) -> None:
        try:
            there.parent.mkdir(parents=True, exist_ok=True)
            with here.open("rb") as reader, atomic_write(there) as sink:
                shutil.copyfileobj(reader, sink, CHUNK_BYTES)
        except OSError as error:
            raise storage_error(there, error) from error

    def remove_others(self, source: Path) -> int:
        gone = [
            path
            for folder in ("targets", "metadata")
            for path in sorted((self._folder / folder).rglob("*"))
            if path.is_file() and not (source / path.relative_to(self._folder)).exists()
        ]
        for path in gone:
            path.unlink()
        return len(gone)


def _same(here: Path, there: Path) -> bool:
    same_size = there.is_file() and there.stat().st_size == here.stat().st_size
    return same_size and sha256_file(there) == sha256_file(here)


class RsyncDestination:
    """Another machine, by rsync over ssh or to its daemon. rsync puts each file in place by a rename.

    rsync cannot replace a file on a condition: the timestamp is looked at right before it is sent, which leaves a short moment in
    which two publishers may not see each other.
    """

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        if shutil.which("rsync") is None:
            raise PublishError("rsync is not installed.", remedy="Install Debian's package rsync, or push to a folder.")

    def session(self) -> AbstractContextManager[None]:
        return nullcontext()

    def read(self, name: str) -> bytes | None:
        with tempfile.TemporaryDirectory(prefix="edgewright-push-") as scratch:
            done = self._run([f"{self._address}/{name}", f"{scratch}/"], allowed=(_NOT_THERE,))
            if done.returncode == _NOT_THERE:
                if "No such file" not in done.stderr:
                    raise self._failed(done.stderr)
                return None
            return (Path(scratch) / Path(name).name).read_bytes()

    def send(self, source: Path, files: Sequence[str], *, replace: bool) -> None:
        names = "\n".join(files)
        arguments = ["--files-from=-", "--checksum", "--times", "--fsync", f"{source}/", f"{self._address}/"]
        if replace:
            self._run(arguments, names)
            return
        self._run(["--ignore-existing", *arguments], names)
        differing = self._run(["--dry-run", "--out-format=%n", *arguments], names).stdout.split("\n")
        if changed := next((name for name in differing if name in files), None):
            raise conflict(self._address, changed)

    def switch(self, source: Path, name: str, seen: bytes | None) -> int:
        if self.read(name) != seen:
            raise conflict(self._address, name)
        if seen == (source / name).read_bytes():
            return 0
        self.send(source, [name], replace=True)
        return 1

    def remove_others(self, source: Path) -> None:
        # --existing and --ignore-existing together send nothing: what is left of --delete.
        for folder in ("targets", "metadata"):
            only = ["-r", "--delete", "--existing", "--ignore-existing"]
            self._run([*only, f"{source}/{folder}/", f"{self._address}/{folder}/"])

    def _run(
        self, arguments: Sequence[str], names: str = "", allowed: tuple[int, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        try:
            done = subprocess.run(
                ["rsync", *arguments], input=names, capture_output=True, text=True, timeout=RSYNC_TIMEOUT_S
            )
        except subprocess.TimeoutExpired as error:
            raise PublishError(
                f"rsync to {self._address} did not end within {RSYNC_TIMEOUT_S} s.", remedy="Run it again: it goes on."
            ) from error
        if done.returncode not in (0, *allowed):
            raise self._failed(done.stderr)
        return done

    def _failed(self, said: str) -> PublishError:
        return PublishError(
            f"rsync to {self._address} failed: {' '.join(said.split())[-300:]}",
            remedy="Check the address and ssh; run it again: it goes on.",
        )
