"""Inference in this process: guarded, counted, and swapped to a new release without dropping a request."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from device_agent.batching import Batcher, can_batch
from device_agent.chain import Answered, Chain
from device_agent.config import AgentConfig
from device_agent.errors import DeadlineExceeded, NotInstalled, Overloaded, RequestError
from device_agent.guard import OutputWatch, check_inputs
from device_agent.opening import artifact_here, open_chain
from device_agent.pool import too_late
from device_agent.slots import SlotRef, State
from device_agent.store import Store, store_for
from device_agent.truth import GroundTruth
from profiles.errors import EdgewrightError
from runtimes.artifact.manifest import Manifest
from runtimes.registry import open_session
from runtimes.session import Array, Feeds, SessionOptions

if TYPE_CHECKING:
    from device_agent.shadow import Shadow

log = logging.getLogger(__name__)
LATENCIES = 512  # last answers whose latency is remembered


class Counts(NamedTuple):
    """Requests of one model since its release was loaded.

    ``refused`` is the client's fault, ``failed`` the model's, also where another answered in its place; ``shed`` were too many or
    too late. ``p95_ms`` is of the last answers.
    """

    ok: int = 0
    refused: int = 0
    failed: int = 0
    shed: int = 0
    p95_ms: float = 0.0

    @property
    def answered(self) -> int:
        return self.ok + self.failed


class Result(NamedTuple):
    """An answer. ``fallback`` names the step that stood in for the first one; None where that one answered."""

    outputs: dict[str, Array]
    release: str
    fallback: str | None


class Recorder(Protocol):
    """Hears of every request; must be quick and must not raise."""

    def request(self, model: str, release: str, outcome: str, latency_ns: int) -> None: ...

    def sample(self, model: str, manifest: Manifest, feeds: Feeds, outputs: Feeds) -> None: ...

    def fallback(self, model: str, release: str, step: str) -> None: ...

    def event(self, name: str, *, severity: str = "info", **attributes: Any) -> None: ...


class _Loaded:
    """One open release. ``users`` counts requests inside; a retired one is closed by the last of them."""

    def __init__(
        self, ref: SlotRef, manifest: Manifest, chain: Chain, run: Callable[[Feeds, float | None], Answered],
        since: float, timeout_s: float, max_bytes: int, artifact_sha256: str | None = None,
    ) -> None:  # fmt: skip
        self.ref = ref
        self.manifest = manifest
        self.chain = chain
        self.run = run
        self.since = since
        self.timeout_s = timeout_s
        self.max_bytes = max_bytes
        self.artifact_sha256 = artifact_sha256
        self.users = 0
        self.retired = False
        self.outcomes: dict[str, int] = {}
        self.latencies: deque[int] = deque(maxlen=LATENCIES)
        self.watch = OutputWatch()
        self.stands_in: str | None = None  # the step that answered last, where it was not the first

    def counts(self) -> Counts:
        done = self.outcomes
        ordered = sorted(self.latencies)
        p95 = ordered[int(len(ordered) * 0.95)] / 1e6 if ordered else 0.0
        return Counts(
            done.get("ok", 0), done.get("refused", 0), done.get("failed", 0),
            done.get("overloaded", 0) + done.get("late", 0), p95,
        )  # fmt: skip


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

    def load_one(self, name: str) -> None:
        """Open one model. Raises as ``refresh``, unless something stands in for it."""
        try:
            self.refresh(name)
        except EdgewrightError:
            if not self.is_ready(name):
                raise

    def refresh(self, name: str, state: State | None = None) -> bool:
        """Swap to the release that is active on disk; True if it is another one than before.

        Requests inside the old release finish there; it is closed after the last of them.

        Args:
            state: as just loaded; None loads it.

        Raises:
            NotInstalled: nothing is active.
            RuntimeFailure: the release cannot be opened; the old one goes on. If there is none, and something can stand in
                (the release before, a declared constant), that answers from now on.
        """
        state = state or self.store(name).load()
        if state.active is None:
            raise NotInstalled(f"Model {name!r} is not installed.", remedy="Run edgewright-agent install or update.")
        with self._lock:
            current = self._loaded.get(name)
            if current is not None and current.ref == state.active:
                return False
        fresh = self._open(name, state.active, state.previous)
        failure = _opened(fresh.chain)
        if failure is not None and (current is not None or not fresh.chain.can_stand_in()):
            fresh.chain.close()
            raise failure
        with self._lock:
            old = self._loaded.get(name)
            self._loaded[name] = fresh
            close_now = old is not None and self._retire(old)
        if old is not None and close_now:
            old.chain.close()
        log.info("Model %s runs release %s", name, fresh.ref.release)
        if failure is not None:
            raise failure
        return True

    def _open(self, name: str, ref: SlotRef, previous: SlotRef | None) -> _Loaded:
        model, store = self.config.model(name), self.store(name)
        manifest = store.manifest(ref)
        chain = open_chain(model, store, ref, manifest, previous)
        run: Callable[[Feeds, float | None], Answered] = chain.run
        if model.max_batch > 1 and can_batch(manifest):
            run = Batcher(chain.run, model.max_batch, model.max_delay_ms / 1000).run
        elif model.max_batch > 1:
            log.warning("%s %s has a fixed batch size: its requests run alone", name, ref.release)
        sha256 = artifact_here(model, manifest).sha256
        return _Loaded(ref, manifest, chain, run, self._clock(), model.timeout_s, model.max_input_bytes, sha256)

    def infer(self, name: str, feeds: Feeds, *, request: str | None = None) -> dict[str, Array]:
        """The outputs of ``answer``, which see."""
        return self.answer(name, feeds, request=request).outputs

    def answer(self, name: str, feeds: Feeds, *, request: str | None = None, timeout_s: float | None = None) -> Result:
        """Answer one request.

        Args:
            feeds: one array per input, in the dtype and shape of the manifest.
            request: the request's id, under which the truth may come back later (``truth.feed_back``).
            timeout_s: until when an answer is of use; the model's own limit if None or longer.

        Raises:
            RequestError: unknown model (404), inputs that do not fit (400, 413), an answer that is not finite (500).
            Overloaded: too many requests wait already (503).
            DeadlineExceeded: the answer came too late (504).
            NotInstalled: the model is configured but has no release.
            InferenceFailed: the runtime failed, and nothing stands in.
        """
        loaded = self._acquire(name)
        start, outcome = time.perf_counter_ns(), "failed"
        try:
            answered = self._answer(loaded, feeds, timeout_s)
            outcome = "ok" if answered.own else "failed"
        except RequestError as error:
            outcome = _outcome_of(error)
            raise
        finally:
            self._release(name, loaded, outcome, time.perf_counter_ns() - start)
        fallback = self._note(name, loaded, answered)
        if answered.own:
            self._observe(name, loaded, feeds, answered, request)
        return Result(answered.outputs, loaded.ref.release, fallback)

    def _answer(self, loaded: _Loaded, feeds: Feeds, timeout_s: float | None) -> Answered:
        check_inputs(loaded.manifest, feeds, loaded.max_bytes)
        limit = loaded.timeout_s if timeout_s is None else min(timeout_s, loaded.timeout_s)
        deadline = time.monotonic() + limit
        answered = loaded.run(feeds, deadline)
        if time.monotonic() > deadline:
            raise too_late(f"The answer took longer than {limit:g} s")
        return answered

    def _note(self, name: str, loaded: _Loaded, answered: Answered) -> str | None:
        """Count an answer that another step gave, and say when that begins and ends; the step's name."""
        fallback = answered.step if answered.failures else None
        if fallback is not None and self._recorder is not None:
            self._recorder.fallback(name, loaded.ref.release, fallback)
        if fallback != loaded.stands_in:
            loaded.stands_in = fallback
            if self._recorder is not None:
                reasons = "; ".join(f"{step}: {why}" for step, why in answered.failures)[:500]
                severity = "info" if fallback is None else "warning" if answered.own else "error"
                self._recorder.event(
                    "model.fallback", severity=severity, model=name, release=loaded.ref.release,
                    answered_by=answered.step, reasons=reasons,
                )  # fmt: skip
        return fallback

    def _observe(self, name: str, loaded: _Loaded, feeds: Feeds, answered: Answered, request: str | None) -> None:
        """Everything that looks at an answer without changing it."""
        outputs = answered.outputs
        if self._recorder is not None:
            self._recorder.sample(name, loaded.manifest, feeds, outputs)
            for wrong in loaded.watch.observe(feeds, outputs, answered.magnitude):
                log.warning("The answers of %s %s are %s", name, loaded.ref.release, wrong)
                self._recorder.event(f"output.{wrong}", severity="warning", model=name, release=loaded.ref.release)
        shadow = self._shadows.get(name)
        if shadow is not None:
            shadow.observe(feeds, outputs)
        if request is not None:
            self.truth.remember(name, request, loaded.manifest, loaded.artifact_sha256, outputs)

    def refuse(self, name: str) -> None:
        """Count a request that was refused before it had arrays (a body that cannot be read)."""
        try:
            loaded = self._acquire(name)
        except EdgewrightError:
            return
        self._release(name, loaded, "refused", 0)

    def shadow(self, name: str, state: State | None = None) -> "Shadow | None":
        """The candidate beside the active release, opened or closed as the state on disk now says.

        Raises:
            RuntimeFailure: the candidate cannot be opened.
        """
        store = self.store(name)
        candidate = (state or store.load()).candidate
        if candidate is None and name not in self._shadows:
            return None
        from device_agent.shadow import Shadow, terms_of  # with the first candidate: few boards ever see one

        terms = terms_of(store, candidate) if candidate is not None else None
        current = self._shadows.get(name)
        if current is not None and (terms is None or current.ref != candidate):
            self._shadows.pop(name).close()
            current = None
        if current is None and candidate is not None and terms is not None:
            manifest = store.manifest(candidate)
            runtime = artifact_here(self.config.model(name), manifest).runtime
            session = open_session(store.artifact(candidate), runtime=runtime, options=SessionOptions(threads=1))
            current = self._shadows[name] = Shadow(candidate, session, manifest, terms)
        return current

    def probe(self, name: str, feeds: Feeds) -> None:
        """A request of the agent's own: counts for health, not for drift, and its failure is a figure, not an error."""
        loaded = self._acquire(name)
        start, outcome = time.perf_counter_ns(), "failed"
        try:
            outcome = "ok" if loaded.chain.run(feeds, time.monotonic() + loaded.timeout_s).own else "failed"
        except EdgewrightError as error:
            log.warning("The agent's own request to %s failed: %s", name, error)
            outcome = _outcome_of(error) if isinstance(error, RequestError) else "failed"
        finally:
            self._release(name, loaded, outcome, time.perf_counter_ns() - start)

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
            loaded.outcomes[outcome] = loaded.outcomes.get(outcome, 0) + 1
            if outcome == "ok":
                loaded.latencies.append(latency_ns)
            last = loaded.retired and loaded.users == 0
        if last:
            loaded.chain.close()
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
        self.store(name)
        with self._lock:
            loaded = self._loaded.get(name)
        if loaded is None:
            raise NotInstalled(f"Model {name!r} is not ready.", remedy="Install a release, or wait for one.")
        return loaded.manifest

    def is_ready(self, name: str) -> bool:
        with self._lock:
            return name in self._loaded

    def health(self, name: str) -> tuple[SlotRef, Counts, float] | None:
        """The release that answers, its counts and its age in seconds; None if none does."""
        with self._lock:
            loaded = self._loaded.get(name)
            return None if loaded is None else (loaded.ref, loaded.counts(), self._clock() - loaded.since)

    def stands_in(self, name: str) -> str | None:
        """The step that answers in place of the first one at present; None where the first one does."""
        with self._lock:
            loaded = self._loaded.get(name)
            return loaded.stands_in if loaded is not None else None

    def longest_run_s(self) -> float:
        """Age of the oldest run that has not come back: a runtime that hangs is seen here."""
        with self._lock:
            chains = [loaded.chain for loaded in self._loaded.values()]
        return max((chain.longest_run_s() for chain in chains), default=0.0)

    def close(self) -> None:
        """Close every session that no request is inside; the others close when their last request leaves."""
        with self._lock:
            ready = [loaded for loaded in self._loaded.values() if self._retire(loaded)]
            self._loaded.clear()
        for loaded in ready:
            loaded.chain.close()
        while self._shadows:
            self._shadows.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _opened(chain: Chain) -> EdgewrightError | None:
    try:
        chain.open_first()
    except EdgewrightError as error:
        return error
    return None


def _outcome_of(error: RequestError) -> str:
    if isinstance(error, Overloaded):
        return "overloaded"
    if isinstance(error, DeadlineExceeded):
        return "late"
    return "refused" if error.status < 500 else "failed"
