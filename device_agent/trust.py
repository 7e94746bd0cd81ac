"""What may be believed: python-tuf's client over our sources.

The root of trust is the root.json given at installation. python-tuf does the checking (signatures, thresholds, expiry,
versions that only grow); this module brings bytes to it and translates what it says.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from device_agent.clock import Clock
from device_agent.download import Wanted, read_small
from device_agent.errors import ConfigError, NetworkError, TrustError
from device_agent.source import Missing, Source
from runtimes.artifact.files import storage_error, write_atomic
from runtimes.artifact.index import MAX_INDEX_BYTES, SIGNED_FIELD, ReleaseIndex, index_path, read_index
from runtimes.artifact.manifest import MAX_MANIFEST_BYTES

if TYPE_CHECKING:
    from tuf.ngclient.fetcher import FetcherInterface
    from tuf.ngclient.updater import Updater

log = logging.getLogger(__name__)
MAX_ROOT_BYTES = 512_000  # python-tuf's own limit for root metadata


@dataclass(frozen=True, slots=True)
class Target:
    """A signed file: what to fetch, and the signed custom metadata beside it."""

    wanted: Wanted
    custom: dict[str, Any]


class Trust:
    """A view of one repository, as new as its last ``refresh``.

    Args:
        folder: metadata folder of this device; holds the provisioned root.json and what python-tuf keeps.
        source: where the repository is.
        kept: where python-tuf keeps what it trusts; default: ``tuf`` in ``folder``.
        clock: at whose time signatures are judged, and whose floor is lifted; default: the system's clock alone.
    """

    def __init__(self, folder: Path, source: Source, *, kept: Path | None = None, clock: Clock | None = None) -> None:
        self._folder = folder
        self._clock = clock
        self._kept = kept or folder / "tuf"
        self._source = source
        self._updater: Updater | None = None

    def refresh(self) -> None:
        """Fetch and check root, timestamp, snapshot and targets.

        Raises:
            ConfigError: no trusted root was provisioned.
            NetworkError: the repository does not answer.
            TrustError: something is not signed, expired, or older than what was seen before. What was trusted stays.
            StorageError: the metadata cannot be kept.
        """
        root = read_root(self._folder)
        from tuf.ngclient.updater import Updater

        with _translated(self._kept):
            self._kept.mkdir(parents=True, exist_ok=True)
            self._updater = Updater(
                str(self._kept),
                "metadata/",
                target_base_url="targets/",
                fetcher=_fetcher(self._source),
                bootstrap=root,
            )
            if self._clock is None:
                self._updater.refresh()
                return
            # python-tuf reads the system's clock once, here, and has no public way to be told another time (7.0.1).
            trusted = self._updater._trusted_set
            trusted.reference_time = self._clock.now()
            self._updater.refresh()
            roles = (trusted.root, trusted.timestamp, trusted.snapshot, trusted.targets)
            signed_at = signing_time(trusted.timestamp)
        self._clock.lift(signed_at, min(role.expires for role in roles))

    def target(self, path: str) -> Target | None:
        """The signed description of ``path``; None if no role that may speak for it lists it. Raises as ``refresh``."""
        if self._updater is None:
            self.refresh()
        assert self._updater is not None
        with _translated(self._folder):
            info = self._updater.get_targetinfo(path)
        return None if info is None else self._described(info)

    def download(self, path: str, folder: Path) -> Path | None:
        """Fetch any target into ``folder`` by its signed length and hashes; None if no role lists it. Raises as ``refresh``.

        For small files; artifacts go through download.py, which resumes.
        """
        if self._updater is None:
            self.refresh()
        assert self._updater is not None
        with _translated(folder):
            info = self._updater.get_targetinfo(path)
            if info is None:
                return None
            return Path(self._updater.download_target(info, str(folder / quote(path, safe=""))))

    def _described(self, info: Any) -> Target:
        sha256 = info.hashes.get("sha256")
        if sha256 is None:
            raise TrustError(f"Target {info.path} is signed without SHA-256.", remedy="Publish the release again.")
        folder, slash, name = info.path.rpartition("/")
        if self._consistent():  # TUF 6.2: the file's name then carries its first hash
            name = f"{next(iter(info.hashes.values()))}.{name}"
        return Target(Wanted(f"targets/{folder}{slash}{name}", info.length, sha256), dict(info.custom or {}))

    def _consistent(self) -> bool:
        from tuf.api.metadata import Metadata

        with _translated(self._folder):
            return bool(Metadata[Any].from_file(str(self._kept / "root.json")).signed.consistent_snapshot)

    def index(self, channel: str, model: str) -> ReleaseIndex:
        """The channel's releases of a model. Raises as ``refresh``, and ManifestError."""
        data = self.small(index_path(channel, model), MAX_INDEX_BYTES)
        index = read_index(data)
        if (index.channel, index.model) != (channel, model):
            raise TrustError(
                f"The index of {channel}/{model} speaks for {index.channel}/{index.model}.", remedy="Publish it again."
            )
        return index

    def manifest(self, path: str, sha256: str) -> bytes:
        """A manifest's bytes; the index and the target's metadata must agree about its digest."""
        data = self.small(path, MAX_MANIFEST_BYTES)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise TrustError(f"{path} is not the manifest that the index names.", remedy="Publish the channel again.")
        return data

    def small(self, path: str, limit: int) -> bytes:
        """A target's bytes, at most ``limit``. Raises as ``refresh``, also if no role lists it."""
        target = self.target(path)
        if target is None:
            raise TrustError(
                f"No trusted role lists {path}.", remedy="Check channel and model, or publish there first."
            )
        if target.wanted.size_bytes > limit:
            raise TrustError(f"{path} has {target.wanted.size_bytes} bytes, limit {limit}.", remedy="Publish it again.")
        return read_small(self._source, target.wanted)


