"""One update of one model: plan (what would be done, printable), then perform, crash-safe at every step.

    refresh trust -> choose a release -> manifest -> [delta ->] artifact -> digest -> stage -> trial -> activate

Runs as a short-lived process. Whatever it was doing when it died, ``Store.recover`` and a second run finish it.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from device_agent import remote_config, slots
from device_agent.clock import Clock
from device_agent.config import AgentConfig, ModelConfig, device_id
from device_agent.download import Sleep, download, free_bytes
from device_agent.eligible import choose, closed, runtime_versions
from device_agent.errors import ConfigError, NetworkError, TrustError
from device_agent.hold import too_costly, undisturbed
from device_agent.lock import locked
from device_agent.shadow import Terms, leave_terms, terms_of
from device_agent.slots import SlotRef, State
from device_agent.source import open_source
from device_agent.store import roll_back, store_for
from device_agent.trial import Verdict, run_trial
from device_agent.trust import Target, Trust
from device_agent.version import VERSION
from runtimes.artifact.archive import unpack
from runtimes.artifact.delta import apply_delta
from runtimes.artifact.files import sha256_file, storage_error, write_atomic
from runtimes.artifact.index import IndexEntry, delta_path
from runtimes.artifact.manifest import ArtifactRef, FileRef, Manifest, read_manifest
from runtimes.errors import DeltaError, StorageError
from runtimes.registry import available_runtimes

log = logging.getLogger(__name__)
Outcome = Literal["current", "planned", "activated", "shadowing", "rejected", "revoked"]
TRUST_FOLDER = "trust"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that an update does, in words; ``size_bytes`` is what it moves."""

    action: Literal["resume", "fetch-delta", "fetch", "apply-delta", "stage", "trial", "activate"]
    detail: str
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What an update would do. ``entry`` is None if nothing is to be done, and ``reason`` says why."""

    model: str
    reason: str
    entry: IndexEntry | None = None
    manifest: Manifest | None = None
    manifest_bytes: bytes = b""
    artifact: ArtifactRef | None = None
    files: dict[str, Target] = field(default_factory=dict)
    delta: Target | None = None
    base: Path | None = None
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """How an update ended. ``via`` and ``fetched_bytes`` say what the network carried."""

    model: str
    outcome: Outcome
    release: str | None
    reason: str
    via: Literal["delta", "full", "staged"] | None = None
    fetched_bytes: int = 0
    verdict: Verdict | None = None
    duration_s: float = 0.0

    def document(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict.document() if self.verdict else None}


class ModelUpdater:
    """The update of one model under one configuration.

    Args:
        trust: a view of the repository; shared by all models of one run.
        sleep: waits between download attempts.
        clock: the device's time; default: the one whose floor is kept beside the trust database.
        any_time: maintenance windows do not count.
    """

    def __init__(
        self,
        config: AgentConfig,
        model: ModelConfig,
        trust: Trust,
        *,
        sleep: Sleep = time.sleep,
        clock: Clock | None = None,
        any_time: bool = False,
    ) -> None:
        self.config = config
        self.model = model
        self.store = store_for(config.data_dir, model.name)
        self._trust = trust
        self._source = open_source(_repository(config), config.update)
        self._sleep = sleep
        self._clock = clock or Clock(config.data_dir / TRUST_FOLDER)
        self._any_time = any_time

    def run(self, *, dry_run: bool = False) -> UpdateResult:
        """Bring the model to the newest release that is for this device. The caller holds the update lock.

        Raises:
            NetworkError, TrustError, ManifestError, StorageError: nothing changed for inference; a later run
            goes on from what was fetched.
        """
        start = time.monotonic()
        state = self.store.recover()
        plan = self.plan(state)
        if plan.entry is None and (revoked := self._revocation(state.active)) is not None:
            return self._leave(state, revoked, dry_run=dry_run)
        if plan.entry is None:
            return UpdateResult(self.model.name, "current", _release(state), plan.reason)
        if dry_run:
            return UpdateResult(self.model.name, "planned", plan.entry.release, plan.reason)
        with undisturbed(self.config.data_dir) as free:
            waits = None if free else "an application holds the update lock"
            waits = waits or too_costly(
                self.config.update, sum(s.size_bytes for s in plan.steps if "fetch" in s.action)
            )
            if waits is not None and state.active is not None:  # a device without any release has nothing to disturb
                return UpdateResult(self.model.name, "current", _release(state), f"{plan.entry.release} waits: {waits}")
            result = self._perform_or_clean(plan, state)
        return UpdateResult(**{**_fields(result), "duration_s": round(time.monotonic() - start, 3)})

    def _perform_or_clean(self, plan: Plan, state: State) -> UpdateResult:
        try:
            return self._perform(plan, state)
        except StorageError:
            # A partial download must not keep a full disk full; the rest of the device needs the space.
            shutil.rmtree(self.store.downloads, ignore_errors=True)
            raise

    def _revocation(self, ref: SlotRef | None) -> str | None:
        """Why the publisher withdrew a release that this device holds; None if it did not."""
        index = self._trust.index(self.config.channel, self.model.name)
        entries = [e for e in index.releases if ref is not None and e.manifest_sha256 == ref.manifest_sha256]
        return entries[0].rollout.revoked if entries else None

    def _leave(self, state: State, reason: str, *, dry_run: bool) -> UpdateResult:
        """Return from a revoked release to the one before it; without one, a model that answers beats none."""
        assert state.active is not None
        said = f"release {state.active.release} is revoked ({reason})"
        if state.previous is None or self._revocation(state.previous) is not None:
            log.error("%s: %s, and there is no way back; it stays until a newer one comes", self.model.name, said)
            return UpdateResult(
                self.model.name, "current", _release(state), f"{said}, and there is no way back: a newer one is awaited"
            )
        if dry_run:
            return UpdateResult(self.model.name, "planned", state.previous.release, said)
        after = roll_back(self.store, said)
        log.error("%s: %s; returned to %s", self.model.name, said, _release(after))
        return UpdateResult(self.model.name, "revoked", _release(after), said)

    # --- plan ----------------------------------------------------------------------------------------------------

    def plan(self, state: State) -> Plan:
        """Decide and list the steps; fetches metadata, index and manifest only. Raises as ``run``."""
        index = self._trust.index(self.config.channel, self.model.name)
        runtimes = runtime_versions(available_runtimes(self.model.runtime))
        entry = choose(index, state, device_id(self.config), runtimes)
        if entry is None:
            return Plan(self.model.name, "no release is offered to this device")
        decision = slots.decide(
            state, release=entry.release, sequence=entry.sequence, manifest_sha256=entry.manifest_sha256
        )
        if not decision.take:
            return Plan(self.model.name, decision.reason)
        # A device without any release has nothing to disturb.
        if state.active is not None and (why := self._closed(entry)) is not None:
            return Plan(self.model.name, f"release {entry.release} waits: {why}")
        if state.candidate is not None and state.candidate.manifest_sha256 == entry.manifest_sha256:
            if state.active is not None and terms_of(self.store, state.candidate) is not None:
                return Plan(self.model.name, f"release {entry.release} runs in the shadow of {state.active.release}")
            steps = (Step("resume", f"release {entry.release} is staged"), *_LAST_STEPS)
            return Plan(self.model.name, decision.reason, entry, steps=steps)
        return self._plan_fetch(entry, decision.reason, state, entry.rollout.runs_on(VERSION, runtimes))

    def _closed(self, entry: IndexEntry) -> str | None:
        return None if self._any_time else closed(entry.rollout, self.config.update.windows, self._clock.local())

    def _plan_fetch(self, entry: IndexEntry, reason: str, state: State, runtimes: tuple[str, ...]) -> Plan:
        path = f"{self.config.channel}/{self.model.name}/{entry.manifest}"
        data = self._trust.manifest(path, entry.manifest_sha256)
        manifest = read_manifest(data)
        if (manifest.model, manifest.release, manifest.sequence) != (self.model.name, entry.release, entry.sequence):
            raise TrustError(
                f"The manifest of {entry.release} speaks for {manifest.model} {manifest.release}.",
                remedy="Publish the release again.",
            )
        artifact = manifest.artifact_for(self.model.profile, runtimes)
        if artifact.size_bytes > self.config.update.max_artifact_bytes:
            raise TrustError(
                f"{artifact.path} has {artifact.size_bytes} bytes, limit {self.config.update.max_artifact_bytes}.",
                remedy="Raise update.max_artifact_bytes if this is meant.",
            )
        folder = path.rpartition("/")[0]
        files = {ref.path: self._signed(folder, ref) for ref in (artifact, manifest.self_test.vectors)}
        base, delta = self._delta(artifact, state)
        plan = Plan(self.model.name, reason, entry, manifest, data, artifact, files, delta, base)
        return Plan(**{**_fields(plan), "steps": _steps(plan)})

    def _signed(self, folder: str, ref: FileRef) -> Target:
        target = self._trust.target(f"{folder}/{ref.path}")
        if target is None or (target.wanted.sha256, target.wanted.size_bytes) != (ref.sha256, ref.size_bytes):
            raise TrustError(
                f"{folder}/{ref.path} is not signed as the manifest describes it.", remedy="Publish the release again."
            )
        return target

    def _delta(self, artifact: ArtifactRef, state: State) -> tuple[Path | None, Target | None]:
        """A delta from the active artifact, if one is published, smaller, and wanted."""
        if not self.config.update.allow_delta or state.active is None:
            return None, None
        base, digest = self.store.artifact_file(state.active)
        target = self._trust.target(delta_path(self.config.channel, self.model.name, digest, artifact.sha256))
        if target is None or target.wanted.size_bytes >= artifact.size_bytes:
            return None, None
        return base, target

    # --- perform -------------------------------------------------------------------------------------------------

    def _perform(self, plan: Plan, state: State) -> UpdateResult:
        assert plan.entry is not None
        if plan.manifest is None:
            assert state.candidate is not None
            return self._try_and_activate(state.candidate, plan, "staged", 0)
        self._check_space(plan)
        staging = self.store.folder / f"staging.{os.getpid()}.tmp"
        try:
            staging.mkdir()
            via, fetched = self._fetch(plan, staging)
            ref = self._stage(plan, staging)
        except OSError as error:
            raise storage_error(staging, error) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return self._try_and_activate(ref, plan, via, fetched)

    def _check_space(self, plan: Plan) -> None:
        assert plan.artifact is not None
        need = sum(t.wanted.size_bytes for t in plan.files.values())
        need += plan.delta.wanted.size_bytes if plan.delta else 0
        need += plan.artifact.size_bytes if plan.artifact.archive else 0  # unpacked beside the archive
        free = free_bytes(self.store.folder)
        if free < need + self.config.update.reserve_bytes:
            raise StorageError(
                f"The update needs {need} bytes and {self.config.update.reserve_bytes} in reserve; {free} are free.",
                remedy=f"Free space on the file system that holds {self.store.folder}.",
            )

    def _fetch(self, plan: Plan, staging: Path) -> tuple[Literal["delta", "full"], int]:
        """Fill ``staging``; returns how the artifact came and how many bytes were fetched."""
        assert plan.artifact is not None and plan.manifest is not None
        write_atomic(staging / "manifest.json", plan.manifest_bytes)
        fetched = self._fetch_delta(plan, staging)
        via: Literal["delta", "full"] = "full" if fetched is None else "delta"
        total = fetched or 0
        for path, target in plan.files.items():
            if path == plan.artifact.path and via == "delta":
                continue
            done = self._download(target)
            _place(done, staging / path)
            total += target.wanted.size_bytes
        return via, total

    def _fetch_delta(self, plan: Plan, staging: Path) -> int | None:
        """Bytes fetched if the delta made the artifact; None if the full file must be fetched instead."""
        assert plan.artifact is not None
        if plan.delta is None or plan.base is None:
            return None
        destination = staging / plan.artifact.path
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            patch = self._download(plan.delta)
            made = apply_delta(plan.base, patch, destination, max_result_bytes=plan.artifact.size_bytes)
            if made != plan.artifact.sha256:
                raise DeltaError("the result is another file.", remedy="Publish the delta again.")
        except (DeltaError, NetworkError, TrustError) as error:
            log.warning("The delta to %s cannot be used, fetching the full file: %s", plan.artifact.path, error)
            destination.unlink(missing_ok=True)
            return None
        return plan.delta.wanted.size_bytes

    def _download(self, target: Target) -> Path:
        self.store.downloads.mkdir(exist_ok=True)
        attempts = self.config.update.attempts
        return download(self._source, target.wanted, self.store.downloads, attempts=attempts, sleep=self._sleep)

    def _stage(self, plan: Plan, staging: Path) -> SlotRef:
        assert plan.artifact is not None and plan.manifest is not None
        artifact, opened = plan.artifact, plan.artifact.path
        if sha256_file(staging / artifact.path) != artifact.sha256:
            raise TrustError(f"{artifact.path} changed while it was staged.", remedy="Check the storage device.")
        if artifact.archive == "zip":
            opened = f"opened/{Path(artifact.path).with_suffix('').name}.mlpackage"
            (staging / "opened").mkdir()
            unpack(staging / artifact.path, staging / opened, self.config.update.max_artifact_bytes)
        state = self.store.change(slots.begin)
        name = slots.inactive(state)
        ref = self.store.stage(name, staging, artifact=artifact.path, opened=opened, manifest=plan.manifest)
        self.store.change(partial(_staged, ref=ref))
        return ref

    def _try_and_activate(
        self, ref: SlotRef, plan: Plan, via: Literal["delta", "full", "staged"], fetched: int
    ) -> UpdateResult:
        state = self.store.change(slots.trying)
        limit = self.config.trial.max_tries
        if state.tries > limit:
            verdict = Verdict(reason=f"{limit} trials ended without an answer: it takes the device down")
        else:
            verdict = self._trial(ref)
        made = partial(UpdateResult, self.model.name, release=ref.release, via=via, fetched_bytes=fetched)
        if not verdict.ok:
            log.error("Release %s of %s is rejected: %s", ref.release, self.model.name, verdict.reason)
            self.store.change(lambda s: slots.rejected(s, verdict.reason))
            self._clean()
            return made(outcome="rejected", reason=verdict.reason, verdict=verdict)
        self.store.mark(ref, "passed")
        rollout = plan.entry.rollout if plan.entry is not None else None
        if rollout is not None and rollout.shadow_requests is not None and state.active is not None:
            leave_terms(self.store, ref, Terms(rollout.shadow_requests, float(rollout.shadow_agreement)))
            self._clean()
            log.info("Release %s of %s runs in the shadow of %s", ref.release, self.model.name, state.active.release)
            return made(outcome="shadowing", reason=plan.reason, verdict=verdict)
        self.store.change(slots.activated)
        self._clean()
        log.info("Release %s of %s is active, awaiting confirmation", ref.release, self.model.name)
        return made(outcome="activated", reason=plan.reason, verdict=verdict)

    def _trial(self, ref: SlotRef) -> Verdict:
        manifest = self.store.manifest(ref)
        folder = self.store.slot(ref.slot)
        artifact = manifest.artifact_for(self.model.profile, available_runtimes(self.model.runtime))
        return run_trial(
            folder,
            str(self.store.artifact(ref).relative_to(folder)),
            manifest.self_test,
            runtime=artifact.runtime,
            threads=self.model.threads,
            limits=self.config.trial,
        )

    def _clean(self) -> None:
        for leftover in self.store.downloads.glob("*"):
            leftover.unlink(missing_ok=True)


_LAST_STEPS = (
    Step("trial", "self-test in a child process"),
    Step("activate", "one atomic pointer; confirmed later by health"),
)


def update_all(
    config: AgentConfig,
    *,
    models: tuple[str, ...] = (),
    dry_run: bool = False,
    on_result: Callable[[UpdateResult], None] | None = None,
    clock: Clock | None = None,
    any_time: bool = False,
    on_settings: Callable[[remote_config.Change], None] | None = None,
) -> list[UpdateResult]:
    """Update the named models, or all, against one view of the repository.

    Args:
        clock: the device's time; default: the system's, and the floor that was kept (clock.py).
        any_time: maintenance windows do not count.
        on_settings: told when signed settings were applied, cleared or refused.

    Raises:
        Busy: another update of this device is running.
        ConfigError: no repository or no root of trust; an unknown model.
        and as ``ModelUpdater.run``.
    """
    folder = config.data_dir / TRUST_FOLDER
    clock = clock or Clock(folder)
    trust = Trust(folder, open_source(_repository(config), config.update), clock=clock)
    wanted = [config.model(name) for name in models] if models else list(config.models)
    results = []
    with locked(config.data_dir):
        trust.refresh()
        if not dry_run:
            _take_settings(config, trust, on_settings)
        for model in wanted:
            result = ModelUpdater(config, model, trust, clock=clock, any_time=any_time).run(dry_run=dry_run)
            if on_result is not None:
                on_result(result)
            results.append(result)
    return results


def _take_settings(
    config: AgentConfig, trust: Trust, on_settings: Callable[[remote_config.Change], None] | None
) -> None:
    """Settings that cannot be had hold no release back."""
    try:
        change = remote_config.refresh(config, trust)
    except (NetworkError, TrustError) as error:
        log.warning("The channel's settings could not be fetched; the last good ones stay: %s", error)
        return
    if change is not None:
        log.info("Signed settings %s: %s", change.outcome, change.detail)
        if on_settings is not None:
            on_settings(change)


def _staged(state: State, *, ref: SlotRef) -> State:
    return slots.staged(state, ref)


def _steps(plan: Plan) -> tuple[Step, ...]:
    assert plan.artifact is not None and plan.entry is not None
    steps: list[Step] = []
    for path, target in plan.files.items():
        if path == plan.artifact.path and plan.delta is not None:
            steps.append(Step("fetch-delta", plan.delta.wanted.path, plan.delta.wanted.size_bytes))
            steps.append(Step("apply-delta", path, plan.artifact.size_bytes))
        else:
            steps.append(Step("fetch", path, target.wanted.size_bytes))
    return (*steps, Step("stage", f"release {plan.entry.release}"), *_LAST_STEPS)


def _place(done: Path, destination: Path) -> None:
    """Give a finished download its name in the staging folder; it also stays, until the update is over."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(done, destination)
    except OSError:  # a file system without hard links, as on SD cards with FAT
        shutil.copyfile(done, destination)


def _repository(config: AgentConfig) -> str:
    if config.repository is None:
        raise ConfigError("No repository is configured.", remedy='Set repository = "..." in the agent\'s file.')
    return config.repository


def _release(state: State) -> str | None:
    return state.active.release if state.active else None


def _fields(value: Any) -> dict[str, Any]:
    """One level of a dataclass, without copying what is inside."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}
