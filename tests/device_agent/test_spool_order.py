"""Priorities, batches that stay the same, dead letters, and a drop counter that is sent."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from device_agent.errors import NetworkError
from device_agent.spool import Record, Spool
from device_agent.telemetry import Telemetry
from device_agent.transports import Refused, Sender


class Receiver:
    """Takes batches, fails as a test says, and remembers every attempt."""

    def __init__(self) -> None:
        self.attempts: list[tuple[str, list[Record]]] = []
        self.failure: Exception | None = None

    def send(self, records: list[Record], key: str) -> None:
        self.attempts.append((key, records))
        if self.failure is not None:
            raise self.failure


def event(name: str, severity: str = "info") -> Record:
    return {"kind": "event", "time": 1, "name": name, "severity": severity, "attr": {"pad": "x" * 900}}


def put(spool: Spool, *records: Record) -> None:
    for record in records:
        spool.put(record)
        spool.flush()


def test_the_least_important_are_dropped_first(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s.db", max_bytes=65536)
    put(spool, event("rolled-back", "error"))
    for number in range(100):
        put(spool, {"kind": "metrics", "n": number, "pad": "x" * 900})
    kept = [stored.record for stored in spool.batch(1000)]
    assert kept[0]["name"] == "rolled-back" and kept[-1]["n"] == 99 and spool.stats()["dropped"] > 20
    spool.close()


def test_the_most_important_are_sent_first(tmp_path: Path) -> None:
    spool, receiver = Spool(tmp_path / "s.db", max_bytes=65536), Receiver()
    put(spool, {"kind": "sample", "n": 0}, {"kind": "metrics", "n": 1}, event("started"), event("failed", "error"))
    sender = Sender(spool, receiver, 1, lambda: 0.0)
    assert sender.pump() == 4
    assert [r[0].get("name") or r[0]["kind"] for _, r in receiver.attempts] == [
        "failed",
        "started",
        "metrics",
        "sample",
    ]
    spool.close()


def test_a_batch_is_the_same_after_a_lost_acknowledgement_and_a_restart(tmp_path: Path) -> None:
    now, receiver = [0.0], Receiver()
    spool = Spool(tmp_path / "s.db", max_bytes=65536)
    put(spool, event("one"), event("two"))
    receiver.failure = NetworkError("gone.", remedy="None.")
    assert Sender(spool, receiver, 8, lambda: now[0]).pump() == 0
    put(spool, event("worse", "error"))  # more important, and not in the batch that was begun
    spool.close()
    again = Spool(tmp_path / "s.db", max_bytes=65536)
    receiver.failure = None
    assert Sender(again, receiver, 8, lambda: now[0]).pump() == 3
    (first, sent), (second, resent), (third, rest) = receiver.attempts
    assert first == second != third and sent == resent and [r["name"] for r in rest] == ["worse"]
    again.close()


def test_what_is_never_taken_is_kept_aside_with_the_reason(tmp_path: Path) -> None:
    spool, receiver = Spool(tmp_path / "s.db", max_bytes=65536), Receiver()
    put(spool, event("one"), event("two"))
    receiver.failure = Refused("HTTP 400 no such thing")
    assert Sender(spool, receiver, 8, lambda: 0.0).pump() == 0
    assert [(why, r["name"]) for why, r in spool.dead_letters()] == [
        ("HTTP 400 no such thing", "one"),
        ("HTTP 400 no such thing", "two"),
    ]
    assert spool.stats() == {"records": 0, "bytes": 0, "dropped": 2}
    spool.close()


def test_one_record_that_spoils_a_batch_is_buried_alone(tmp_path: Path) -> None:
    class Picky(Receiver):
        def send(self, records: list[Record], key: str) -> None:
            super().send(records, key)
            if any(r["name"] == "two" for r in records):
                raise Refused("HTTP 400")

    spool, receiver = Spool(tmp_path / "s.db", max_bytes=65536), Picky()
    put(spool, event("one"), event("two"), event("three"))
    assert Sender(spool, receiver, 8, lambda: 0.0).pump() == 2
    assert [r["name"] for _, r in spool.dead_letters()] == ["two"]
    assert len({key for key, _ in receiver.attempts}) == len(receiver.attempts), "another composition, another key"
    spool.close()


def test_dead_letters_are_few(tmp_path: Path) -> None:
    spool, receiver = Spool(tmp_path / "s.db", max_bytes=1 << 20), Receiver()
    receiver.failure = Refused("no")
    for n in range(130):
        spool.put({"kind": "event", "name": str(n)})
    spool.flush()
    Sender(spool, receiver, 1, lambda: 0.0).pump()
    assert [r["name"] for _, r in spool.dead_letters()] == [str(n) for n in range(30, 130)]
    spool.close()


def test_the_drop_counter_is_sent_when_it_moves(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s.db", max_bytes=65536)
    telemetry = Telemetry(spool, now=lambda: 2 * 10**18)

    def said() -> list[Any]:
        telemetry.flush()
        spool.flush()
        return [s.record["value"] for s in spool.batch(1000) if s.record["kind"] == "dropped"]

    assert said() == []
    for _ in range(100):
        put(spool, event("x"))
    dropped = spool.stats()["dropped"]
    assert dropped and said() == [dropped] and said() == [dropped]
    spool.close()


def test_a_spool_of_an_earlier_version_is_taken_over(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "s.db")
    old.executescript(
        "CREATE TABLE records(id INTEGER PRIMARY KEY AUTOINCREMENT, size INTEGER NOT NULL, body BLOB NOT NULL);"
        "CREATE TABLE counters(name TEXT PRIMARY KEY, value INTEGER NOT NULL);"
        "INSERT INTO records(size, body) VALUES(8, '{\"n\": 1}'); INSERT INTO counters VALUES('dropped', 4);"
    )
    old.close()
    spool, receiver = Spool(tmp_path / "s.db", max_bytes=65536), Receiver()
    assert spool.stats()["dropped"] == 4 and not (tmp_path / "s.db.damaged").exists()
    assert Sender(spool, receiver, 8, lambda: 0.0).pump() == 1 and receiver.attempts[0][1] == [{"n": 1}]
    spool.close()
