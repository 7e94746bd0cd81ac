"""What a fleet would do: each simulated device decides as a real one does, from the signed rollouts alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compiler.errors import PublishError
from compiler.publish.release import check_terms
from compiler.publish.repository import Repository, load
from runtimes.artifact.index import IndexEntry, ReleaseIndex, delta_path, read_index
from runtimes.artifact.manifest import Manifest, read_manifest
from runtimes.artifact.versions import at_least


@dataclass(frozen=True, slots=True)
class Transfer:
    """What one device fetches for an artifact when it comes from ``before`` (None: from nothing): a delta, or all of it."""

    before: str | None
    artifact: str
    full_bytes: int
    delta_bytes: int | None


@dataclass(frozen=True, slots=True)
class Simulation:
    """How a fleet splits.

    ``devices_by_release``: how many devices would run each release, oldest first; None: no release is for them. ``left_out``: why
    devices do not take the newest release, and how many. ``moves``: devices that leave a release (or none) for the newest.
    """

    devices: int
    devices_by_release: dict[str | None, int]
    newest: str | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    moves: dict[str | None, int] = field(default_factory=dict)
    transfers: tuple[Transfer, ...] = ()
    windows: tuple[str, ...] = ()


def simulate(
    repo: Path,
    *,
    channel: str,
    model: str,
    devices: int,
    percent: float | None = None,
    agents: Mapping[str, float] | None = None,
) -> Simulation:
    """Let ``devices`` devices with made-up ids choose.

    Args:
        percent: try this share for the newest release instead of the signed one; nothing is written.
        agents: share of devices by agent version (they need not add up to 1); default: all of them take what their agent may.

    Raises:
        PublishError, PublishTrustError: see ``load``; no such channel or model.
    """
    repository = load(repo)
    target = repository.channel(channel).targets.get(f"{channel}/{model}/index.json")
    if target is None:
        raise PublishError(f"Channel {channel} has no model {model!r}.", remedy="See edgewright release show.")
    index = read_index(repository.read_target(target))
    releases = list(index.releases)
    if percent is not None and releases:
        check_terms({"percent": percent})
        rollout = releases[-1].rollout.model_copy(update={"percent": percent})
        releases[-1] = releases[-1].model_copy(update={"rollout": rollout})
    fleet = _Fleet(model, releases)
    for number in range(devices):
        fleet.decide(f"device-{number:08d}", _agent(number, devices, agents))
    order = [entry.release for entry in releases]
    counts: dict[str | None, int] = {name: fleet.chosen[name] for name in order}
    return Simulation(
        devices,
        counts | ({None: fleet.chosen[None]} if fleet.chosen[None] else {}),
        order[-1] if order else None,
        dict(fleet.left_out),
        dict(fleet.moves),
        tuple(_transfers(repository, index, list(fleet.moves))),
        releases[-1].rollout.windows if releases else (),
    )


def _agent(number: int, devices: int, agents: Mapping[str, float] | None) -> str | None:
    """The agent's version of one device: the shares laid end to end over the fleet, spread by a stride prime to any size."""
    if not agents:
        return None
    place = (number * 2_654_435_761 % devices) / devices * sum(agents.values())
    for version, share in agents.items():
        place -= share
        if place < 0:
            return version
    return version


class _Fleet:
    def __init__(self, model: str, releases: Sequence[IndexEntry]) -> None:
        self._model = model
        self._releases = releases[::-1]
        self.chosen: Counter[str | None] = Counter()
        self.left_out: Counter[str] = Counter()
        self.moves: Counter[str | None] = Counter()

    def decide(self, device: str, agent: str | None) -> None:
        if not self._releases:
            self.chosen[None] += 1
            return
        newest, *older = self._releases
        before = next((e.release for e in older if self._why_not(e, device, agent) is None), None)
        reason = self._why_not(newest, device, agent)
        if reason is None:
            self.chosen[newest.release] += 1
            self.moves[before] += 1
        else:
            self.chosen[before] += 1
            self.left_out[reason] += 1

    def _why_not(self, entry: IndexEntry, device: str, agent: str | None) -> str | None:
        rollout = entry.rollout
        if rollout.revoked is not None:
            return "revoked"
        if rollout.halted:
            return "halted"
        if agent is not None and not at_least(agent, rollout.min_agent):
            return f"agent older than {rollout.min_agent}"
        if rollout.percent >= 100 or rollout.includes(device, self._model, entry.release):
            return None
        return f"not among the {rollout.percent:g} %"


def _transfers(repository: Repository, index: ReleaseIndex, moves: Sequence[str | None]) -> Iterator[Transfer]:
    """For each artifact of the newest release, by where devices come from."""
    targets = repository.channel(index.channel).targets
    entries = {entry.release: entry for entry in index.releases}
    for before in moves:
        bases = _manifest(repository, index, entries[before]).artifacts if before is not None else ()
        for artifact in _manifest(repository, index, index.releases[-1]).artifacts:
            paths = [delta_path(index.channel, index.model, base.sha256, artifact.sha256) for base in bases]
            sizes = [targets[path].length for path in paths if path in targets]
            yield Transfer(before, artifact.path, artifact.size_bytes, min(sizes, default=None))


def _manifest(repository: Repository, index: ReleaseIndex, entry: IndexEntry) -> Manifest:
    targets = repository.channel(index.channel).targets
    return read_manifest(repository.read_target(targets[f"{index.channel}/{index.model}/{entry.manifest}"]))
