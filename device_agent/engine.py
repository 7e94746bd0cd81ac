"""Inference in this process: guarded, counted, and swapped to a new release without dropping a request."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Protocol, Self

from device_agent.config import AgentConfig, ModelConfig
from device_agent.errors import NotInstalled, RequestError
from device_agent.guard import check_inputs, check_outputs
from device_agent.shadow import Shadow, terms_of
from device_agent.slots import SlotRef
from device_agent.store import Store, store_for
from device_agent.truth import GroundTruth
from device_agent.update import available_runtimes
from profiles.errors import EdgewrightError
from runtimes.artifact.manifest import Manifest
from runtimes.registry import open_session
from runtimes.session import Array, Feeds, Session, SessionOptions

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests of one model since its release was loaded. ``refused`` is the client's fault, ``failed`` the model's."""

    ok: int = 0
    refused: int = 0
    failed: int = 0

    @property
    def answered(self) -> int:
        return self.ok + self.failed


class Recorder(Protocol):
    """Hears of every request; must be quick and must not raise."""

    def request(self, model: str, release: str, outcome: str, latency_ns: int) -> None: ...

    def sample(self, model: str, manifest: Manifest, feeds: Feeds, outputs: Feeds) -> None: ...


@dataclass
class _Loaded:
    """One open release. ``users`` counts requests inside; a retired one is closed by the last of them."""

    ref: SlotRef
    manifest: Manifest
    sessions: queue.LifoQueue[Session]
    size: int
    users: int = 0
    retired: bool = False
    counts: Counts = field(default_factory=Counts)
    since: float = 0.0
    artifact_sha256: str | None = None

    def close(self) -> None:
        for _ in range(self.size):
            self.sessions.get().close()


