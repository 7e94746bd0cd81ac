"""A few seconds of `python -m tests.fuzz` per decoder, and proof that the fuzzer finds what is there to find."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtimes.artifact.manifest import read_manifest
from tests.fuzz.guided import Target, fuzz
from tests.fuzz.targets import targets

NAMES = ("manifest", "index", "settings", "bundle", "walkers", "delta", "archive")
SECONDS = 2.0


@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_survives(name: str, tmp_path: Path) -> None:
    target = next(t for t in targets(tmp_path) if t.name == name)
    found = fuzz(target, SECONDS)
    assert not found.failures, found.failures[0]
    assert found.runs > 20


def test_inputs_that_reach_new_code_are_kept() -> None:
    seed = b'{"schema":"edgewright.manifest/1"}'
    found = fuzz(Target("manifest", read_manifest, [seed], 1 << 30), 1.0)
    alone = fuzz(Target("manifest", read_manifest, [seed], 1 << 30), 0.0)
    assert found.edges > alone.edges and len(found.corpus) > 1


def test_an_untyped_error_is_a_failure() -> None:
    found = fuzz(Target("fragile", lambda data: data.index(b"x"), [b"x"], 1 << 30), 0.5)
    assert any("ValueError" in reason for reason, _ in found.failures)


def test_an_allocation_beyond_the_bound_is_a_failure() -> None:
    found = fuzz(Target("greedy", lambda data: bytearray(1 << 20), [b"x"], 1 << 10), 0.2)
    assert any("allocated" in reason for reason, _ in found.failures)
