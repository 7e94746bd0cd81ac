"""The repository as a device sees it: python-tuf's client over file paths, every target fetched and checked."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlparse

from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.api.metadata import Signed
from tuf.ngclient import FetcherInterface, Updater

from compiler.errors import PublishError, PublishTrustError
from compiler.publish.draft import files_of
from compiler.publish.repository import Repository, load
from runtimes.artifact.files import CHUNK_BYTES, sha256_file
from runtimes.artifact.index import index_path, read_index
from runtimes.artifact.manifest import read_manifest

TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True)
class Verified:
    """What was checked: numbers of target files and their bytes, models by channel, when the first signature ends.

    ``roles``: end of each role's signature, ISO 8601.
    """

    targets: int
    target_bytes: int
    releases: dict[str, tuple[str, ...]]  # "channel/model" -> releases, oldest first
    expires: str
    roles: dict[str, str]

    def expiring(self, days: int) -> tuple[str, ...]:
        """Roles whose signature ends within ``days`` from now, the first one first."""
        limit = (datetime.now(UTC) + timedelta(days=days)).strftime(TIME_FORMAT)
        return tuple(role for end, role in sorted((end, role) for role, end in self.roles.items()) if end <= limit)


class FileFetcher(FetcherInterface):
    """Reads file:// URLs."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = Path(unquote(urlparse(url).path))
        if not path.is_file():
            raise DownloadHTTPError(f"{path} does not exist", 404)
        return self._chunks(path)

    @staticmethod
    def _chunks(path: Path) -> Iterator[bytes]:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


def verify(repo: Path, *, root: Path | None = None) -> Verified:
    """Do what a device does with an empty cache, for every target there is.

    Args:
        root: the root metadata to trust; the repository's own 1.root.json if None, which proves consistency, not origin.

    Raises:
        PublishError: ``repo`` is no repository, or ``root`` cannot be read.
        PublishTrustError: a signature, version, expiry date or digest is wrong; the message says which.
        ManifestError: a signed index or manifest does not follow its schema.
    """
    repository = load(repo)
    trusted = root or repository.metadata / "1.root.json"
    try:
        bootstrap = trusted.read_bytes()
    except OSError as error:
        raise PublishError(f"Cannot read {trusted}: {error.strerror}.", remedy="Check --root.") from error
    with tempfile.TemporaryDirectory(prefix="edgewright-verify-") as scratch:
        folder = Path(scratch)
        (folder / "metadata").mkdir()
        try:
            updater = Updater(
                str(folder / "metadata"),
                (repo / "metadata").resolve().as_uri(),
                str(folder),
                (repo / "targets").resolve().as_uri(),
                FileFetcher(),
                bootstrap=bootstrap,
            )
            updater.refresh()
            checker = _Checker(updater, folder / "target")
            for name, channel in sorted(repository.channels.items()):
                checker.channel(name, sorted(channel.signed.targets))
        except (RepositoryError, DownloadError) as error:
            raise _refused(repo, str(error)) from error
    ends = expiries(repository)
    return Verified(checker.targets, checker.target_bytes, checker.releases, min(ends.values()), ends)


def expiries(repository: Repository) -> dict[str, str]:
    """End of each role's signature, ISO 8601."""
    roles: dict[str, Signed] = {
        "root": repository.root.signed,
        "targets": repository.targets.signed,
        "snapshot": repository.snapshot.signed,
        "timestamp": repository.timestamp.signed,
        **{name: channel.signed for name, channel in repository.channels.items()},
    }
    return {name: role.expires.strftime(TIME_FORMAT) for name, role in roles.items()}


class _Checker:
    """Fetches targets through the client, one at a time, and follows index -> manifest -> files."""

    def __init__(self, updater: Updater, scratch: Path) -> None:
        self._updater = updater
        self._scratch = scratch
        self._digests: dict[str, str] = {}
        self.targets = 0
        self.target_bytes = 0
        self.releases: dict[str, tuple[str, ...]] = {}

    def channel(self, name: str, paths: list[str]) -> None:
        documents: dict[str, bytes] = {}
        for path in paths:
            data = self._fetch(path)
            if data is not None:
                documents[path] = data
        for path in sorted(documents):
            _, model, *rest = path.split("/")
            if rest == ["index.json"]:
                self._follow(name, model, documents)

    def _fetch(self, path: str) -> bytes | None:
        """Check one target; the contents of an index or a manifest are returned, which are small."""
        info = self._updater.get_targetinfo(path)
        if info is None:
            raise _refused(Path(path), "no trusted role lists this target")
        self._updater.download_target(info, str(self._scratch))
        self._digests[path] = sha256_file(self._scratch)
        self.targets += 1
        self.target_bytes += info.length
        small = path.endswith(("/index.json", "/manifest.json"))
        data = self._scratch.read_bytes() if small else None
        self._scratch.unlink()
        return data

    def _follow(self, channel: str, model: str, documents: dict[str, bytes]) -> None:
        """Every release of the index has its manifest, and every manifest its files, with the digests they name."""
        index = read_index(documents[index_path(channel, model)])
        for entry in index.releases:
            path = f"{channel}/{model}/{entry.manifest}"
            self._expect(path, entry.manifest_sha256)
            manifest = read_manifest(documents[path])
            if (manifest.model, manifest.release, manifest.sequence) != (model, entry.release, entry.sequence):
                raise _refused(Path(path), "it is the manifest of another release")
            for ref in files_of(manifest):
                self._expect(f"{path.rpartition('/')[0]}/{ref.path}", ref.sha256)
        self.releases[f"{channel}/{model}"] = tuple(entry.release for entry in index.releases)

    def _expect(self, path: str, sha256: str) -> None:
        if self._digests.get(path) != sha256:
            raise _refused(Path(path), f"its SHA-256 is {self._digests.get(path)}, {sha256} was expected")


def _refused(where: Path, reason: str) -> PublishTrustError:
    return PublishTrustError(
        f"A device would refuse {where}: {reason}.",
        remedy="Run edgewright release refresh if it expired; else restore the repository from a copy.",
    )
