"""Settings that the channel's publisher signed, over those of the device's own file.

    refresh (in the updater) -> kept on disk, whole or not at all -> effective (wherever the configuration is read)

What cannot be used is refused as a whole, with an event, and the last good settings stay. They are kept twice, each copy with its
digest; with both damaged the device's own file counts until the next look for updates, which brings them again.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from runtimes.artifact.files import write_atomic
from runtimes.errors import ManifestError

if TYPE_CHECKING:
    # Imported where they are used: every start reads the configuration, and most devices have no settings from afar.
    from device_agent.config import AgentConfig
    from device_agent.trust import Trust
    from runtimes.artifact.settings import AgentSettings

log = logging.getLogger(__name__)
FILES = ("remote-settings.json", "remote-settings.bak.json")
REFUSED_FILE = "remote-settings.refused"  # the digest of what was refused last: one event, not one per look


class Change(NamedTuple):
    """What became of signed settings; ``detail`` is for people."""

    outcome: Literal["applied", "cleared", "refused"]
    detail: str


def refresh(config: AgentConfig, trust: Trust) -> Change | None:
    """Bring what is kept in line with what is signed now; None if nothing changed. The caller holds the update lock.

    Raises:
        NetworkError, TrustError: they could not be fetched as signed. StorageError: they could not be kept.
        The last good ones stay then.
    """
    from runtimes.artifact.settings import MAX_SETTINGS_BYTES, read_settings, settings_path

    if not config.update.remote:
        return _clear(config.data_dir, "this device takes none (update.remote)")
    path = settings_path(config.channel)
    target = trust.target(path)
    if target is None:
        return _clear(config.data_dir, f"channel {config.channel} signs none any more")
    if _digest(config.data_dir) == target.wanted.sha256:
        return None
    try:
        data = trust.small(path, MAX_SETTINGS_BYTES)
        settings = read_settings(data)
        overlay(config, settings)
    except ManifestError as error:
        return _refuse(config.data_dir, target.wanted.sha256, error)
    for name in FILES:
        write_atomic(config.data_dir / name, _sealed(data))
    unknown = settings.unknown()
    told = ", ".join(f"{name} = {value!r}" for name, value in settings.known().items()) or "nothing"
    return Change("applied", told + (f"; not known to this agent: {', '.join(unknown)}" if unknown else ""))


def _clear(data_dir: Path, why: str) -> Change | None:
    kept = [data_dir / name for name in FILES if (data_dir / name).exists()]
    for path in kept:
        path.unlink(missing_ok=True)
    return Change("cleared", why) if kept else None


def _refuse(data_dir: Path, sha256: str, error: ManifestError) -> Change | None:
    log.error("%s The last good settings stay.", error)
    path = data_dir / REFUSED_FILE
    if path.exists() and path.read_bytes() == sha256.encode():
        return None
    write_atomic(path, sha256.encode())
    return Change("refused", error.message)


def effective(config: AgentConfig) -> AgentConfig:
    """``config``, from the device's file, with the signed settings over it. Never fails for a damaged file."""
    if not config.update.remote:
        return config
    data = _kept(config.data_dir)
    if data is None:
        return config
    from runtimes.artifact.settings import read_settings

    try:
        return overlay(config, read_settings(data))
    except ManifestError as error:  # kept by another version of the agent
        log.warning("%s The device's own file counts.", error)
        return config


def overlay(config: AgentConfig, settings: AgentSettings) -> AgentConfig:
    """Pure: the sections that are named get their new values, which ``read_settings`` has checked.

    Raises ManifestError if together with the device's own they break a rule of the file.
    """
    sections: dict[str, dict[str, Any]] = {}
    for name, value in settings.known().items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = tuple(value) if isinstance(value, list) else value
    try:
        changed = {name: _with(getattr(config, name), values) for name, values in sections.items()}
    except ValueError as error:
        raise ManifestError(
            f"The channel's settings do not fit this device's: {error}.", remedy="Publish others."
        ) from error
    return config.model_copy(update=changed)


def _with(section: Any, values: dict[str, Any]) -> Any:
    return type(section).model_validate({**section.model_dump(), **values})


def stamp(data_dir: Path) -> int:
    """Changes when the kept settings do: for a service that looks again."""
    try:
        return (data_dir / FILES[0]).stat().st_mtime_ns
    except OSError:
        return 0


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def _sealed(data: bytes) -> bytes:
    return _sha256(data).encode() + b"\n" + data


def _kept(data_dir: Path) -> bytes | None:
    for name in FILES:
        try:
            digest, _, data = (data_dir / name).read_bytes().partition(b"\n")
        except OSError:
            continue
        if _sha256(data).encode() == digest:
            return data
        log.warning("%s is damaged", data_dir / name)
    return None


def _digest(data_dir: Path) -> str | None:
    """Of what is kept, if both copies are whole."""
    try:
        copies = {(data_dir / name).read_bytes() for name in FILES}
    except OSError:
        return None
    data = _kept(data_dir)
    return _sha256(data) if data is not None and copies == {_sealed(data)} else None