class Engine:
    """The models of this device, ready to answer.

    Thread-safe. ``load`` opens what is active on disk; ``refresh`` notices a newly activated release.

    Args:
        recorder: telemetry; None records nothing.
        clock: monotonic seconds, for the age of a release.
    """

    def __init__(
        self, config: AgentConfig, *, recorder: Recorder | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config
        self._recorder = recorder
        self._clock = clock
        self._lock = threading.Lock()
        self._loaded: dict[str, _Loaded] = {}
        self._shadows: dict[str, Shadow] = {}
        self.truth = GroundTruth()
        self._stores = {m.name: store_for(config.data_dir, m.name) for m in config.models}

    def load(self) -> dict[str, Exception]:
        """Open every installed model; what cannot be opened is returned, so that one bad model stops no other."""
        failures: dict[str, Exception] = {}
        for model in self.config.models:
            try:
                self.refresh(model.name)
            except Exception as error:  # the agent must come up with whatever works
                log.error("Model %s cannot be loaded: %s", model.name, error)
                failures[model.name] = error
        return failures

    def refresh(self, name: str) -> bool:
        """Swap to the release that is active on disk; True if it is another one than before.

        Requests inside the old release finish there; it is closed after the last of them.

        Raises:
            NotInstalled: nothing is active.
            RuntimeFailure: the release cannot be opened; the old one goes on.
        """
        model, store = self.config.model(name), self.store(name)
        state = store.load()
        if state.active is None:
            raise NotInstalled(f"Model {name!r} is not installed.", remedy="Run edgewright-agent install or update.")
        with self._lock:
            current = self._loaded.get(name)
            if current is not None and current.ref == state.active:
                return False
        fresh = self._open(model, store, state.active)
        with self._lock:
            old = self._loaded.get(name)
            self._loaded[name] = fresh
            close_now = old is not None and self._retire(old)
        if old is not None and close_now:
            old.close()
        log.info("Model %s runs release %s", name, fresh.ref.release)
        return True

    def _open(self, model: ModelConfig, store: Store, ref: SlotRef) -> _Loaded:
        manifest = store.manifest(ref)
        artifact = manifest.artifact_for(model.profile, available_runtimes(model.runtime))
        options = SessionOptions(threads=model.threads)
        sessions: queue.LifoQueue[Session] = queue.LifoQueue()
        for _ in range(model.sessions):
            sessions.put(open_session(store.artifact(ref), runtime=artifact.runtime, options=options))
        return _Loaded(ref, manifest, sessions, model.sessions, since=self._clock(), artifact_sha256=artifact.sha256)

    def infer(self, name: str, feeds: Feeds, *, request: str | None = None) -> dict[str, Array]:
        """Answer one request.

        Args:
            feeds: one array per input, in the dtype and shape of the manifest.
            request: the request's id, under which the truth may come back later (``truth.feed_back``).

        Raises:
            RequestError: unknown model (404), inputs that do not fit (400), an answer that is not finite (500).
            NotInstalled: the model is configured but has no release.
            InferenceFailed: the runtime failed.
        """
        loaded = self._acquire(name)
        start, outcome = time.perf_counter_ns(), "failed"
        try:
            try:
                check_inputs(loaded.manifest, feeds)
            except RequestError:
                outcome = "refused"
                raise
            outputs = self._run(loaded, feeds)
            check_outputs(outputs)
            outcome = "ok"
        finally:
            self._release(name, loaded, outcome, time.perf_counter_ns() - start)
        if self._recorder is not None:
            self._recorder.sample(name, loaded.manifest, feeds, outputs)
        shadow = self._shadows.get(name)
        if shadow is not None:
            shadow.observe(feeds, outputs)
        if request is not None:
            self.truth.remember(name, request, loaded.manifest, loaded.artifact_sha256, outputs)
        return outputs

    def shadow(self, name: str) -> Shadow | None:
        """The candidate beside the active release, opened or closed as the state on disk now says.

        Raises:
            RuntimeFailure: the candidate cannot be opened.
        """
        store = self.store(name)
        candidate = store.load().candidate
        terms = terms_of(store, candidate) if candidate is not None else None
        current = self._shadows.get(name)
        if current is not None and (terms is None or current.ref != candidate):
            self._shadows.pop(name).close()
            current = None
        if current is None and candidate is not None and terms is not None:
            model, manifest = self.config.model(name), store.manifest(candidate)
            artifact = manifest.artifact_for(model.profile, available_runtimes(model.runtime))
            session = open_session(
                store.artifact(candidate), runtime=artifact.runtime, options=SessionOptions(threads=1)
            )
            current = self._shadows[name] = Shadow(candidate, session, manifest, terms)
        return current

    def probe(self, name: str, feeds: Feeds) -> None:
        """A request of the agent's own: counts for health, not for drift, and its failure is a figure, not an error."""
        loaded = self._acquire(name)
        start, outcome = time.perf_counter_ns(), "failed"
        try:
            check_outputs(self._run(loaded, feeds))
            outcome = "ok"
        except EdgewrightError as error:
            log.warning("The agent's own request to %s failed: %s", name, error)
        finally:
            self._release(name, loaded, outcome, time.perf_counter_ns() - start)

    def _run(self, loaded: _Loaded, feeds: Feeds) -> dict[str, Array]:
        session = loaded.sessions.get()
        try:
            return session.run(feeds)
        finally:
            loaded.sessions.put(session)

    def _acquire(self, name: str) -> _Loaded:
        if name not in self._stores:
            raise RequestError(f"No model is called {name!r}.", remedy="Ask for one that the agent runs.", status=404)
        with self._lock:
            loaded = self._loaded.get(name)
            if loaded is None:
                raise NotInstalled(f"Model {name!r} is not ready.", remedy="Install a release, or wait for one.")
            loaded.users += 1
            return loaded

    def _release(self, name: str, loaded: _Loaded, outcome: str, latency_ns: int) -> None:
        with self._lock:
            loaded.users -= 1
            loaded.counts = replace(loaded.counts, **{outcome: getattr(loaded.counts, outcome) + 1})
            last = loaded.retired and loaded.users == 0
        if last:
            loaded.close()
        if self._recorder is not None:
            self._recorder.request(name, loaded.ref.release, outcome, latency_ns)

    def _retire(self, loaded: _Loaded) -> bool:
        """Call with the lock held. True if nobody is inside, so that the caller closes it."""
        loaded.retired = True
        return loaded.users == 0

    # --- what others ask ------------------------------------------------------------------------------------------

    def store(self, name: str) -> Store:
        """Raises RequestError (404) for an unknown model."""
        if name not in self._stores:
            raise RequestError(f"No model is called {name!r}.", remedy="Ask for one that the agent runs.", status=404)
        return self._stores[name]

    def names(self) -> list[str]:
        return list(self._stores)

    def manifest(self, name: str) -> Manifest:
        """The manifest of the release that answers now. Raises RequestError, NotInstalled."""
        loaded = self._acquire(name)
        with self._lock:
            loaded.users -= 1
            last = loaded.retired and loaded.users == 0
        if last:
            loaded.close()
        return loaded.manifest

    def is_ready(self, name: str) -> bool:
        with self._lock:
            return name in self._loaded

    def health(self, name: str) -> tuple[SlotRef, Counts, float] | None:
        """The release that answers, its counts and its age in seconds; None if none does."""
        with self._lock:
            loaded = self._loaded.get(name)
            return None if loaded is None else (loaded.ref, loaded.counts, self._clock() - loaded.since)

    def close(self) -> None:
        """Close every session that no request is inside; the others close when their last request leaves."""
        with self._lock:
            ready = [loaded for loaded in self._loaded.values() if self._retire(loaded)]
            self._loaded.clear()
        for loaded in ready:
            loaded.close()
        while self._shadows:
            self._shadows.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
