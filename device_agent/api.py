"""The agent's commands as Python functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from device_agent.alerts import read_alerts
from device_agent.config import AgentConfig, device_id
from device_agent.engine import Engine
from device_agent.errors import ConfigError
from device_agent.health_report import read_health
from device_agent.remote_config import Change
from device_agent.spool import Spool
from device_agent.store import store_for
from device_agent.telemetry import Telemetry
from device_agent.trust import provision, trusted_versions
from device_agent.update import TRUST_FOLDER, UpdateResult, update_all
from device_agent.version import VERSION
from runtimes.artifact.files import atomic_write


def describe_status(config: AgentConfig) -> dict[str, Any]:
    """What is on this device; needs no network and changes nothing but a missing device id."""
    models = {}
    for model in config.models:
        state = store_for(config.data_dir, model.name).load()
        models[model.name] = state.document()
    spool = Spool(config.data_dir / "spool.db", max_bytes=config.telemetry.spool_bytes)
    try:
        waiting = spool.stats()
        dead = len(spool.dead_letters())
    finally:
        spool.close()
    return {
        "schema": "edgewright.agent-status/1",
        "agent": VERSION,
        "device_id": device_id(config),
        "channel": config.channel,
        "models": models,
        "trust": trusted_versions(config.data_dir / TRUST_FOLDER),
        "spool": waiting,
        "dead_letters": dead,
        "health": read_health(config.data_dir),
        "alerts": [alert._asdict() for alert in read_alerts(config.data_dir)],
    }


def infer_file(config: AgentConfig, model: str | None, inputs: Path, output: Path) -> dict[str, Any]:
    """Run the active release on the arrays of an .npz.

    Raises:
        ConfigError: the file is missing or no .npz of plain arrays.
        RequestError, NotInstalled, InferenceFailed: as ``Engine.infer``; ``output`` is then as it was.
    """
    name = config.model(model).name
    try:
        with np.load(inputs, allow_pickle=False) as data:
            feeds = {key: data[key] for key in data.files}
    except (OSError, ValueError, AttributeError) as error:  # AttributeError: a single .npy has no names
        raise ConfigError(
            f"{inputs} is not an .npz of arrays: {error}.", remedy="Write it with numpy.savez."
        ) from error
    with Engine(config) as engine:
        engine.load_one(name)
        outputs, release, _ = engine.answer(name, feeds)
    with atomic_write(output) as file:
        np.savez(file, allow_pickle=False, **outputs)
    shapes = {key: list(array.shape) for key, array in outputs.items()}
    return {"schema": "edgewright.agent-infer/1", "model": name, "release": release, "outputs": shapes}


def update_and_report(
    config: AgentConfig, *, models: tuple[str, ...] = (), dry_run: bool = False, any_time: bool = False
) -> list[UpdateResult]:
    """``update_all``, with an event in the spool for everything that was activated, rejected or left."""
    spool = Spool(config.data_dir / "spool.db", max_bytes=config.telemetry.spool_bytes)
    telemetry = Telemetry(spool)

    def report(result: UpdateResult) -> None:
        if result.outcome in ("activated", "rejected", "revoked"):
            telemetry.event(
                f"release.{result.outcome}",
                severity="info" if result.outcome == "activated" else "error",
                model=result.model,
                release=result.release,
                reason=result.reason,
                via=result.via,
                fetched_bytes=result.fetched_bytes,
                duration_s=result.duration_s,
            )

    def settings(change: Change) -> None:
        severity = "error" if change.outcome == "refused" else "info"
        telemetry.event(f"settings.{change.outcome}", severity=severity, detail=change.detail)

    try:
        return update_all(
            config, models=models, dry_run=dry_run, on_result=report, any_time=any_time, on_settings=settings
        )
    finally:
        spool.close()


def provision_and_update(config: AgentConfig, location: str | None, root: Path | None) -> list[UpdateResult]:
    """Install from ``location`` or the configured repository; the first time with the trusted root, which is then kept.

    Raises:
        ConfigError: the root file cannot be read, or none was given and none is kept; ``location`` does not exist.
        TrustError: it is no valid root, or another one is in force.
        and as ``update_all``.
    """
    if location is not None and "://" not in location and not Path(location).exists():
        raise ConfigError(f"{location} does not exist.", remedy="Name a bundle's file, a folder or a URL.")
    if root is not None:
        try:
            data = root.read_bytes()
        except OSError as error:
            raise ConfigError(f"Cannot read {root}: {error.strerror}.", remedy="Name the root with --root.") from error
        provision(config.data_dir / TRUST_FOLDER, data)
    where = location if location is not None else config.repository
    return update_and_report(config.model_copy(update={"repository": where}))
