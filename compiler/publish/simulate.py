"""What a fleet would do: each simulated device decides as a real one does, from the signed rollouts alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from compiler.errors import PublishError
from compiler.publish.repository import load
from runtimes.artifact.index import read_index


@dataclass(frozen=True, slots=True)
class Simulation:
    """``devices_by_release``: how many devices would run each release, oldest first; None: no release is for them."""

    devices: int
    devices_by_release: dict[str | None, int]


def simulate(repo: Path, *, channel: str, model: str, devices: int, percent: float | None = None) -> Simulation:
    """Let ``devices`` devices with made-up ids choose.

    Args:
        percent: try this share for the newest release instead of the signed one; nothing is written.

    Raises:
        PublishError, PublishTrustError: see ``load``; no such channel or model.
    """
    repository = load(repo)
    target = repository.channel(channel).targets.get(f"{channel}/{model}/index.json")
    if target is None:
        raise PublishError(f"Channel {channel} has no model {model!r}.", remedy="See edgewright release show.")
    releases = list(read_index(repository.read_target(target)).releases)
    if percent is not None and releases:
        rollout = releases[-1].rollout.model_copy(update={"percent": percent})
        releases[-1] = releases[-1].model_copy(update={"rollout": rollout})
    chosen: Counter[str | None] = Counter()
    for number in range(devices):
        device = f"device-{number:08d}"
        fitting = (entry for entry in reversed(releases) if entry.rollout.includes(device, model, entry.release))
        entry = next(fitting, None)
        chosen[entry.release if entry else None] += 1
    order = [entry.release for entry in releases]
    counts: dict[str | None, int] = {name: chosen[name] for name in order}
    return Simulation(devices, counts | ({None: chosen[None]} if chosen[None] else {}))
