"""Whether, and when, a release is for this device: the publisher's signed terms against what is here."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime

from device_agent.slots import State
from device_agent.version import VERSION
from runtimes.artifact.index import IndexEntry, ReleaseIndex, Rollout
from runtimes.artifact.windows import is_open

log = logging.getLogger(__name__)
# The package that brings each runtime; Core ML comes with the system and has no such version.
_PACKAGES = {"onnxruntime": "onnxruntime", "litert": "ai-edge-litert", "tflite-runtime": "tflite-runtime"}


def runtime_versions(names: Sequence[str]) -> dict[str, str]:
    """The installed version of each runtime; "0" where none can be told."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(_PACKAGES[name])
        except (KeyError, importlib.metadata.PackageNotFoundError):
            found[name] = "0"
    return found


def choose(index: ReleaseIndex, state: State, device: str, runtimes: Mapping[str, str]) -> IndexEntry | None:
    """The newest release whose rollout includes the device, that can run here, and that was not found bad.

    A bad newest release does not hide an older good one that the device still lacks.
    """
    fitting = [
        entry
        for entry in index.releases
        if entry.rollout.includes(device, index.model, entry.release) and entry.rollout.runs_on(VERSION, runtimes)
    ]
    good = [entry for entry in fitting if not state.is_bad(entry.manifest_sha256)]
    return next(reversed(good or fitting), None)


def closed(release: Rollout, own: Sequence[str], now: datetime | None) -> str | None:
    """Why it is not the time to change what runs: the release's windows and the device's ``own`` must both be open.

    Args:
        now: local time; None if the device does not know it, which opens every window, because it would otherwise never update.
    """
    if now is None:
        return None
    for whose, windows in (("the release's", release.windows), ("this device's", own)):
        try:
            if not is_open(windows, now):
                return f"{whose} maintenance window is closed ({'; '.join(windows)})"
        except ValueError as error:
            return f"{whose} maintenance window cannot be read: {error}"
    return None
