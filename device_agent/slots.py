"""Two slots per model, and the pure rules that move between them. No file is touched here; see store.py.

    begin ──> (inactive slot may be overwritten) ──> staged ──> tried ──> activated ──> confirmed
                                                        └─ rejected       └─ rolled_back

A release is *active* only after its digests were checked and its trial passed. Until it is confirmed the previous good
release stays whole in the other slot. The floor (anti-rollback) moves at confirmation only, so that a release that
turns out bad does not lock out the one before it.
"""

from typing import Any, Literal, NamedTuple

from device_agent.errors import NoWayBack

SlotName = Literal["a", "b"]
MAX_BAD = 64


class SlotRef(NamedTuple):
    """What a slot holds. ``manifest_sha256`` identifies a release: names can be published twice, bytes cannot."""

    slot: SlotName
    release: str
    sequence: int
    manifest_sha256: str


class BadRelease(NamedTuple):
    """A release that this device refuses for good, with the reason for the operator."""

    release: str
    sequence: int
    manifest_sha256: str
    reason: str


class State(NamedTuple):
    """Everything that must survive a power cut, per model.

    ``tries`` counts trials of the candidate that were begun; ``boots`` counts starts of an unconfirmed active release.
    """

    active: SlotRef | None = None
    confirmed: bool = False
    previous: SlotRef | None = None
    candidate: SlotRef | None = None
    tries: int = 0
    boots: int = 0
    floor: int = 0
    bad: tuple[BadRelease, ...] = ()

    def is_bad(self, manifest_sha256: str) -> bool:
        return any(b.manifest_sha256 == manifest_sha256 for b in self.bad)

    def document(self) -> dict[str, Any]:
        """Under the fields' names, as it is written to disk and shown."""
        refs = {"active": self.active, "previous": self.previous, "candidate": self.candidate}
        shown = {name: None if ref is None else ref._asdict() for name, ref in refs.items()}
        return {**self._asdict(), **shown, "bad": tuple(entry._asdict() for entry in self.bad)}


class Decision(NamedTuple):
    """Whether to take a release, and why, in words for logs and ``update --dry-run``."""

    take: bool
    reason: str


def decide(state: State, *, release: str, sequence: int, manifest_sha256: str) -> Decision:
    """Whether the offered release should be installed over ``state``."""
    active = state.active
    if active is not None and active.manifest_sha256 == manifest_sha256:
        return Decision(False, f"release {release} is already active")
    if state.is_bad(manifest_sha256):
        return Decision(False, f"release {release} was rejected on this device before")
    lowest = max(state.floor, active.sequence if active else 0)
    if sequence <= lowest:
        return Decision(False, f"release {release} (sequence {sequence}) is not newer than sequence {lowest}")
    if active is not None and not state.confirmed and state.previous is not None:
        return Decision(False, f"release {active.release} awaits confirmation; {release} comes after it")
    return Decision(True, f"release {release} (sequence {sequence}) replaces {active.release if active else 'nothing'}")


def inactive(state: State) -> SlotName:
    """The slot that may be overwritten: never the active one."""
    return "b" if state.active is not None and state.active.slot == "a" else "a"


def begin(state: State) -> State:
    """Give up what the inactive slot holds, before it is overwritten. Persist this first."""
    return state._replace(previous=None, candidate=None, tries=0)


def staged(state: State, ref: SlotRef) -> State:
    """The inactive slot now holds ``ref``, whole and durable, not yet tried."""
    if ref.slot != inactive(state):
        raise ValueError(f"slot {ref.slot} is active")
    return state._replace(candidate=ref, previous=None, tries=0)


def trying(state: State) -> State:
    """A trial of the candidate is about to start; persisted before, so that one that kills the board is counted."""
    return state._replace(tries=state.tries + 1)


def rejected(state: State, reason: str) -> State:
    """The candidate failed: never try it again."""
    if state.candidate is None:
        raise ValueError("there is no candidate to reject")
    return state._replace(candidate=None, tries=0, bad=_with_bad(state, state.candidate, reason))


def activated(state: State) -> State:
    """The one pointer moves; what was active stays as the way back, if it was good itself."""
    if state.candidate is None:
        raise ValueError("there is no candidate to activate")
    return state._replace(
        active=state.candidate, previous=state.active, candidate=None, confirmed=False, tries=0, boots=0
    )


def booted(state: State) -> State:
    """The service starts. Counts only while the active release is on probation."""
    return state if state.active is None or state.confirmed else state._replace(boots=state.boots + 1)


def confirmed(state: State) -> State:
    """The active release proved healthy; the anti-rollback floor moves here and nowhere else."""
    if state.active is None:
        raise ValueError("nothing is active")
    floor = max(state.floor, state.active.sequence)
    # A bad release at or below the floor can never be offered again: it need not be remembered.
    bad = tuple(b for b in state.bad if b.sequence > floor)
    return state._replace(confirmed=True, boots=0, floor=floor, bad=bad)


def rolled_back(state: State, reason: str) -> State:
    """Return to the previous good release and never take the current one again.

    Raises:
        NoWayBack: no previous release is kept; ``state`` stands.
    """
    if state.active is None or state.previous is None:
        raise NoWayBack(
            "No previous release is kept on this device.", remedy="Publish a newer release that mends the fault."
        )
    bad = _with_bad(state, state.active, reason)
    return state._replace(active=state.previous, previous=None, candidate=None, confirmed=True, boots=0, bad=bad)


def _with_bad(state: State, ref: SlotRef, reason: str) -> tuple[BadRelease, ...]:
    entry = BadRelease(ref.release, ref.sequence, ref.manifest_sha256, reason[:500])
    return (*(b for b in state.bad if b.manifest_sha256 != ref.manifest_sha256), entry)[-MAX_BAD:]