def signing_time(timestamp: Any) -> datetime | None:
    """When a timestamp says that it was signed (seconds since 1970); None if it does not say."""
    said = timestamp.unrecognized_fields.get(SIGNED_FIELD)
    try:
        return datetime.fromtimestamp(said, UTC) if isinstance(said, int) else None
    except (ValueError, OverflowError, OSError):
        return None


def provision(folder: Path, root: bytes) -> None:
    """Keep ``root`` as this device's root of trust.

    Raises:
        TrustError: not valid root metadata that its own keys sign, or another root is already in force.
        StorageError: it cannot be kept.
    """
    check_root(root)
    kept = folder / "root.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if kept.exists() and kept.read_bytes() != root:
            raise TrustError(
                f"{kept} already holds another root of trust.", remedy="Remove the folder by hand to move this device."
            )
    except OSError as error:
        raise storage_error(kept, error) from error
    write_atomic(kept, root)


def check_root(root: bytes) -> None:
    """Raises TrustError unless ``root`` is root metadata signed by a threshold of its own keys."""
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata
    from tuf.api.serialization import DeserializationError

    try:
        if len(root) > MAX_ROOT_BYTES:
            raise ValueError("too large")
        metadata = Metadata[Any].from_bytes(root)
        metadata.signed.verify_delegate("root", metadata.signed_bytes, metadata.signatures)
    except (DeserializationError, RepositoryError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrustError(
            f"The root metadata cannot be trusted: {error}.",
            remedy="Give the repository's own 1.root.json with --root.",
        ) from error


def read_root(folder: Path) -> bytes:
    """The provisioned root. Raises ConfigError if there is none."""
    try:
        return (folder / "root.json").read_bytes()
    except OSError as error:
        raise ConfigError(
            "No root of trust was provisioned on this device.",
            remedy="Run edgewright-agent install REPOSITORY --root root.json.",
        ) from error


def _fetcher(source: Source) -> FetcherInterface:
    from tuf.api.exceptions import DownloadHTTPError
    from tuf.ngclient.fetcher import FetcherInterface

    class SourceFetcher(FetcherInterface):
        """Brings metadata from any of our sources; python-tuf caps the length itself."""

        def _fetch(self, url: str) -> Iterator[bytes]:
            try:
                return source.read(url)[1]
            except Missing as error:
                # Only this tells python-tuf that there is no newer root.
                raise DownloadHTTPError(str(error), 404) from error

    return SourceFetcher()


@contextmanager
def _translated(folder: Path) -> Iterator[None]:
    """python-tuf's exceptions in our words; NetworkError from a source passes through, also when it was wrapped."""
    from tuf.api.exceptions import DownloadError, DownloadLengthMismatchError, RepositoryError

    try:
        yield
    except (RepositoryError, DownloadLengthMismatchError) as error:
        raise TrustError(
            f"The repository cannot be trusted: {error}.",
            remedy="Keep the running release, and check the repository: it is tampered with, expired or rolled back.",
        ) from error
    except DownloadError as error:
        cause = error.__cause__
        if isinstance(cause, NetworkError) and not isinstance(cause, Missing):
            raise cause from error
        raise NetworkError(f"The repository does not answer: {error}.", remedy="Check its address.") from error
    except OSError as error:
        raise storage_error(folder, error) from error


def trusted_versions(folder: Path) -> dict[str, int]:
    """Versions of the metadata that this device trusts now, for ``status``; empty before the first update."""
    versions: dict[str, int] = {}
    for name in ("root", "timestamp", "snapshot", "targets"):
        try:
            versions[name] = int(json.loads((folder / "tuf" / f"{name}.json").read_bytes())["signed"]["version"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return versions
