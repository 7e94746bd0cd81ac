"""`edgewright-agent doctor`: what is wrong on this device, each finding with its way out. Looks only; mends nothing."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from device_agent.config import AgentConfig
from device_agent.download import free_bytes
from device_agent.errors import NetworkError, TrustError
from device_agent.source import open_source
from device_agent.store import store_for
from device_agent.trust import read_root, trusted_versions
from device_agent.update import TRUST_FOLDER
from profiles.errors import EdgewrightError
from profiles.units import format_bytes
from runtimes.registry import available_runtimes

Grade = Literal["ok", "warning", "problem"]
EARLIEST = datetime(2026, 1, 1, tzinfo=UTC)  # a clock before this was never set


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``remedy`` is empty where nothing is wrong."""

    what: str
    grade: Grade
    detail: str
    remedy: str = ""


def examine(config: AgentConfig) -> list[Finding]:
    """Everything, in the order in which one would look. Needs the network for the repository alone, and says if it is not there."""
    findings = [_data_dir(config.data_dir), *_space(config), _clock(), _root_of_trust(config), _repository(config)]
    for model in config.models:
        findings += _model(config, model.name, model.runtime)
    return [*findings, _spool(config.data_dir / "spool.db")]


def _data_dir(folder: Path) -> Finding:
    if not folder.is_dir():
        return Finding("data folder", "warning", f"{folder} does not exist yet", "It is made by the first install.")
    if not os.access(folder, os.W_OK):
        return Finding(
            "data folder",
            "problem",
            f"{folder} cannot be written",
            "Give the agent's user rights on it, or remount it.",
        )
    return Finding("data folder", "ok", str(folder))


def _space(config: AgentConfig) -> Iterator[Finding]:
    if not config.data_dir.is_dir():
        return
    free, wanted = free_bytes(config.data_dir), config.update.reserve_bytes
    detail = f"{format_bytes(free)} free, an update leaves {format_bytes(wanted)} alone"
    if free < wanted:
        yield Finding(
            "free space", "problem", detail, "Free space, or lower update.reserve_bytes: updates are refused."
        )
    else:
        yield Finding("free space", "ok", detail)


def _clock() -> Finding:
    now = datetime.fromtimestamp(time.time(), UTC)
    if now < EARLIEST:
        return Finding("clock", "problem", f"it says {now:%Y-%m-%d}", "Set it: signatures are judged by their expiry.")
    return Finding("clock", "ok", f"{now:%Y-%m-%d %H:%M} UTC")


def _root_of_trust(config: AgentConfig) -> Finding:
    folder = config.data_dir / TRUST_FOLDER
    try:
        read_root(folder)
    except (EdgewrightError, OSError) as error:
        detail = error.message if isinstance(error, EdgewrightError) else str(error)
        return Finding("root of trust", "problem", detail, "Run edgewright-agent install with --root.")
    versions = ", ".join(f"{role} {version}" for role, version in sorted(trusted_versions(folder).items()))
    return Finding("root of trust", "ok", versions or "provisioned, nothing fetched yet")


def _repository(config: AgentConfig) -> Finding:
    if config.repository is None:
        return Finding("repository", "warning", "none is configured", "Set repository, or install bundles by hand.")
    try:
        _, chunks = open_source(config.repository, config.update).read("metadata/timestamp.json")
        size = len(next(iter(chunks), b""))
    except (NetworkError, TrustError) as error:
        return Finding("repository", "warning", error.message, error.remedy)
    return Finding("repository", "ok", f"{config.repository} answers ({size} bytes of timestamp)")


def _model(config: AgentConfig, name: str, runtime: str | None) -> Iterator[Finding]:
    what = f"model {name}"
    store = store_for(config.data_dir, name)
    state = store.load()
    runtimes = available_runtimes(runtime)
    if not runtimes:
        yield Finding(what, "problem", "no runtime is installed", "Install edgewright[agent-litert] or [agent-ort].")
    if state.active is None:
        yield Finding(what, "problem", "no release is installed", "Run edgewright-agent update.")
        return
    if store.check(state.active.slot) != state.active:
        detail = f"release {state.active.release} is damaged on disk"
        yield Finding(what, "problem", detail, "Restart the agent: it returns to the release before; then update.")
        return
    for bad in state.bad:
        yield Finding(what, "warning", f"release {bad.release} was refused: {bad.reason}", "Publish a mended release.")
    way_back = f", {state.previous.release} to go back to" if state.previous else ", no way back"
    words = "confirmed" if state.confirmed else "on probation"
    yield Finding(what, "ok", f"release {state.active.release} is whole and {words}{way_back}")


def _spool(path: Path) -> Finding:
    if not path.exists():
        return Finding("telemetry spool", "ok", "empty")
    try:
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=2.0)
        try:
            sound = database.execute("PRAGMA quick_check").fetchone() == ("ok",)
            waiting = int(database.execute("SELECT COUNT(*) FROM records").fetchone()[0])
        finally:
            database.close()
    except sqlite3.Error as error:
        sound, waiting = False, 0
        detail = f"{path}: {error}"
    else:
        detail = f"{waiting} records wait" if sound else f"{path} is damaged"
    if not sound:
        return Finding("telemetry spool", "problem", detail, "Restart the agent: it moves the file aside and goes on.")
    return Finding("telemetry spool", "ok", detail)
