"""One model's folder on disk: the state in two checked copies, the two slots, and recovery at start.

    <data>/models/<model>/
        state.json, state.bak.json   State with its SHA-256; every save writes both, one after the other
        a/, b/                       manifest.json, artifact, vectors, slot.json (digests), passed, confirmed (markers)
        download/                    partial downloads, named by digest

The state is one file replaced atomically, which is what makes activation one step. Losing both copies loses no model:
the slots say themselves what they hold, whether their trial passed and whether they were ever confirmed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from device_agent import slots
from device_agent.lock import locked
from device_agent.slots import BadRelease, SlotName, SlotRef, State
from runtimes.artifact.canonical import canonical_json
from runtimes.artifact.digest import sha256_hex
from runtimes.artifact.files import sha256_file, storage_error, sync_dir, write_atomic
from runtimes.artifact.manifest import Manifest, read_manifest
from runtimes.errors import ArtifactError

log = logging.getLogger(__name__)
STATE_SCHEMA = "edgewright.agent-state/1"
SLOT_SCHEMA = "edgewright.slot/1"
SLOTS: tuple[SlotName, SlotName] = ("a", "b")


class Store:
    """Storage of one model. Slots are written under the update lock, the state through ``change``; reading is safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.downloads = folder / "download"

    def prepare(self) -> None:
        """Make the folders. Raises StorageError."""
        try:
            self.downloads.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(self.downloads, error) from error

    # --- state ---------------------------------------------------------------------------------------------------

    def load(self) -> State:
        """The state, from whichever copy is whole, else rebuilt from the slots. Never fails for a damaged file."""
        for name in ("state.json", "state.bak.json"):
            try:
                return _decode((self.folder / name).read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("%s is damaged (%s); using what else there is", self.folder / name, error)
        return self._rebuild()

    def save(self, state: State) -> None:
        """Persist ``state``. The moment the first copy is replaced is the moment the change happens.

        Raises:
            StorageError: nothing changed, or only the second copy is old (the first one counts).
        """
        data = _encode(state)
        write_atomic(self.folder / "state.json", data)
        write_atomic(self.folder / "state.bak.json", data)

    def change(self, transition: Callable[[State], State]) -> State:
        """Load, apply a pure transition, save: one at a time across processes.

        Raises:
            StorageError: the old state stands.
            whatever ``transition`` raises: the old state stands.
        """
        with locked(self.folder, "state", wait_s=10.0):
            state = self.load()
            after = transition(state)
            if after != state:
                self.save(after)
            return after

    def _rebuild(self) -> State:
        whole = [(name, record) for name in SLOTS if (record := self.check(name)) and self._marked(name, "passed")]
        if not whole:
            return State()
        # A confirmed release is preferred over a newer one on probation: it is known to work.
        ranked = sorted(whole, key=lambda item: (self._marked(item[0], "confirmed"), item[1].sequence), reverse=True)
        active = ranked[0][1]
        sure = self._marked(active.slot, "confirmed")
        log.warning("The state was lost; rebuilt from slot %s (release %s)", active.slot, active.release)
        return State(active=active, confirmed=sure, floor=active.sequence if sure else 0)

    # --- slots ---------------------------------------------------------------------------------------------------

    def slot(self, name: SlotName) -> Path:
        return self.folder / name

    def manifest(self, ref: SlotRef) -> Manifest:
        """The manifest of a slot. Raises ArtifactError if it is not the one that was staged."""
        return self._manifest(ref)[0]

    def artifact(self, ref: SlotRef) -> Path:
        """Path of the model file (or unpacked folder) that a session opens."""
        return self.slot(ref.slot) / str(self._record(ref.slot)["open"])

    def artifact_file(self, ref: SlotRef) -> tuple[Path, str]:
        """The artifact as it was shipped, with its SHA-256: the base of a delta."""
        record = self._record(ref.slot)
        return self.slot(ref.slot) / str(record["artifact"]), str(record["files"][record["artifact"]])

    def check(self, name: SlotName) -> SlotRef | None:
        """Read every byte of a slot against the digests written when it was staged; None if anything differs."""
        try:
            record = self._record(name)
            for relative, digest in record["files"].items():
                if sha256_file(self.slot(name) / relative) != digest:
                    log.error("Slot %s: %s is damaged", self.slot(name), relative)
                    return None
            return SlotRef(name, record["release"], record["sequence"], record["files"]["manifest.json"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def stage(self, name: SlotName, source: Path, *, artifact: str, opened: str, manifest: Manifest) -> SlotRef:
        """Move ``source`` (a complete folder on the same file system) into a slot, durably.

        Args:
            source: holds manifest.json and every file of the release that the device needs.
            artifact: the shipped artifact file, relative to ``source``.
            opened: what a session opens, relative to ``source``: the same, or the folder unpacked from it.

        Raises:
            StorageError: the slot is then empty or as it was.
        """
        files = {p.relative_to(source).as_posix(): sha256_file(p) for p in sorted(source.rglob("*")) if p.is_file()}
        record = {
            "schema": SLOT_SCHEMA,
            "release": manifest.release,
            "sequence": manifest.sequence,
            "artifact": artifact,
            "open": opened,
            "files": files,
        }
        write_atomic(source / "slot.json", _sealed(record))
        target = self.slot(name)
        try:
            _sync_tree(source)
            self._remove(target)
            source.rename(target)
            sync_dir(self.folder)
        except OSError as error:
            raise storage_error(target, error) from error
        return SlotRef(name, manifest.release, manifest.sequence, files["manifest.json"])

    def mark(self, ref: SlotRef, marker: str) -> None:
        """Leave ``passed`` or ``confirmed`` in the slot, for the day the state is lost. Raises StorageError."""
        write_atomic(self.slot(ref.slot) / marker, ref.manifest_sha256.encode("ascii"))

    def _marked(self, name: SlotName, marker: str) -> bool:
        try:
            written = (self.slot(name) / marker).read_text("ascii")
            return bool(written == self._record(name)["files"]["manifest.json"])
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _record(self, name: SlotName) -> dict[str, Any]:
        record = _unsealed((self.slot(name) / "slot.json").read_bytes(), SLOT_SCHEMA)
        if not isinstance(record["files"], dict):
            raise ValueError("files is not an object")
        return record

    def _manifest(self, ref: SlotRef) -> tuple[Manifest, bytes]:
        path = self.slot(ref.slot) / "manifest.json"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"Cannot read {path}: {error.strerror}.", remedy="Install the model again.") from error
        if sha256_hex(data) != ref.manifest_sha256:
            raise ArtifactError(f"{path} is damaged.", remedy="Install the model again.")
        return read_manifest(data), data

    def _remove(self, path: Path) -> None:
        """Take a folder away in one step first, so that no half-deleted slot is ever seen under its name."""
        if path.exists():
            import shutil

            doomed = path.with_name(f".{path.name}.{os.getpid()}.old")
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    # --- recovery ------------------------------------------------------------------------------------------------

    def recover(self) -> State:
        """Bring any state that a crash can leave back to a consistent one; run under the lock, at every start.

        Leftovers of half-made slots go; a candidate or previous release whose bytes are not whole is forgotten; an
        active release whose bytes rotted gives way to the previous one if that is whole.
        """
        self.prepare()
        for leftover in sorted(path for path in self.folder.iterdir() if _is_leftover(path.name)):
            if leftover.is_dir():
                import shutil  # brings every archive format with it; a service that starts well needs none

                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
        before = self.load()
        state = self._with_whole_slots(before)
        if state != before or not self._state_is_whole():
            self.save(state)
        if state.active is not None and state.confirmed and not self._marked(state.active.slot, "confirmed"):
            self.mark(state.active, "confirmed")  # the crash fell between saving the state and marking the slot
        return state

    def _with_whole_slots(self, state: State) -> State:
        def whole(ref: SlotRef | None) -> SlotRef | None:
            return ref if ref is not None and self.check(ref.slot) == ref else None

        active, previous, candidate = whole(state.active), whole(state.previous), whole(state.candidate)
        if state.active is not None and active is None:
            log.error("Release %s is damaged on disk; %s", state.active.release, "returning" if previous else "gone")
            return state._replace(active=previous, confirmed=previous is not None, previous=None, candidate=candidate)
        return state._replace(active=active, previous=previous, candidate=candidate)

    def _state_is_whole(self) -> bool:
        try:
            main, backup = ((self.folder / n).read_bytes() for n in ("state.json", "state.bak.json"))
            return main == backup and bool(_decode(main))
        except (OSError, ValueError, KeyError, TypeError):
            return False


def _is_leftover(name: str) -> bool:
    return name.startswith("staging.") or (name.startswith(".") and name.endswith((".old", ".tmp")))


def store_for(data_dir: Path, model: str) -> Store:
    return Store(data_dir / "models" / model)


def confirm(store: Store) -> State:
    """Confirm the active release durably and return the new state."""
    state = store.change(slots.confirmed)
    if state.active is not None:
        store.mark(state.active, "confirmed")
    return state


def roll_back(store: Store, reason: str) -> State:
    """Return to the previous good release; the current one is never taken again. Raises NoWayBack, StorageError."""
    return store.change(lambda state: slots.rolled_back(state, reason))


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_dir(path)
    sync_dir(folder)


def _sealed(body: Mapping[str, Any]) -> bytes:
    digest = sha256_hex(canonical_json(body))
    return canonical_json({"body": body, "sha256": digest})


def _unsealed(data: bytes, schema: str) -> dict[str, Any]:
    """Raises ValueError, KeyError or TypeError for anything but what ``_sealed`` wrote."""
    outer = json.loads(data)
    body = outer["body"]
    if sha256_hex(canonical_json(body)) != outer["sha256"] or body["schema"] != schema:
        raise ValueError("checksum or schema differs")
    if not isinstance(body, dict):
        raise TypeError("not an object")
    return body


def _encode(state: State) -> bytes:
    return _sealed({"schema": STATE_SCHEMA, **state.document()})


def _decode(data: bytes) -> State:
    body = _unsealed(data, STATE_SCHEMA)

    def ref(value: Any) -> SlotRef | None:
        return None if value is None else SlotRef(**value)

    return State(
        active=ref(body["active"]),
        confirmed=bool(body["confirmed"]),
        previous=ref(body["previous"]),
        candidate=ref(body["candidate"]),
        tries=int(body["tries"]),
        boots=int(body["boots"]),
        floor=int(body["floor"]),
        bad=tuple(BadRelease(**b) for b in body["bad"]),
    )
