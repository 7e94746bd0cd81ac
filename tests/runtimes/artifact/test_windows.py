"""Maintenance windows and versions: what is open when, what is new enough, what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from runtimes.artifact.index import Rollout
from runtimes.artifact.versions import at_least
from runtimes.artifact.windows import is_open

ZONE = timezone(timedelta(hours=2))


def at(day: str, clock: str) -> datetime:
    """2026-11-23 is a Monday."""
    number = ("mon", "tue", "wed", "thu", "fri", "sat", "sun").index(day)
    hour, minute = map(int, clock.split(":"))
    return datetime(2026, 11, 23 + number, hour, minute, tzinfo=ZONE)


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    (
        ("02:00-05:00", [("mon", "02:00"), ("sun", "04:59")], [("mon", "05:00"), ("mon", "01:59"), ("tue", "14:00")]),
        ("22:00-04:00", [("mon", "22:00"), ("tue", "03:59"), ("mon", "00:00")], [("mon", "04:00"), ("mon", "21:59")]),
        ("sat 22:00-04:00", [("sat", "23:00"), ("sun", "03:00")], [("sat", "03:00"), ("sun", "22:30")]),
        ("sun 22:00-04:00", [("mon", "03:00")], [("sun", "03:00")]),
        ("Mon-Wed 00:00-24:00", [("mon", "00:00"), ("wed", "23:59")], [("thu", "00:00"), ("sun", "12:00")]),
        ("fri-mon 10:00-11:00", [("fri", "10:30"), ("sun", "10:30"), ("mon", "10:30")], [("tue", "10:30")]),
        ("sat,sun 10:00-11:00", [("sun", "10:00")], [("fri", "10:00")]),
        ("00:00-01:00 UTC", [("mon", "02:30")], [("mon", "00:30")]),
        ("sun 23:00-24:00 utc", [("mon", "01:30")], [("sun", "23:30")]),
    ),
)
def test_a_window_is_open(window: str, inside: list[tuple[str, str]], outside: list[tuple[str, str]]) -> None:
    assert all(is_open([window], at(*moment)) for moment in inside)
    assert not any(is_open([window], at(*moment)) for moment in outside)


def test_of_several_windows_one_is_enough_and_none_is_always() -> None:
    assert is_open(["01:00-02:00", "13:00-14:00"], at("mon", "13:30"))
    assert not is_open(["01:00-02:00", "13:00-14:00"], at("mon", "12:30"))
    assert is_open([], datetime.now(UTC))


@pytest.mark.parametrize(
    "text",
    ("", "2:00-5:00", "02:00-02:00", "25:00-26:00", "02:60-03:00", "24:00-05:00", "foo 02:00-05:00", "02:00", "mon"),
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no window"):
        is_open([text], at("mon", "00:00"))


def test_versions() -> None:
    assert (
        at_least("1.20.0", "1.20")
        and at_least("1.20.1+cpu", "1.20")
        and at_least("2.1rc1", "2.1")
        and at_least("0", None)
    )
    assert not at_least("1.9", "1.10") and not at_least("1.20", "1.20.1") and not at_least("1.20", "soon")
    assert not at_least("unknown", "0.1") and at_least("unknown", "0")


def test_a_release_runs_on_a_runtime_that_is_new_enough() -> None:
    here = {"onnxruntime": "1.31.1", "litert": "2.3.0"}
    assert Rollout().runs_on("0.1.0", here) == ("onnxruntime", "litert")
    assert Rollout(min_runtimes={"litert": "2.4"}).runs_on("0.1.0", here) == ("onnxruntime",)
    assert Rollout(min_runtimes={"litert": "2.4", "onnxruntime": "2"}).runs_on("0.1.0", here) == ()
    assert Rollout(min_agent="0.2").runs_on("0.1.0", here) == ()
