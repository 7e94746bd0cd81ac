"""A candidate that sees what the active release sees: its answers are compared, never returned.

Requests wait in a short queue for one thread at the lowest priority; when it is full they are let go, and live ones never wait.
How many comparisons decide, and at what agreement, is the publisher's signed word, which the updater leaves in the slot.
"""

import contextlib
import json
import logging
import os
import queue
import threading
from typing import NamedTuple

import numpy as np

from device_agent.guard import check_outputs
from device_agent.slots import SlotRef
from device_agent.store import Store
from profiles.errors import EdgewrightError
from runtimes.artifact.files import write_atomic
from runtimes.artifact.manifest import Manifest
from runtimes.session import Array, Feeds, Session

log = logging.getLogger(__name__)
MARKER = "shadow.json"
WAITING = 8  # requests that wait for the candidate at most


class Terms(NamedTuple):
    """``requests`` comparisons decide; the candidate is taken if at least ``agreement`` of them agree."""

    requests: int
    agreement: float


def leave_terms(store: Store, ref: SlotRef, terms: Terms) -> None:
    """Write the terms beside the candidate. Raises StorageError."""
    document = {"manifest_sha256": ref.manifest_sha256, "requests": terms.requests, "agreement": terms.agreement}
    write_atomic(store.slot(ref.slot) / MARKER, json.dumps(document).encode())


def terms_of(store: Store, ref: SlotRef) -> Terms | None:
    """The terms that were left for just this candidate; None for a candidate that is not to be shadowed."""
    try:
        document = json.loads((store.slot(ref.slot) / MARKER).read_bytes())
        if document["manifest_sha256"] != ref.manifest_sha256:
            return None
        return Terms(int(document["requests"]), float(document["agreement"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Compared(NamedTuple):
    """``agreed`` of ``compared`` answers were alike; ``failed`` gave none; ``dropped`` requests were not tried."""

    compared: int = 0
    agreed: int = 0
    failed: int = 0
    dropped: int = 0


class Shadow:
    """One candidate at work beside the active release.

    Args:
        session: the candidate's own; closed by ``close``.
        manifest: the candidate's, whose self-test says how far an output may differ.
    """

    def __init__(self, ref: SlotRef, session: Session, manifest: Manifest, terms: Terms) -> None:
        self.ref, self.terms = ref, terms
        self._session, self._manifest = session, manifest
        self._waiting: queue.Queue[tuple[Feeds, Feeds] | None] = queue.Queue(WAITING)
        self._lock = threading.Lock()
        self._ending = False
        self._counts = Compared()
        self._thread = threading.Thread(target=self._work, name=f"shadow-{ref.release}", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> Compared:
        with self._lock:
            return self._counts

    def observe(self, feeds: Feeds, outputs: Feeds) -> None:
        """Hand over a live request and its answer; returns at once."""
        try:
            self._waiting.put_nowait((feeds, outputs))
        except queue.Full:
            self._count(dropped=1)

    def verdict(self) -> tuple[bool, str] | None:
        """Whether the candidate is taken, and why; None while there is not enough to say."""
        seen = self.counts
        judged = seen.compared + seen.failed
        if judged < self.terms.requests:
            return None
        share = seen.agreed / judged
        said = f"{seen.agreed} of {judged} answers beside the active release agreed, {seen.failed} failed"
        return share >= self.terms.agreement, said

    def close(self) -> None:
        """Let go what waits. The session is closed when it is not running: here, or by a run that takes its time."""
        self._ending = True
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._thread.join(5.0)

    def _count(self, **more: int) -> None:
        with self._lock:
            now = self._counts
            self._counts = Compared(
                **{n: getattr(now, n) + more.get(n, 0) for n in ("compared", "agreed", "failed", "dropped")}
            )

    def _work(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # Linux: of this thread alone
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while (item := self._waiting.get()) is not None and not self._ending:
            feeds, live = item
            try:
                outputs = self._session.run(feeds)
                check_outputs(outputs)
            except EdgewrightError as error:
                log.warning("The candidate %s failed on a live request: %s", self.ref.release, error)
                self._count(failed=1)
                continue
            self._count(compared=1, agreed=int(self._alike(outputs, live)))
        self._session.close()

    def _alike(self, outputs: Feeds, live: Feeds) -> bool:
        """The same classes where the outputs are classes, else values within the self-test's tolerance."""
        for spec in self._manifest.outputs:
            ours, theirs = outputs.get(spec.name), live.get(spec.name)
            if ours is None or theirs is None or ours.shape != theirs.shape:
                return False
            if spec.semantic is not None or spec.labels:
                if not _same_classes(ours, theirs):
                    return False
            elif (
                float(np.abs(ours.astype(np.float64) - theirs).max(initial=0.0))
                > self._manifest.self_test.max_abs_error
            ):
                return False
        return True


def _same_classes(ours: Array, theirs: Array) -> bool:
    if ours.ndim == 0:
        return bool(ours == theirs)
    return bool((ours.argmax(axis=-1) == theirs.argmax(axis=-1)).all())
