"""Telemetry waiting for a network: a bounded queue in SQLite (WAL, synchronous=FULL).

The least important are dropped first, of those the oldest; the most important are sent first. What a receiver will never take
is kept aside as dead letters, a few of them, for whoever looks for the reason.

Several processes may write (service and updater). A damaged database is moved aside; the agent never refuses to start
for the sake of telemetry. Writers hand records to one thread, which commits them together: one fsync for many records.
"""

import contextlib
import json
import logging
import queue
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

log = logging.getLogger(__name__)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS records(id INTEGER PRIMARY KEY AUTOINCREMENT, size INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS counters(name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS dead(id INTEGER PRIMARY KEY, reason TEXT NOT NULL, body BLOB NOT NULL);
"""
# Added to what earlier versions wrote: how important, and the batch in which a record was first sent.
_COLUMNS = (("priority", "INTEGER NOT NULL DEFAULT 1"), ("batch", "INTEGER"))
_DEAD = 100  # letters kept
_PRIORITIES = {"sample": 0, "metrics": 1, "event": 2, "dropped": 3}
_GROUP = 256  # records per commit at most
_QUEUE = 4096  # records waiting for the writer in memory at most
Record = dict[str, Any]


class Stored(NamedTuple):
    id: int
    record: Record


class Batch(NamedTuple):
    """Records that go together. ``key`` stays the same however often, and after however many restarts, they are sent."""

    key: str
    records: list[Stored]


class Spool:
    """The queue. ``put`` never blocks and never raises; what cannot be kept is counted in ``dropped``.

    Args:
        path: the database file.
        max_bytes: most bytes of records; beyond it the oldest go.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._lock = threading.RLock()
        self._lost = 0  # dropped in this process and not yet written to the counter
        self._pending: queue.Queue[Record | None] = queue.Queue(_QUEUE)
        self._db = self._open()
        self._writer = threading.Thread(target=self._write_loop, name="spool-writer", daemon=True)
        self._writer.start()

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except (sqlite3.DatabaseError, OSError) as error:
            log.error("The spool %s is unusable (%s); it is moved aside", self._path, error)
        self._move_aside()
        try:
            return self._connect()
        except (sqlite3.Error, OSError) as error:
            log.error("No spool can be made at %s (%s); telemetry stays in memory", self._path, error)
            memory = sqlite3.connect(":memory:", check_same_thread=False)
            memory.executescript(_SCHEMA)
            _add_columns(memory)
            return memory

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self._path, timeout=5.0, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")  # a commit survives a power cut; NORMAL would lose the last ones
            if db.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("quick_check found damage")
            db.executescript(_SCHEMA)
            _add_columns(db)
            db.execute("INSERT OR IGNORE INTO counters VALUES('born', ?)", (time.time_ns(),))
            db.commit()
        except BaseException:
            db.close()
            raise
        return db

    def _move_aside(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            damaged = Path(f"{self._path}{suffix}")
            with contextlib.suppress(OSError):
                damaged.replace(f"{self._path}.damaged{suffix}")

    def put(self, record: Record) -> None:
        """Queue a JSON-able record for the writer."""
        try:
            self._pending.put_nowait(record)
        except queue.Full:
            with self._lock:
                self._lost += 1

    def flush(self) -> None:
        """Return when everything that was put before is committed, or dropped and counted."""
        self._pending.join()

    def _write_loop(self) -> None:
        while True:
            group = [self._pending.get()]
            with contextlib.suppress(queue.Empty):
                while len(group) < _GROUP:
                    group.append(self._pending.get_nowait())
            self._commit([record for record in group if record is not None])
            for _ in group:
                self._pending.task_done()
            if None in group:
                return

    def _commit(self, records: list[Record]) -> None:
        rows: list[tuple[int, bytes, int]] = []
        for record in records:
            try:
                body = json.dumps(record, allow_nan=False).encode()
                rows.append((len(body), body, priority_of(record)))
            except (TypeError, ValueError) as error:
                log.error("A telemetry record cannot be written: %s", error)
        with self._lock:
            lost = self._lost + len(records) - len(rows)
            try:
                with self._db:
                    self._db.executemany("INSERT INTO records(size, body, priority) VALUES(?, ?, ?)", rows)
                    self._count_drops(lost + self._trim())
                self._lost = 0
            except sqlite3.Error as error:  # a full disk, or a lock held for too long
                log.error("Telemetry could not be kept: %s", error)
                self._lost = lost + len(rows)

    def _trim(self) -> int:
        excess = self._size() - self._max_bytes
        dropped = 0
        while excess > 0:
            row = self._db.execute("SELECT id, size FROM records ORDER BY priority, id LIMIT 1").fetchone()
            self._db.execute("DELETE FROM records WHERE id = ?", (row[0],))
            excess, dropped = excess - row[1], dropped + 1
        return dropped

    def _count_drops(self, number: int) -> None:
        if number:
            self._add("dropped", number)

    def _add(self, name: str, number: int) -> None:
        self._db.execute(
            "INSERT INTO counters VALUES(?, ?) ON CONFLICT(name) DO UPDATE SET value = value + ?",
            (name, number, number),
        )

    def counter(self, name: str) -> int:
        """A persistent counter; 0 where it was never counted. ``born``: when the file was made, nanoseconds since 1970."""
        with self._lock:
            row = self._db.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else 0

    def _size(self) -> int:
        return int(self._db.execute("SELECT COALESCE(SUM(size), 0) FROM records").fetchone()[0])

    def batch(self, limit: int) -> list[Stored]:
        """The oldest records; one that cannot be read is removed and counted."""
        with self._lock:
            try:
                rows = self._db.execute("SELECT id, body FROM records ORDER BY id LIMIT ?", (limit,)).fetchall()
                return self._readable(rows)
            except sqlite3.Error as error:
                log.error("The spool cannot be read: %s", error)
                return []

    def _readable(self, rows: list[tuple[int, bytes]]) -> list[Stored]:
        found = []
        for number, body in rows:
            try:
                record = json.loads(body)
                if not isinstance(record, dict):
                    raise ValueError("not an object")
                found.append(Stored(number, record))
            except (ValueError, TypeError) as error:
                log.error("Telemetry record %d is damaged: %s", number, error)
                self.remove([number], dropped=True)
        return found

    def next_batch(self, limit: int) -> Batch | None:
        """The batch that was begun and not delivered, or a new one of the most important records; None if there is nothing.

        Which records it holds is written down before they are sent: after a lost acknowledgement, or a crash, the same
        ones go again under the same key.
        """
        with self._lock:
            try:
                row = self._db.execute("SELECT MIN(batch) FROM records WHERE batch IS NOT NULL").fetchone()
                number = row[0] if row[0] is not None else self._begin_batch(limit)
                if number is None:
                    return None
                rows = self._db.execute(
                    "SELECT id, body FROM records WHERE batch = ? ORDER BY id", (number,)
                ).fetchall()
                found = self._readable(rows)
                return Batch(f"{self.counter('born')}-{number}", found) if found else self.next_batch(limit)
            except sqlite3.Error as error:
                log.error("The spool cannot be read: %s", error)
                return None

    def _begin_batch(self, limit: int) -> int | None:
        with self._db:
            ids = self._db.execute("SELECT id FROM records ORDER BY priority DESC, id LIMIT ?", (limit,)).fetchall()
            if not ids:
                return None
            self._add("batches", 1)
            number = self.counter("batches")
            self._db.executemany("UPDATE records SET batch = ? WHERE id = ?", [(number, n) for (n,) in ids])
        return number

    def unbatch(self, numbers: list[int]) -> None:
        """Take a batch apart again, because one of its records spoils it."""
        with self._lock, contextlib.suppress(sqlite3.Error), self._db:
            self._db.executemany("UPDATE records SET batch = NULL WHERE id = ?", [(n,) for n in numbers])

    def bury(self, numbers: list[int], reason: str) -> None:
        """Keep records aside that no receiver takes, the last hundred of them; they count as dropped."""
        with self._lock:
            try:
                with self._db:
                    for number in numbers:
                        self._db.execute(
                            "INSERT OR REPLACE INTO dead SELECT id, ?, body FROM records WHERE id = ?",
                            (reason[:500], number),
                        )
                    self._db.execute(
                        "DELETE FROM dead WHERE id NOT IN (SELECT id FROM dead ORDER BY id DESC LIMIT ?)", (_DEAD,)
                    )
            except sqlite3.Error as error:  # a full disk: better to lose it than to send it for ever
                log.error("A dead letter could not be kept: %s", error)
        self.remove(numbers, dropped=True)

    def dead_letters(self) -> list[tuple[str, Record]]:
        """Reason and record, oldest first; what cannot be read is left out."""
        found = []
        with self._lock, contextlib.suppress(sqlite3.Error):
            for reason, body in self._db.execute("SELECT reason, body FROM dead ORDER BY id").fetchall():
                with contextlib.suppress(ValueError):
                    found.append((str(reason), json.loads(body)))
        return found

    def remove(self, numbers: list[int], *, dropped: bool = False) -> None:
        """Forget records that were delivered, or given up (counted)."""
        with self._lock:
            try:
                with self._db:
                    self._db.executemany("DELETE FROM records WHERE id = ?", [(n,) for n in numbers])
                    self._count_drops(len(numbers) if dropped else 0)
            except sqlite3.Error as error:
                log.error("Delivered telemetry could not be removed and will be sent twice: %s", error)

    def stats(self) -> dict[str, int]:
        """records, bytes, dropped. Zeroes if the database cannot be read."""
        with self._lock:
            try:
                records = int(self._db.execute("SELECT COUNT(*) FROM records").fetchone()[0])
                return {"records": records, "bytes": self._size(), "dropped": self._lost + self.counter("dropped")}
            except sqlite3.Error:
                return {"records": 0, "bytes": 0, "dropped": self._lost}

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what is queued and close."""
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(queue.Full):
            self._pending.put(None, timeout=timeout_s)
        self._writer.join(max(0.0, deadline - time.monotonic()))
        with self._lock, contextlib.suppress(sqlite3.Error):
            self._db.close()


def _add_columns(db: sqlite3.Connection) -> None:
    have = {row[1] for row in db.execute("PRAGMA table_info(records)")}
    for name, kind in _COLUMNS:
        if name not in have:
            db.execute(f"ALTER TABLE records ADD COLUMN {name} {kind}")


def priority_of(record: Record) -> int:
    """From 0 (samples) to 3 (what was lost, and events that say something is wrong)."""
    if record.get("severity") == "error":
        return 3
    return _PRIORITIES.get(str(record.get("kind")), 1)
