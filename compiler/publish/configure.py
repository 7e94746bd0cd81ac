"""Settings for the agents of a channel: signed beside its releases, and taken by every device at its next look for updates."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler.errors import PublishError
from compiler.publish.release import Signing, Staging, commit_changes
from compiler.publish.repository import Repository, load, locked
from runtimes.artifact.settings import RULES, AgentSettings, read_settings, settings_path
from runtimes.errors import ManifestError


def settings_of(repository: Repository, channel: str) -> dict[str, Any]:
    """What the channel sets now. Raises PublishTrustError, ManifestError."""
    target = repository.channel(channel).targets.get(settings_path(channel))
    return {} if target is None else dict(read_settings(repository.read_target(target)).settings)


def configure(
    repo: Path,
    signing: Signing,
    *,
    channel: str,
    change: Mapping[str, Any] | None = None,
    unset: Sequence[str] = (),
    replace: bool = False,
) -> dict[str, Any]:
    """Set ``change`` and take ``unset`` away; returns all that the channel sets then. Nothing left: no settings are signed.

    Args:
        replace: forget what was set before.

    Raises:
        PublishError: a setting that cannot be made from afar, a value that agents would refuse, or nothing to change.
        and what ``publish`` raises. In every case devices keep what they have.
    """
    with locked(repo), tempfile.TemporaryDirectory(prefix="edgewright-publish-") as scratch:
        repository = load(repo)
        before = settings_of(repository, channel)
        settings = ({} if replace else before) | dict(change or {})
        for name in unset:
            if name not in settings:
                raise PublishError(
                    f"{name} is not set; set are {', '.join(settings) or 'none'}.", remedy="Check the name."
                )
            del settings[name]
        if settings == before:
            raise PublishError(f"Channel {channel} is set so already.", remedy="Nothing is left to do.")
        data = _checked(settings)
        targets = repository.channel(channel)
        if settings:
            Staging(repository, targets, Path(scratch)).add_bytes(settings_path(channel), data)
        else:
            del targets.targets[settings_path(channel)]
        commit_changes(repository, [channel], signing)
    return settings


def _checked(settings: Mapping[str, Any]) -> bytes:
    for name, value in settings.items():
        if name not in RULES:
            raise PublishError(
                f"{name!r} cannot be set from afar.",
                remedy=f"Choose from {', '.join(RULES)}; the rest is in agent.toml.",
            )
        if reason := RULES[name].objection(value):  # before JSON, which has no word for NaN
            raise PublishError(f"{name} is {value!r}: {reason}.", remedy="Correct the value.")
    data = AgentSettings(settings=dict(settings)).to_bytes()
    try:
        read_settings(data)
    except ManifestError as error:
        raise PublishError(error.message, remedy="Correct the value.") from error
    return data
